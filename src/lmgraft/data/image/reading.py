"""An image file as numbers, with the range of its own type: nothing is clipped and no mode is misread.

An image of at most 8 bits a channel becomes a PIL image, as timm's transforms take it. What is deeper, or has a number
of channels that PIL does not have, becomes a float tensor in [0, 1].
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageCms, ImageOps
from torch import Tensor

Style = Literal["viewer", "timm"]
Range = Literal["type", "percentile"] | tuple[float, float]

_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as PIL's mode L
_DEEP = ("I", "F")  # beginnings of the names of PIL's modes beyond 8 bits
_FLOAT = (0.0, 1.0)


@dataclass(frozen=True)
class Pixels:
    """An image deeper than 8 bits, or with other channels than PIL has."""

    values: npt.NDArray[Any]
    """(H, W, C), as they stand in the file."""
    limits: tuple[float, float]
    """What the type of the values can hold, or what the file says that they can be; [0, 1] of floats."""
    alpha: bool = False
    """Whether the last channel says how opaque a pixel is."""
    parts: int = 1
    """Frames or slices of the file, of which this is one."""

    def __enter__(self) -> Pixels:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing is open: the same `with` serves PIL's images."""

    @property
    def kind(self) -> str:
        """Type and channels, such as "uint16" or "uint16 x 5"."""
        channels = self.values.shape[2]
        return f"{self.values.dtype.name}" + (f" x {channels}" if channels > 1 else "")


@dataclass(frozen=True)
class Reading:
    """How files become numbers."""

    channels: int
    """Channels that the model takes: 1, 3, or as many as each file has."""
    style: Style = "viewer"
    """As an image viewer shows it, or PIL's `convert` as timm has it: neither orientation, profiles nor depth count."""
    limits: tuple[float, float] | None = None
    """Values that become 0 and 1 in images deeper than 8 bits; None: the limits of their type."""
    eight_bits: bool = False
    """Whether deep images are rounded to 8 bits, which every augmentation can take."""

    @property
    def mode(self) -> str | None:
        """PIL's name of the colour space; None where it has none for so many channels."""
        return {1: "L", 3: "RGB"}.get(self.channels)

    def read(self, image: Image.Image | Pixels) -> Image.Image | Tensor:
        """The image, whole: PIL's in `mode`, or (C, H, W) float in [0, 1].

        Raises:
            ValueError: If it has not the channels, or values outside of the range.
        """
        if isinstance(image, Image.Image):
            if self.style == "timm" and self.mode is not None:
                return _plain(image, self.mode)
            deep = deep_pixels(image, self.mode is None)
            if deep is None:
                return upright(image, str(self.mode))
            image = deep
        values = self._channels(_scaled(image, self.limits), image.alpha)
        if not self.eight_bits or self.mode is None:
            return values
        return Image.fromarray((values * 255).round().byte().permute(1, 2, 0).squeeze(2).numpy())

    def _channels(self, values: Tensor, alpha: bool) -> Tensor:
        """(C, H, W) with the wanted channels: grey is repeated, colour weighed, what is transparent becomes white."""
        count = len(values)
        if count == self.channels:
            return values
        if self.mode is None:
            raise ValueError(f"{count} channels, data.in_chans={self.channels}")
        if alpha:
            values = values[:-1] * values[-1:] + 1 - values[-1:]
        if len(values) == 1:
            return values.expand(self.channels, -1, -1).contiguous()
        if len(values) == 3:
            return (torch.tensor(_LUMA).view(3, 1, 1) * values).sum(0, keepdim=True) if self.channels == 1 else values
        raise ValueError(f"{count} channels, data.in_chans={self.channels}: give data.in_chans={count}")


def _plain(image: Image.Image, mode: str) -> Image.Image:
    if image.mode != mode:
        return image.convert(mode)
    image.load()  # convert() would copy
    return image


def upright(image: Image.Image, mode: str) -> Image.Image:
    """An image of 8 bits as a viewer shows it: turned as EXIF says, colours of its profile, on white."""
    if image.getexif().get(0x0112, 1) != 1 and image.format != "TIFF":  # PIL turns TIFFs itself
        image = ImageOps.exif_transpose(image)
    if image.mode == mode:
        image.load()
        return image
    if image.mode == "CMYK" and image.info.get("icc_profile"):
        image = _by_profile(image)
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        shown = image if image.mode == "RGBA" else image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown)
    elif image.mode == "LAB":
        image = image.convert("RGB")  # PIL knows no other way out of it
    return image.convert(mode)


def _by_profile(image: Image.Image) -> Image.Image:
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        shown = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (OSError, ImageCms.PyCMSError):
        return image  # no whole profile, or one of another colour space: PIL's rule
    return image if shown is None else shown


def deep_pixels(image: Image.Image, always: bool = False) -> Pixels | None:
    """The values of an image beyond 8 bits a channel; None of other images, unless `always`."""
    if not (always or image.mode.startswith(_DEEP)):
        return None
    image.load()
    values = np.asarray(image)
    if values.ndim == 2:
        values = values[:, :, None]
    limits = _limits(image)
    if limits == (0.0, 2.0**32 - 1):
        values = values.view(np.uint32)  # PIL holds them as signed
    return Pixels(values, limits, alpha=image.mode in ("LA", "RGBA"))


def _limits(image: Image.Image) -> tuple[float, float]:
    """What the numbers of PIL's image can be, by what its file says of them."""
    if image.mode == "F":
        return _FLOAT
    if not image.mode.startswith("I"):
        return 0.0, 255.0
    tags = getattr(image, "tag_v2", {})  # TIFF: bits a sample, and whether they have a sign
    bits = tags.get(258, (32 if image.mode == "I" and image.format not in ("PNG", "PPM") else 16,))[0]
    sign = tags.get(339, (2 if bits == 32 and not tags else 1,))[0] == 2
    return type_limits(bits, sign)


def type_limits(bits: int, sign: bool) -> tuple[float, float]:
    """The smallest and the largest integer of so many bits."""
    return (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if sign else (0.0, 2.0**bits - 1)


def array_limits(values: npt.NDArray[Any]) -> tuple[float, float]:
    """What the type of an array can hold; [0, 1] of floats."""
    if values.dtype.kind == "f":
        return _FLOAT
    return (0.0, 1.0) if values.dtype.kind == "b" else type_limits(8 * values.dtype.itemsize, values.dtype.kind == "i")


def _scaled(pixels: Pixels, limits: tuple[float, float] | None) -> Tensor:
    """(C, H, W) float in [0, 1]."""
    values = torch.from_numpy(np.ascontiguousarray(pixels.values.transpose(2, 0, 1), np.float64))
    low, high = limits or pixels.limits
    if not values.isfinite().all():
        raise ValueError("it holds values that are not finite")
    if pixels.values.dtype.kind == "f" and limits is None and (values.min() < low or values.max() > high):
        raise ValueError(
            f"floats from {float(values.min()):.6g} to {float(values.max()):.6g}, outside of [0, 1]: give data.range, "
            "percentile or [low, high]"
        )
    scaled = ((values - low) / (high - low)).clamp_(0, 1)
    if pixels.alpha and limits is not None:
        low, high = pixels.limits
        scaled[-1] = (values[-1] - low) / (high - low)
    return scaled.float()
