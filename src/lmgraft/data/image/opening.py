"""Opening an image file: PIL first, and readers of their own for what PIL cuts down to 8 bits or does not know."""

from __future__ import annotations

import gzip
import io
import sys
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from lmgraft.data.image.reading import Pixels, array_limits, type_limits
from lmgraft.versions import optional

EXTENSIONS = (
    ".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".dcm", ".nii", ".nii.gz",
)  # fmt: skip
"""File names that are taken as images."""

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def is_image(name: str) -> bool:
    """Whether a file is taken as an image, by its name; those that macOS lays beside a file, ._NAME, are not."""
    return name.lower().endswith(EXTENSIONS) and not name.startswith("._")


def open_image(source: str | bytes) -> Image.Image | Pixels:
    """The image of a path, or of a file's content; of several frames the first, of a volume the middle slice.

    PIL's is not decoded yet; `with` closes its file.

    Raises:
        UNREADABLE: One of these, if it is none.
    """
    try:
        image = _open(source)
    except UnidentifiedImageError:
        return _by_another(_content(source))
    if len(image.getbands()) > 1:
        tags = getattr(image, "tag_v2", {})
        if tags.get(284) != 2 and any(";16" in _raw_mode(tile[3]) for tile in image.tile):
            return _of_16_bits(source, image)
        if max(tags.get(258, (8,))) > 8:  # TIFF with a plane a channel: PIL misreads it
            image.close()
            return _of_tiff(_content(source))
    return image


def _open(source: str | bytes) -> ImageFile:
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)


def _content(source: str | bytes) -> bytes:
    if isinstance(source, bytes):
        return source
    with open(source, "rb") as file:
        return file.read()


def _by_another(content: bytes) -> Pixels:
    if content[:2] == b"\x1f\x8b":
        content = gzip.decompress(content)
    if content[128:132] == b"DICM":
        return _of_dicom(content)
    if content[344:347] in (b"n+1", b"ni1") or content[4:7] == b"n+2":
        return _of_nifti(content)
    if content[:4] in _TIFF:
        return _of_tiff(content)
    raise UnidentifiedImageError("not an image")


_LITTLE = sys.byteorder == "little"
_SWAPPED = {";16B": ";16L", ";16L": ";16B", ";16N": ";16B" if _LITTLE else ";16L"}


def _raw_mode(arguments: Any) -> str:
    """How a file holds its pixels, in PIL's words; "" where it does not say."""
    raw = arguments if isinstance(arguments, str) else arguments[0] if arguments else ""
    return raw if isinstance(raw, str) else ""


def _swapped(tile: Any) -> Any:
    *place, arguments = tile
    raw = _raw_mode(arguments)
    raw = raw[:-4] + _SWAPPED[raw[-4:]]
    arguments = raw if isinstance(arguments, str) else (raw, *arguments[1:])
    return tile._replace(args=arguments) if hasattr(tile, "_replace") else (*place, arguments)


def _of_16_bits(source: str | bytes, image: ImageFile) -> Pixels:
    """Colour of 16 bits, of which PIL keeps the higher byte: read again in the other byte order it keeps the lower."""
    with image, _open(source) as again:
        again.tile = [_swapped(tile) for tile in image.tile]
        image.load()
        again.load()
        values = np.asarray(image).astype(np.uint16) << 8 | np.asarray(again)
        return Pixels(values, array_limits(values), alpha="A" in image.mode)


def _of_tiff(content: bytes) -> Pixels:
    """The first page: more than 8 bits in colour, or any number of channels."""
    with optional("tifffile", "medical", "reading such TIFF").TiffFile(io.BytesIO(content)) as file:
        page = file.pages[0]
        values, axes, bits = page.asarray(), page.axes, page.bitspersample
        if sorted(axes) not in (["X", "Y"], ["S", "X", "Y"]):
            raise NotImplementedError(f"a TIFF with the axes {axes}")
        values = np.moveaxis(values, axes.index("S"), -1) if "S" in axes else values[:, :, None]
        alpha = bool(page.extrasamples) and int(page.extrasamples[-1]) in (1, 2) and values.shape[2] in (2, 4)
        odd = values.dtype.kind == "u" and bits < 8 * values.dtype.itemsize  # 12 bits in 16
        return Pixels(values, type_limits(bits, False) if odd else array_limits(values), alpha, len(file.pages))


def _of_dicom(content: bytes) -> Pixels:
    """The first frame in the units of the file: a rescaling is applied, a window is not; MONOCHROME1 is turned over."""
    data = optional("pydicom", "medical", "reading DICOM").dcmread(io.BytesIO(content))
    if "PixelData" not in data:
        raise ValueError("a DICOM file without an image")
    frames = int(data.get("NumberOfFrames", 1) or 1)
    values = data.pixel_array[0] if frames > 1 else data.pixel_array
    limits = type_limits(int(data.BitsStored), bool(data.PixelRepresentation))
    if data.SamplesPerPixel > 1:
        return Pixels(values, limits, parts=frames)
    values = values[:, :, None]
    slope, intercept = float(data.get("RescaleSlope", 1) or 1), float(data.get("RescaleIntercept", 0) or 0)
    low, high = (limit * slope + intercept for limit in limits)
    if (slope, intercept) != (1, 0):
        values = values * slope + intercept
    if data.PhotometricInterpretation == "MONOCHROME1":
        values = low + high - values
    return Pixels(values, (low, high), parts=frames)


def _of_nifti(content: bytes) -> Pixels:
    """A slice across the third axis, the middle one, seen with the front or the upper side of the body up."""
    nibabel = optional("nibabel", "medical", "reading NIfTI")
    file = (nibabel.Nifti2Image if content[4:7] == b"n+2" else nibabel.Nifti1Image).from_bytes(content)
    limits = array_limits(np.empty(0, file.get_data_dtype()))
    if file.get_data_dtype().kind != "f":
        limits = tuple(limit * file.dataobj.slope + file.dataobj.inter for limit in limits)
    volume = np.asarray(nibabel.as_closest_canonical(file).dataobj)
    volume = volume.reshape(*volume.shape[:2], -1) if volume.ndim < 3 else volume.reshape(*volume.shape[:3], -1)[..., 0]
    slices = volume.shape[2]
    return Pixels(volume[:, :, slices // 2].T[::-1, :, None], limits, parts=slices)
