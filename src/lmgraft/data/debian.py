"""Files out of Debian packages, without root: package lists and downloads in a folder of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lmgraft.checkpoint.cache import announce, scratch_dir
from lmgraft.data.files import prepared_place
from lmgraft.data.packages import PinnedPackage, call, reason
from lmgraft.errors import DataError


def download_package(package: str, folder: Path) -> Path:
    """Download a package, "name" or "name=version", by apt-get, and return its file.

    Raises:
        OSError: If there is no apt-get here.
        subprocess.SubprocessError: If it does not give the package.
    """
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise FileNotFoundError(f"{tool} is not on this system")
    state, cache = folder / "state", folder / "cache"
    for part in (state / "lists" / "partial", cache / "archives" / "partial"):
        part.mkdir(parents=True)
    options = [f"-oDir::State={state}", f"-oDir::State::lists={state / 'lists'}", f"-oDir::Cache={cache}"]
    options += ["-oDir::State::status=/var/lib/dpkg/status", "-oAPT::Sandbox::User=" + _user()]
    call(["apt-get", *options, "-qq", "update"], folder)
    call(["apt-get", *options, "-qq", "download", package], folder)
    (file,) = folder.glob("*.deb")
    return file


def _user() -> str:
    # As root apt drops to a user that cannot write here; as anyone else it stays who it is.
    return "root" if hasattr(os, "geteuid") and os.geteuid() == 0 else "_apt"


@dataclass(frozen=True)
class Pinned(PinnedPackage):
    """One version of a package that is for every machine."""

    kind = "Debian"


def fetch_pinned(package: Pinned, scratch: Path) -> Path:
    """The file of exactly this package: one in the current folder, or downloaded.

    Raises:
        DataError: If it cannot be had, or is another file.
    """
    name, version = package.name, package.version
    file = Path(f"{name}_{version}_all.deb")
    remedy = f"download {file} from Debian's archive (its snapshots keep all versions) into the current folder"
    if not file.is_file():
        announce(f"{name} {version} from Debian", package.nbytes)
        try:
            file = download_package(f"{name}={version}", scratch)
        except (OSError, subprocess.SubprocessError) as error:
            raise DataError(f"{name} {version} could not be fetched: {reason(error)}", remedy) from None
    return package.check(file, remedy)


def unpack(deb: Path, folder: Path, wanted: Callable[[str], bool]) -> None:
    """Unpack the plain files of a package whose path is wanted.

    Raises:
        DataError: If dpkg-deb is not here, or the package is damaged.
    """
    try:
        with (
            subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE) as unpacking,
            tarfile.open(fileobj=unpacking.stdout, mode="r|") as tar,
        ):
            for member in tar:
                if member.isfile() and wanted(member.name):
                    tar.extract(member, folder, filter="data")
            assert unpacking.stdout is not None, "it is a pipe"
            unpacking.stdout.read()  # padding behind the archive's end
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"{deb} could not be unpacked ({error})", "dpkg-deb comes with Debian's package dpkg") from None
    if unpacking.returncode:
        raise DataError(f"{deb} could not be unpacked", "fetch it again")


def prepare_out_of(
    package: Pinned,
    ending: str | tuple[str, ...],
    about: Mapping[str, str],
    make: Callable[[Path, Path], Path],
    out: Path | None,
) -> Path:
    """Fetch a package and make a set of its files, unless the set is there.

    Args:
        package: The package.
        ending: Of the paths of the files that are wanted.
        about: What the set says of itself, its `name` above all.
        make: From the folder of these files and that of the set.
        out: The set's folder; None for its place in the cache.
    """
    name = about["name"]
    folder = prepared_place(name) if out is None else out
    if (folder / "set.json").exists():
        return folder
    with scratch_dir(name) as scratch:
        unpack(fetch_pinned(package, scratch), scratch / "files", lambda path: path.endswith(ending))
        return make(scratch / "files", folder)
