"""The seven corruptions of ModelNet-C in five severities (Ren, Pan and Liu, ICML 2022, arXiv 2202.03377).

They are defined for 1,024 points in the unit sphere; of clouds of other sizes as many points in proportion are dropped
and added. Draws are functions of (seed, corruption, severity, cloud).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from lmgraft.errors import DataError, RecipeError
from lmgraft.registry import suggest

VERSION = 1
SEVERITIES = (1, 2, 3, 4, 5)
_DEFINED_FOR = 1024
Cloud = npt.NDArray[np.float64]
Draw = np.random.Generator


def _scale(cloud: Cloud, severity: int, draw: Draw) -> Cloud:
    most = (1.6, 1.7, 1.8, 1.9, 2.0)[severity - 1]
    cloud = cloud * draw.uniform(1 / most, most, 3)
    cloud = cloud - cloud.mean(0)
    scaled: Cloud = cloud / max(np.linalg.norm(cloud, axis=1).max(), 1e-12)
    return scaled


def _jitter(cloud: Cloud, severity: int, draw: Draw) -> Cloud:
    return cloud + 0.01 * severity * draw.standard_normal(cloud.shape)


def _rotate(cloud: Cloud, severity: int, draw: Draw) -> Cloud:
    most = np.pi / 6 * severity / 5
    for axis, angle in enumerate(draw.uniform(-most, most, 3)):
        a, b = (other for other in range(3) if other != axis)
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        cloud = cloud @ turn
    return cloud


def _drop_global(cloud: Cloud, severity: int, draw: Draw) -> Cloud:
    kept = int(len(cloud) * (1 - (0.25, 0.375, 0.5, 0.625, 0.75)[severity - 1]))
    return cloud[draw.permutation(len(cloud))[:kept]]


def _drop_local(cloud: Cloud, severity: int, draw: Draw) -> Cloud:
    for size in _clusters(_in_proportion(100 * severity, cloud), draw):
        far = np.linalg.norm(cloud - cloud[draw.integers(len(cloud))], axis=1)
        cloud = cloud[np.sort(np.argsort(far, kind="stable")[size:])]
    return cloud


def _add_global(cloud: Cloud, severity: int, draw: Draw) -> Cloud:
    count = _in_proportion(10 * severity, cloud)
    ways = draw.standard_normal((count, 3))
    inside = ways / np.linalg.norm(ways, axis=1, keepdims=True) * np.cbrt(draw.random((count, 1)))
    return np.concatenate([cloud, inside])


def _add_local(cloud: Cloud, severity: int, draw: Draw) -> Cloud:
    parts = [cloud]
    centres = draw.permutation(len(cloud))
    for number, size in enumerate(_clusters(_in_proportion(100 * severity, cloud), draw)):
        added = cloud[centres[number]] + draw.uniform(0.075, 0.125) * draw.standard_normal((size, 3))
        parts.append(added / np.maximum(1, np.square(added).sum(1, keepdims=True)))  # into the unit sphere
    return np.concatenate(parts)


def _in_proportion(count: int, cloud: Cloud) -> int:
    return min(round(count * len(cloud) / _DEFINED_FOR), len(cloud) - 1)


def _clusters(total: int, draw: Draw) -> list[int]:
    """Sizes of one to seven clusters that have so many points together."""
    number = int(draw.integers(1, 8))
    return [int(size) for size in np.bincount(draw.integers(number, size=total), minlength=number)]


CORRUPTIONS: dict[str, Callable[[Cloud, int, Draw], Cloud]] = {
    "scale": _scale, "jitter": _jitter, "rotate": _rotate, "dropout_global": _drop_global,
    "dropout_local": _drop_local, "add_global": _add_global, "add_local": _add_local,
}  # fmt: skip
"""Name -> what it does to a cloud at a severity."""


def check_corruption(name: str) -> None:
    """Refuse an unknown name.

    Raises:
        RecipeError: It names the nearest ones.
    """
    if name not in CORRUPTIONS:
        raise RecipeError(f"there is no corruption {name!r} of clouds", suggest(name, CORRUPTIONS))


def corrupt(
    cloud: npt.NDArray[np.float32], name: str, severity: int, *, seed: int, index: int
) -> npt.NDArray[np.float32]:
    """The corrupted cloud; all clouds of one size have one size afterwards too.

    Args:
        cloud: (n, 3).
        name: A row of `CORRUPTIONS`.
        severity: 1 to 5.
        seed: Of the draws.
        index: The cloud's place in its source.
    """
    check_corruption(name)
    if severity not in SEVERITIES:
        raise DataError(f"severity {severity} of {name} is not one of 1 to 5")
    word = hashlib.blake2b(f"{seed}/{name}/{severity}/{index}".encode(), digest_size=8).digest()
    draw = np.random.Generator(np.random.Philox(int.from_bytes(word, "little")))
    return CORRUPTIONS[name](cloud.astype(np.float64), severity, draw).astype(np.float32)
