"""Toy shapes, drawn when they are asked for: balls, boxes, tubes and discs. For debug recipes; they say nothing."""

from __future__ import annotations

from typing import Any

import numpy as np

from lmgraft.data.points.meshes import Array
from lmgraft.data.points.point_data import PointData, Source

_POINTS = 256


class ToyShapes(PointData):
    """Drawn shapes of four classes.

    Args:
        train_size: Training shapes.
        test_size: Test shapes, and as many that choose the epoch.
        options: See `PointData`.
    """

    name = "toy_shapes"
    class_names = ("ball", "box", "tube", "disc")

    def __init__(self, train_size: int = 64, test_size: int = 16, **options: Any) -> None:
        super().__init__(**options)
        self.sizes = {"train": train_size, "val": test_size, "test": test_size}

    def find(self) -> dict[str, Source]:
        starts = {"train": 0, "val": 1_000_000, "test": 2_000_000}
        return {split: _source(starts[split], size) for split, size in self.sizes.items()}


def _source(start: int, size: int) -> Source:
    return Source(
        labels=np.arange(size) % len(ToyShapes.class_names),
        load=lambda i: draw_shape(i % len(ToyShapes.class_names), start + i),
        names=[f"{start + i}" for i in range(size)],
        identity={"name": ToyShapes.name, "start": start},
    )


def draw_shape(kind: int, seed: int) -> Array:
    """256 points (256, 3) of a ball, box, tube or disc, stretched and noisy."""
    draw = np.random.Generator(np.random.Philox(seed))
    points = draw.standard_normal((_POINTS, 3))
    if kind == 0:
        points /= np.linalg.norm(points, axis=1, keepdims=True)
    elif kind == 1:
        points = draw.uniform(-1, 1, (_POINTS, 3))
        points[np.arange(_POINTS), draw.integers(0, 3, _POINTS)] = draw.choice([-1.0, 1.0], _POINTS)
    else:
        points[:, :2] /= np.linalg.norm(points[:, :2], axis=1, keepdims=True)
        if kind == 3:
            points[:, :2] *= np.sqrt(draw.random((_POINTS, 1)))
        points[:, 2] = draw.uniform(-1, 1, _POINTS) if kind == 2 else 0
    stretched = points * draw.uniform(0.7, 1.3, 3) + 0.02 * draw.standard_normal((_POINTS, 3))
    shape: Array = stretched.astype(np.float32)
    return shape
