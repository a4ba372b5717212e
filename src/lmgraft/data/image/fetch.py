"""Fetching public data sets into the cache, without root and never half.

A Debian package comes by `lmgraft.data.debian`; elsewhere the data set's own mirrors are asked.
"""

from __future__ import annotations

import gzip
import hashlib
import shutil
import subprocess
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from lmgraft import records
from lmgraft.checkpoint.cache import cache_dir, scratch_dir
from lmgraft.data.debian import download_package
from lmgraft.data.packages import call, reason
from lmgraft.errors import DataError

_PACKAGE = "dataset-fashion-mnist"
_PACKAGED = Path("usr/share/datasets/fashion-mnist")


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
                failures.append(f"{way.__name__.removeprefix('_from_')}: {reason(error)}")
    raise DataError(
        "Fashion-MNIST could not be fetched:\n    " + "\n    ".join(failures),
        "check the network, or download its four .gz files and give their folder as data.root",
    )


def _from_debian(scratch: Path, names: tuple[str, ...]) -> Path:
    package = download_package(_PACKAGE, scratch)
    call(["dpkg-deb", "-x", str(package), str(scratch / "unpacked")], scratch)
    return scratch / "unpacked" / _PACKAGED


def _from_mirrors(scratch: Path, names: tuple[str, ...]) -> Path:
    from torchvision.datasets import FashionMNIST as Upstream  # keeps the addresses up to date

    for name in names:
        address = f"{Upstream.mirrors[0]}{name}.gz"
        with urllib.request.urlopen(address, timeout=30) as response, open(scratch / f"{name}.gz", "wb") as out:
            shutil.copyfileobj(response, out)
    return scratch
