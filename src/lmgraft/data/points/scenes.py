"""An object on a floor among clutter, with a truth for each point: drawn, the same for the same object."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from lmgraft.data.points.meshes import Array

_SHARE_OF_FLOOR, _SHARE_OF_CLUTTER = 0.25, 0.2
_PIECES = 4
_UP = 2  # the axis that points up


def scene_of(cloud: Array, name: str) -> npt.NDArray[np.float32]:
    """(n, 4): points of an object, a floor under it, boxes and balls beside it; the last column is 1 for the object.

    Args:
        cloud: (n, 3) in the unit sphere; the scene has as many points.
        name: Of the object; it decides every draw.
    """
    draw = np.random.Generator(
        np.random.Philox(int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little"))
    )
    count = len(cloud)
    floor, clutter = round(_SHARE_OF_FLOOR * count), round(_SHARE_OF_CLUTTER * count)
    kept = cloud[draw.permutation(count)[: count - floor - clutter]].astype(np.float64)
    ground = cloud[:, _UP].min()
    level = np.column_stack([draw.uniform(-1.6, 1.6, (floor, 2)), np.full(floor, ground)])
    parts = [kept, level]
    sizes = np.diff(np.linspace(0, clutter, _PIECES + 1).astype(int))
    for number, size in enumerate(sizes):
        angle, far, radius = draw.uniform(0, 2 * np.pi), draw.uniform(1.0, 1.5), draw.uniform(0.1, 0.3)
        piece = _box(draw, size) if number % 2 else _ball(draw, size)
        parts.append(piece * radius + [far * np.cos(angle), far * np.sin(angle), ground + radius])
    whole = np.concatenate(parts)
    truth = np.zeros((count, 1))
    truth[: len(kept)] = 1
    return np.concatenate([whole, truth], 1)[draw.permutation(count)].astype(np.float32)


def _ball(draw: np.random.Generator, size: int) -> npt.NDArray[np.float64]:
    ways = draw.standard_normal((size, 3))
    ball: npt.NDArray[np.float64] = ways / np.linalg.norm(ways, axis=1, keepdims=True)
    return ball


def _box(draw: np.random.Generator, size: int) -> npt.NDArray[np.float64]:
    points = draw.uniform(-1, 1, (size, 3))
    points[np.arange(size), draw.integers(0, 3, size)] = draw.choice([-1.0, 1.0], size)
    return points
