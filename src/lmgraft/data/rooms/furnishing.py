"""Drawn rooms: a floor, walls, and pieces of furniture that do not overlap; functions of the random numbers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lmgraft.data.points.meshes import Array
from lmgraft.data.rooms.pieces import Colours, Piece

FEWEST, MOST = 3, 8
"""Objects of a room."""
PAINTS: dict[str, tuple[int, int, int]] = {
    "red": (200, 40, 40), "green": (50, 150, 60), "blue": (45, 75, 190), "yellow": (225, 200, 50),
    "white": (240, 240, 238), "black": (32, 32, 34), "brown": (120, 75, 40), "purple": (130, 55, 150),
}  # fmt: skip
"""Colours that pieces are painted in; words for answers."""
_PAINTED = 0.7  # of the pieces that are the only ones of their label; others keep the colours of their materials
_SIDES = (4.0, 6.5)  # metres of a room
_HEIGHT = 2.3  # metres of its walls that are seen
_GAP = 0.35  # metres between boxes, and from boxes to walls
_TRIES = 60  # places tried for a piece
_TILT = 12.0  # degrees about a quarter turn
_FLOOR, _WALLS = 0.18, 0.12  # shares of the points
_REPEATED = (
    "armchair",
    "bookcase",
    "cabinet",
    "chair",
    "lamp",
    "plant",
    "table",
)  # labels of which a room may have several
_SEVERAL = 0.85  # of the rooms of more than 3 objects
_NOISE = 6.0  # of colours, standard deviation


@dataclass(frozen=True, eq=False)
class Placed:
    """A piece in a room."""

    piece: Piece
    paint: str | None
    """A key of `PAINTS`; None where it has the colours of its materials."""
    points: Array
    """(2048, 3) metres."""
    box: npt.NDArray[np.float64]
    """(6,) centre and size along the axes."""

    @property
    def label(self) -> str:
        return self.piece.label


@dataclass(frozen=True, eq=False)
class Layout:
    """A room's plan; the origin is its middle, on the floor."""

    sides: tuple[float, float]
    objects: Sequence[Placed]


def draw_layout(pieces: Mapping[str, Sequence[Piece]], rng: np.random.Generator) -> Layout:
    """A room with 3 to 8 objects, of which at most one label comes more than once; again until at least 3 find room.

    Args:
        pieces: Label -> what there is of it.
    """
    while True:
        sides = (float(rng.uniform(*_SIDES)), float(rng.uniform(*_SIDES)))
        placed: list[Placed] = []
        labels = _draw_labels(list(pieces), rng)
        for label, paint in zip(labels, _draw_paints(labels, rng), strict=True):
            of = pieces[label]
            one = _place(of[int(rng.integers(len(of)))], paint, sides, placed, rng)
            if one is not None:
                placed.append(one)
        if len(placed) >= FEWEST:
            return Layout(sides, placed)


def _draw_labels(labels: Sequence[str], rng: np.random.Generator) -> list[str]:
    """3 to 8 labels; from 4 on one of them mostly comes two or three times, but at least two others once."""
    count = int(rng.integers(FEWEST, MOST + 1))
    drawn = [labels[n] for n in rng.permutation(len(labels)).tolist()]
    repeated = [label for label in drawn if label in _REPEATED]
    if count == FEWEST or not repeated or rng.random() > _SEVERAL:
        return drawn[:count]
    times = min(int(rng.integers(2, 4)), count - 2)
    return [repeated[0]] * times + [label for label in drawn if label != repeated[0]][: count - times]


def _draw_paints(labels: Sequence[str], rng: np.random.Generator) -> list[str | None]:
    """Of each piece: what it is painted in; pieces of one label are all painted, each in another colour."""
    order = [list(PAINTS)[n] for n in rng.permutation(len(PAINTS)).tolist()]
    return [
        paint if labels.count(label) > 1 or rng.random() < _PAINTED else None
        for label, paint in zip(labels, order, strict=False)
    ]


def _place(
    piece: Piece, paint: str | None, sides: tuple[float, float], placed: Sequence[Placed], rng: np.random.Generator
) -> Placed | None:
    """The piece at a free place, turned by about some quarters; None where none is free."""
    angle = np.deg2rad(90 * int(rng.integers(4)) + rng.uniform(-_TILT, _TILT))
    turn = np.array([[np.cos(angle), np.sin(angle), 0], [-np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    points = piece.points.astype(np.float64) @ turn
    low, high = points.min(0), points.max(0)
    middle, size = (low + high) / 2, high - low
    free = np.array(sides) / 2 - size[:2] / 2 - _GAP / 2
    if (free <= 0).any():
        return None
    for _ in range(_TRIES):
        at = rng.uniform(-free, free)
        apart = [(np.abs(at - o.box[:2]) - (size[:2] + o.box[3:5]) / 2).max() >= _GAP for o in placed]
        if all(apart):
            moved = points - middle + [*at, middle[2]]
            box = np.array([*at, middle[2], *size])
            return Placed(piece, paint, moved.astype(np.float32), box)
    return None


def scan(layout: Layout, count: int, rng: np.random.Generator) -> tuple[Array, Colours, npt.NDArray[np.int8]]:
    """Points (count, 3) on all surfaces in random order, their colours (count, 3), and the object of each, -1 for none.

    An object has points in the proportion of the square root of its surface, so that small ones are seen as well.
    """
    floor, walls = round(_FLOOR * count), round(_WALLS * count)
    weights = np.sqrt([o.piece.area for o in layout.objects])
    ends = np.rint(np.cumsum([0, *weights]) / weights.sum() * (count - floor - walls)).astype(int)
    points, colours, of = [_on_floor(layout.sides, floor, rng), _on_walls(layout.sides, walls, rng)], [], []
    for size in (floor, walls):
        colours.append(np.tile(rng.uniform(90, 230) + rng.uniform(-25, 25, 3), (size, 1)))
        of.append(np.full(size, -1))
    for number, one in enumerate(layout.objects):
        size = ends[number + 1] - ends[number]
        chosen = rng.permutation(len(one.points))[:size]
        chosen = chosen if len(chosen) == size else rng.integers(len(one.points), size=size)
        points.append(one.points[chosen])
        colours.append(_painted(one)[chosen])
        of.append(np.full(size, number))
    order = rng.permutation(count)
    seen = np.concatenate(colours) + rng.normal(0, _NOISE, (count, 3))
    return (
        np.concatenate(points)[order].astype(np.float32),
        np.rint(seen[order]).clip(0, 255).astype(np.uint8),
        np.concatenate(of)[order].astype(np.int8),
    )


def _painted(one: Placed) -> npt.NDArray[np.float64]:
    """(2048, 3): the paint, a little darker where the materials are darker than their mean."""
    colours = one.piece.colours.astype(np.float64)
    if one.paint is None:
        return colours
    light = colours.mean(1, keepdims=True)
    shade = 1 + 0.25 * np.clip((light - light.mean()) / 128, -1, 1)
    painted: npt.NDArray[np.float64] = np.array(PAINTS[one.paint]) * shade
    return painted


def _on_floor(sides: tuple[float, float], count: int, rng: np.random.Generator) -> Array:
    half = np.array(sides) / 2
    return np.column_stack([rng.uniform(-half, half, (count, 2)), np.zeros(count)]).astype(np.float32)


def _on_walls(sides: tuple[float, float], count: int, rng: np.random.Generator) -> Array:
    half = np.array(sides) / 2
    at = rng.uniform(-half, half, (count, 2))
    axis = (rng.random(count) < sides[0] / sum(sides)).astype(int)  # the axis across the wall
    at[np.arange(count), axis] = half[axis] * rng.choice([-1, 1], count)
    return np.column_stack([at, rng.uniform(0, _HEIGHT, count)]).astype(np.float32)
