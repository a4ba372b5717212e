"""The fifteen corruptions of ImageNet-C, each by its definition and published parameters.

Hendrycks and Dietterich, ICLR 2019 (arXiv 1903.12261), and the parameters their data set was made
with. Each takes an image (H, W, C) in [0, 1], the parameter of a severity and a generator, and
returns an image that `corrupt` clips. Parameters that are lengths are pixels of a 224-pixel image.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from lmgraft.data.image import corruptions_filters as filters
from lmgraft.data.image.corruptions_filters import Pixels

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def gaussian_noise(image: Pixels, sigma: float, rng: np.random.Generator) -> Pixels:
    return image + sigma * rng.standard_normal(image.shape, np.float32)


def shot_noise(image: Pixels, photons: float, rng: np.random.Generator) -> Pixels:
    """Poisson noise; fewer photons are more noise."""
    return (rng.poisson(image * photons) / photons).astype(np.float32)


def impulse_noise(image: Pixels, share: float, rng: np.random.Generator) -> Pixels:
    """Salt and pepper, in each channel for itself."""
    hit = rng.random(image.shape, np.float32) < share
    salt = rng.random(image.shape, np.float32) < 0.5
    return np.where(hit, salt.astype(np.float32), image)


def defocus_blur(image: Pixels, how: tuple[float, float], rng: np.random.Generator) -> Pixels:
    return filters.convolve(image, filters.disk(*how))


def glass_blur(image: Pixels, how: tuple[float, int, int], rng: np.random.Generator) -> Pixels:
    """Smoothed, pixels displaced by their neighbours, smoothed again.

    The published files were made by a swap that, on colour pixels, copies in one direction only
    (both sides are views of one array); so it is done here.
    """
    sigma, reach, times = how
    rounded = np.floor(filters.smooth(image, sigma) * 255).clip(0, 255)
    height, width, channels = rounded.shape
    source = np.arange(height * width)
    for _ in range(times):
        rows = np.arange(reach + 1, height - reach + 1)
        columns = np.arange(reach + 1, width - reach + 1)
        moves = rng.integers(-reach, reach, (2, len(rows), len(columns)))
        source = copied_from(source, (height, width), rows, columns, *moves)
    moved = rounded.reshape(-1, channels)[source].reshape(rounded.shape)
    return filters.smooth(moved.astype(np.float32) / 255, sigma)


def copied_from(
    source: npt.NDArray[np.int64],
    shape: tuple[int, int],
    rows: npt.NDArray[np.int64],
    columns: npt.NDArray[np.int64],
    down: npt.NDArray[np.int64],
    right: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    """Where each pixel's value comes from after every pixel of a part took that of a neighbour, last pixel first.

    A neighbour that comes later in the image has been changed before and hands on what it got; so
    values travel along chains, which are followed all at once by doubling.

    Args:
        source: (H * W,) where values came from before.
        shape: H and W.
        rows, columns: The part's, ascending.
        down, right: (rows, columns) offset of each pixel's neighbour.
    """
    width = shape[1]
    here = (rows[:, None] * width + columns).ravel()
    neighbour = np.arange(len(source))
    neighbour[here] += (down * width + right).ravel()
    inside = np.zeros(len(source), bool)
    inside[here] = True
    last = np.arange(len(source))
    chained = here[(neighbour[here] > here) & inside[neighbour[here]]]
    last[chained] = neighbour[chained]
    while True:
        further = last[last]
        if np.array_equal(further, last):
            break
        last = further
    return source[neighbour[last]]


def motion_blur(image: Pixels, how: tuple[int, float], rng: np.random.Generator) -> Pixels:
    return filters.motion_blur(image, *how, angle=rng.uniform(-45, 45))


def zoom_blur(image: Pixels, how: tuple[float, float], rng: np.random.Generator) -> Pixels:
    """The mean of the image and of its enlargements from 1 up to, and without, how[0] in steps of how[1]."""
    factors = np.arange(1, *how)
    total = image.copy()
    for factor in factors:
        total += filters.zoom_in(image, float(factor))
    mean: Pixels = total / np.float32(len(factors) + 1)
    return mean


def snow(image: Pixels, how: tuple[float, float, float, float, int, float, float], rng: np.random.Generator) -> Pixels:
    mean, deviation, zoom, threshold, radius, sigma, kept = how
    height, width, _ = image.shape
    flakes = rng.normal(mean, deviation, (height, width, 1)).astype(np.float32)
    flakes = filters.zoom_in(flakes, zoom)
    flakes = np.where(flakes < threshold, 0, np.floor(flakes.clip(0, 1) * 255) / 255)
    flakes = filters.motion_blur(flakes.astype(np.float32), radius, sigma, angle=rng.uniform(-135, -45))
    whitened = np.maximum(image, grey(image) * 1.5 + 0.5)
    snowed: Pixels = kept * image + (1 - kept) * whitened + flakes + np.rot90(flakes, 2)
    return snowed


def frost(
    image: Pixels, how: tuple[float, float], rng: np.random.Generator, pictures: Sequence[npt.NDArray[np.uint8]]
) -> Pixels:
    """A random part of one of the pictures of frost (H, W, 3), laid over the image."""
    picture = pictures[int(rng.integers(len(pictures)))]
    height, width, channels = image.shape
    scale = max(1.0, (height + 1) / picture.shape[0], (width + 1) / picture.shape[1])
    if scale > 1:
        size = (int(np.ceil(picture.shape[1] * scale)), int(np.ceil(picture.shape[0] * scale)))
        picture = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))
    top = int(rng.integers(picture.shape[0] - height))
    left = int(rng.integers(picture.shape[1] - width))
    part = picture[top : top + height, left : left + width].astype(np.float32) / 255
    return how[0] * image + how[1] * (grey(part) if channels == 1 else part)


def fog(image: Pixels, how: tuple[float, float], rng: np.random.Generator) -> Pixels:
    amount, decay = how
    height, width, _ = image.shape
    size = max(256, 1 << (max(height, width) - 1).bit_length())
    brightest = image.max()
    haze = filters.plasma(size, decay, rng)[:height, :width, None]
    fogged: Pixels = (image + amount * haze) * (brightest / (brightest + amount))
    return fogged


def brightness(image: Pixels, amount: float, rng: np.random.Generator) -> Pixels:
    """The value of hue, saturation and value is raised; the other two stay, so the channels scale alike."""
    value = image.max(axis=-1, keepdims=True)
    raised = np.minimum(value + np.float32(amount), 1)
    brighter: Pixels = np.where(value > 0, image * (raised / np.maximum(value, 1e-6)), raised)
    return brighter


def contrast(image: Pixels, kept: float, rng: np.random.Generator) -> Pixels:
    mean = image.mean(axis=(0, 1), keepdims=True)
    flatter: Pixels = (image - mean) * np.float32(kept) + mean
    return flatter


def elastic_transform(image: Pixels, how: tuple[float, float, float], rng: np.random.Generator) -> Pixels:
    """A random affine map, then displacements smooth over how[1] pixels.

    The published first two severities are mostly the affine map, the other three local waves: the
    distance from the clean image falls from the second to the third.
    """
    strength, sigma, jitter = how
    height, width, _ = image.shape
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    third = min(height, width) // 3
    x, y = width // 2, height // 2
    points = np.array([[x + third, y + third], [x + third, y - third], [x - third, y - third]], float)
    moved = points + rng.uniform(-jitter, jitter, points.shape)
    inverse = np.linalg.solve(np.column_stack([moved, np.ones(3)]), points).astype(np.float32)
    across, down = (inverse[0, i] * columns + inverse[1, i] * rows + inverse[2, i] for i in (0, 1))
    turned = filters.sample(image, down, across, mode="mirror")
    fields = rng.uniform(-1, 1, (2, height, width)).astype(np.float32)
    right, below = (filters.smooth_field(field, sigma) * np.float32(strength) for field in fields)
    return filters.sample(turned, rows + below, columns + right, mode="reflect")


def pixelate(image: Pixels, scale: float, rng: np.random.Generator) -> Pixels:
    whole = to_image(image)
    small = whole.resize((int(whole.width * scale), int(whole.height * scale)), Image.Resampling.BOX)
    return to_pixels(small.resize(whole.size, Image.Resampling.BOX))


def jpeg_compression(image: Pixels, quality: int, rng: np.random.Generator) -> Pixels:
    buffer = io.BytesIO()
    to_image(image).save(buffer, "JPEG", quality=quality)
    return to_pixels(Image.open(buffer))


def grey(image: Pixels) -> Pixels:
    """(H, W, 1)."""
    return image if image.shape[-1] == 1 else image @ _LUMA[:, None]


def to_pixels(image: Image.Image) -> Pixels:
    """(H, W, C) in [0, 1] of an image in mode L or RGB."""
    pixels = np.asarray(image, np.float32) / 255
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def to_image(pixels: Pixels) -> Image.Image:
    """Clipped and cut to whole numbers, as the published files were; mode L or RGB."""
    # A value that was whole before stays so: 255 * (k / 255) may lie a rounding error below k.
    whole = (pixels.clip(0, 1) * 255 + 1e-3).astype(np.uint8)
    return Image.fromarray(whole[:, :, 0] if whole.shape[-1] == 1 else whole)
