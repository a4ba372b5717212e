"""The image operations that corruptions are made of: smoothing, motion blur, zoom, warps, plasma.

Images are float32 arrays (H, W, C) with C 1 or 3. Where the definition names a library's
operation, its rule at the borders is kept.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from lmgraft.versions import optional

Pixels = npt.NDArray[np.floating[Any]]

_TRUNCATE = 4.0  # standard deviations at which scikit-image cuts a Gaussian


def scipy_part(name: str) -> Any:
    """`scipy.<name>`; nothing but corruptions needs SciPy.

    Raises:
        VersionError: If it is not installed.
    """
    return optional(f"scipy.{name}", "image", "corrupting images")


@lru_cache(maxsize=64)
def _gaussian_matrix(size: int, sigma: float, truncate: float) -> Pixels:
    """Smoothing of a mirrored line of `size` pixels as a matrix: quicker than a filter wider than the line."""
    blur = scipy_part("ndimage").gaussian_filter1d
    matrix: Pixels = blur(np.eye(size), sigma, axis=0, mode="reflect", truncate=truncate)
    return matrix.astype(np.float32)


def smooth(image: Pixels, sigma: float) -> Pixels:
    """Gaussian blur with the nearest pixel beyond the border."""
    blur = scipy_part("ndimage").gaussian_filter
    blurred: Pixels = blur(image, (sigma, sigma, 0), mode="nearest", truncate=_TRUNCATE)
    return blurred


def smooth_field(field: Pixels, sigma: float) -> Pixels:
    """Gaussian blur of a field (H, W), mirrored at the border and cut at three standard deviations."""
    rows, columns = (_gaussian_matrix(size, sigma, 3.0) for size in field.shape)
    return rows @ field @ columns.T


def convolve(image: Pixels, kernel: Pixels) -> Pixels:
    """Convolution of each channel with a symmetric kernel of odd size, mirrored at the border."""
    half = kernel.shape[0] // 2
    padded = np.pad(image, ((half, half), (half, half), (0, 0)), mode="reflect")
    blurred: Pixels = scipy_part("signal").oaconvolve(padded, kernel[:, :, None], mode="valid", axes=(0, 1))
    return blurred


def disk(radius: float, sigma: float) -> Pixels:
    """A disk, its rim softened by a Gaussian of `sigma` pixels and mirrored where it meets the kernel's edge.

    It sums to one, or, for a radius of 10, to 1.01: the published images are that much brighter.
    """
    half, soft = (8, 3) if radius <= 8 else (int(radius), 5)
    offsets = np.arange(-half, half + 1)
    solid = (offsets[:, None] ** 2 + offsets**2 <= radius**2).astype(np.float32)
    near = np.arange(soft) - soft // 2
    line = np.exp(-(near**2) / (2 * sigma**2))
    line = line / line.sum()
    softened: Pixels = scipy_part("ndimage").convolve(solid / solid.sum(), np.outer(line, line), mode="mirror")
    return softened


def motion_blur(image: Pixels, radius: int, sigma: float, angle: float) -> Pixels:
    """ImageMagick's motion blur: half a Gaussian along a line of 2 radius + 1 whole-pixel steps.

    Args:
        image: (H, W, C).
        radius: Pixels.
        sigma: Pixels.
        angle: Degrees.
    """
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights = (weights / weights.sum()).astype(np.float32)
    direction = np.deg2rad(angle)
    down = np.ceil(steps * np.sin(direction) - 0.5).astype(int)
    right = np.ceil(steps * np.cos(direction) - 0.5).astype(int)
    reach = 2 * radius + 1
    height, width, _ = image.shape
    padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    blurred = np.zeros_like(image)
    for weight, y, x in zip(weights, down + reach, right + reach, strict=True):
        blurred += weight * padded[y : y + height, x : x + width]
    return blurred


def zoom_in(image: Pixels, factor: float) -> Pixels:
    """The middle of the image, enlarged by `factor` to the image's size, linear between corner pixels."""
    for axis in (0, 1):
        size = image.shape[axis]
        part = math.ceil(size / factor)
        large = round(part * factor)
        start, trim = (size - part) // 2, (large - size) // 2
        # Where each pixel of the result lies in the part: its first and last pixel keep their places.
        places = np.linspace(0, part - 1, large)[trim : trim + size]
        low = np.minimum(places.astype(int), part - 2) if part > 1 else np.zeros(len(places), int)
        share = (places - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(image.ndim)])
        below = np.take(image, start + low, axis)
        above = np.take(image, start + np.minimum(low + 1, part - 1), axis)
        image = below + (above - below) * share
    return image


def sample(image: Pixels, rows: npt.NDArray[Any], columns: npt.NDArray[Any], mode: str) -> Pixels:
    """The image at fractional places (H, W), linear between pixels; `mode` is scipy's rule at the border."""
    places = np.stack([rows, columns])
    take = scipy_part("ndimage").map_coordinates
    channels = [take(image[:, :, c], places, order=1, mode=mode) for c in range(image.shape[2])]
    return np.stack(channels, axis=-1)


def plasma(size: int, decay: float, rng: np.random.Generator) -> Pixels:
    """A height map (size, size) in [0, 1] by the diamond-square rule on a torus; `size` a power of two.

    Each point is the mean of its four neighbours one step away plus a uniform draw, whose range falls
    by decay^2 from one level to the next.
    """
    heights = np.zeros((size, size), np.float32)
    step, reach = size, 1.0
    while step >= 2:
        half = step // 2

        def draw(points: Pixels, reach: float = reach) -> Pixels:
            return points / 4 + rng.uniform(-reach, reach, points.shape).astype(np.float32)

        corners = heights[::step, ::step]
        pairs = corners + np.roll(corners, -1, 0)
        heights[half::step, half::step] = draw(pairs + np.roll(pairs, -1, 1))
        centers, corners = heights[half::step, half::step], heights[::step, ::step]
        heights[::step, half::step] = draw(centers + np.roll(centers, 1, 0) + corners + np.roll(corners, -1, 1))
        heights[half::step, ::step] = draw(centers + np.roll(centers, 1, 1) + corners + np.roll(corners, -1, 0))
        step, reach = half, reach / decay**2
    risen = heights - heights.min()
    scaled: Pixels = risen / risen.max()
    return scaled
