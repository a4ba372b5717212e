"""Fetching public data sets into the cache, without root and never half.

A Debian package comes by `apt-get download` with package lists of its own, so neither the
system's state nor root is touched; elsewhere the data set's own mirrors are asked.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import subprocess
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from lmgraft import records
from lmgraft.checkpoint.cache import cache_dir, scratch_dir
from lmgraft.errors import DataError

_PACKAGE = "dataset-fashion-mnist"
_PACKAGED = Path("usr/share/datasets/fashion-mnist")
_TIMEOUT = 600  # seconds for one apt-get call


def fetch_fashion_mnist(files: Mapping[str, str]) -> Path:
    """A folder with the gzipped idx files: the system's, the cache's, or fetched into the cache.

    Args:
        files: Name of each file -> SHA-256 of its unpacked content; only such files are kept.

    Raises:
        DataError: If no way of getting them works; it lists each way and its failure.
    """
    names = tuple(files)
    system, cached = Path("/") / _PACKAGED, cache_dir() / "data" / "fashion-mnist"
    for folder in (system, cached):
        if all((folder / f"{name}.gz").exists() for name in names):
            return folder
    failures = []
    for way in (_from_debian, _from_mirrors):
        with scratch_dir("fashion-mnist") as scratch:
            try:
                found = way(scratch, names)
                for name in names:
                    source = found / f"{name}.gz"
                    if hashlib.sha256(gzip.decompress(source.read_bytes())).hexdigest() != files[name]:
                        raise OSError(f"{name} is not the file it should be (SHA-256 differs)")
                    with records.atomic_path(cached / f"{name}.gz") as temporary:
                        shutil.copyfile(source, temporary)
                return cached
            except (OSError, EOFError, subprocess.SubprocessError) as error:
                failures.append(f"{way.__name__.removeprefix('_from_')}: {_reason(error)}")
    raise DataError(
        "Fashion-MNIST could not be fetched:\n    " + "\n    ".join(failures),
        "check the network, or download its four .gz files and give their folder as data.root",
    )


def _from_debian(scratch: Path, names: tuple[str, ...]) -> Path:
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise FileNotFoundError(f"{tool} is not on this system")
    state, cache = scratch / "state", scratch / "cache"
    for folder in (state / "lists" / "partial", cache / "archives" / "partial"):
        folder.mkdir(parents=True)
    options = [f"-oDir::State={state}", f"-oDir::State::lists={state / 'lists'}", f"-oDir::Cache={cache}"]
    options += ["-oDir::State::status=/var/lib/dpkg/status", "-oAPT::Sandbox::User=" + _user()]
    _call(["apt-get", *options, "-qq", "update"], scratch)
    _call(["apt-get", *options, "-qq", "download", _PACKAGE], scratch)
    (package,) = scratch.glob("*.deb")
    _call(["dpkg-deb", "-x", str(package), str(scratch / "unpacked")], scratch)
    return scratch / "unpacked" / _PACKAGED


def _user() -> str:
    # As root apt drops to a user that cannot write here; as anyone else it stays who it is.
    return "root" if hasattr(os, "geteuid") and os.geteuid() == 0 else "_apt"


def _from_mirrors(scratch: Path, names: tuple[str, ...]) -> Path:
    from torchvision.datasets import FashionMNIST as Upstream  # keeps the addresses up to date

    for name in names:
        address = f"{Upstream.mirrors[0]}{name}.gz"
        with urllib.request.urlopen(address, timeout=30) as response, open(scratch / f"{name}.gz", "wb") as out:
            shutil.copyfileobj(response, out)
    return scratch


def _call(command: list[str], folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=_TIMEOUT)


def _reason(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        lines = [line for line in (error.stderr or "").splitlines() if line.strip()]
        return lines[-1].strip() if lines else f"{error.cmd[0]} ended with status {error.returncode}"
    return str(error)
