"""A room as it lies in files, brought to metres with z upwards, and how it is changed and shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from lmgraft.data.base import at_least_one
from lmgraft.data.points.meshes import Array, UnreadableCloudError
from lmgraft.errors import DataError

Index = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.float64]
Hidden = Literal["room", "situation", "situation_text", "pose", "question"]

MEAN_COLOUR = (109.8, 97.2, 83.8)
"""Of ScanNet's scans, as VoteNet and SQA3D have it; colours are divided by 256 after it is taken away."""
_FLOOR = 0.99  # percentile of heights, in percent, that is the floor, as VoteNet's call has it
_UNITS = {"metres": 1.0, "centimetres": 0.01, "millimetres": 0.001}
_LONGEST, _RANGE = 5.0, (0.5, 100.0)  # metres of the longer side of a room: as it mostly is, and as it can be
_LEVELS = 20  # along an axis
_ENOUGH = 5000  # points to measure extents by
_CENTRAL = (0.5, 99.5)  # percentiles between which extents are measured
_UPRIGHT = {1: ((0, 2, 1), (1.0, -1.0, 1.0)), 0: ((2, 1, 0), (-1.0, 1.0, 1.0))}
"""Axis that points upwards in a file -> order and signs of its axes that turn it to z."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Room:
    """One room, in metres, z upwards."""

    points: Array
    """(n, 3)"""
    colours: npt.NDArray[np.uint8]
    """(n, 3) red, green, blue."""
    boxes: Array
    """(k, 6) centre and size along the axes."""
    classes: Index
    """(k,)"""
    ids: Index
    """(k,) what annotations call the objects."""
    point_box: Index
    """(n,) the box that each point belongs to, -1 for none."""
    frame: Numbers | None
    """(3, 4) what turns places of annotations into these; None where that is not known."""
    notes: tuple[str, ...] = ()
    """What is odd with its files, and was mended."""
    flat: int = 0
    """Boxes of its files that have no extent along an axis, or numbers that are none, and were left out."""


class Brought(NamedTuple):
    """What brings places in a file to metres with z upwards."""

    matrix: Numbers
    """(3, 3)"""
    note: str
    """What was recognised; empty for metres with z upwards."""


def recognise(points: Array, is_upright: bool = False) -> Brought:
    """Units and axes of a room's points, by their extents.

    Of metres, centimetres and millimetres those are taken that make the longest side most like 5 m. An axis points
    upwards in place of z where the room is lowest along it and it has the floor: a level of many points at its lower
    end, and none like it at its upper end, as walls have it. A room whose floor seems to be at the upper end of z is
    left, with a note. Feet and inches are not told from metres.

    Args:
        points: (n, 3)
        is_upright: z is known to point upwards, as in scans that were aligned: what looks otherwise is noted alone.

    Raises:
        UnreadableCloudError: If they are no room in any of these.
    """
    if len(points) == 0 or not np.isfinite(points).all():
        raise UnreadableCloudError("it has no points" if len(points) == 0 else "its points are not finite")
    points = points[:: max(1, len(points) // _ENOUGH)]
    low, high = np.percentile(points.astype(np.float64), _CENTRAL, axis=0)
    extents = high - low
    longest = float(extents.max())
    if not longest > 0:
        raise UnreadableCloudError("its points are one and the same")
    unit = min(_UNITS, key=lambda name: abs(np.log(longest * _UNITS[name] / _LONGEST)))
    size = " x ".join(f"{extent:.4g}" for extent in extents)
    if not _RANGE[0] <= longest * _UNITS[unit] <= _RANGE[1]:
        raise UnreadableCloudError(f"extents of {size} are no room's in metres, centimetres or millimetres")
    matrix, notes = np.eye(3) * _UNITS[unit], [] if unit == "metres" else [f"taken as {unit}"]
    up = int(extents.argmin())
    floors = [_floor_share(points[:, axis], low[axis], high[axis]) for axis in range(3)]
    if up == 2 and not floors[2] and _floor_share(-points[:, 2], -high[2], -low[2]):
        notes.append("left with z upwards, though what looks like a floor is at its upper end")
    if up != 2 and floors[up] > max(1.5 * floors[2], 0):
        if is_upright:
            notes.append(f"left with z upwards, though it looks like {'xy'[up]}")
        else:
            order, signs = _UPRIGHT[up]
            matrix = matrix[list(order)] * np.array(signs)[:, None]
            notes.append(f"with {'xy'[up]} upwards")
    return Brought(matrix, f"{' and '.join(notes)}, by its points" if notes else "")


def _floor_share(heights: Array, low: float, high: float) -> float:
    """The share of points on one level near the lower end of an axis; 0 where as much lies near the upper end."""
    if high <= low:
        return 0.0
    counts, _ = np.histogram(heights, bins=_LEVELS, range=(low, high))
    lowest, highest = counts[: _LEVELS // 5].max(), counts[-(_LEVELS // 5) :].max()
    return float(lowest / len(heights)) if lowest > 3 * highest else 0.0


def brought(points: Array, boxes: Array, by: Brought) -> tuple[Array, Array]:
    """Points (n, 3) and boxes (k, 6) in metres, z upwards."""
    if not by.note:
        return points, boxes
    return (points @ by.matrix.T).astype(np.float32), turned_boxes(boxes, by.matrix)


def turned_boxes(boxes: Array, matrix: Numbers) -> Array:
    """The smallest boxes along the axes around boxes (k, 6) that are multiplied by a matrix (3, 3)."""
    return np.concatenate([boxes[:, :3] @ matrix.T, boxes[:, 3:] @ np.abs(matrix).T], 1).astype(np.float32)


class Change(NamedTuple):
    """One draw of what training changes."""

    flip: tuple[bool, bool]
    """Along x, along y."""
    matrix: Numbers
    """(3, 3) of flips and rotation together."""
    turn: Numbers
    """(4,) the rotation's quaternion x, y, z, w."""
    shift: Numbers
    """(3,) metres."""


@dataclass(frozen=True, kw_only=True)
class RoomView:
    """How rooms are shown: the keys of all data of rooms, beside batch sizes."""

    points: int = 1024
    """Points of a room as the model sees it; a room of fewer shows some of them twice."""
    colour: bool = True
    """Whether points have their colour: three features."""
    height: bool = True
    """Whether points have their height above the floor: one feature."""
    given_objects: bool = False
    """Whether points also say which object they are of and its class, -1 where of none: two features, the last ones."""
    max_text_len: int = 100
    """Words of a situation or a question behind which it is cut."""
    hidden: tuple[Hidden, ...] = ()
    """What no question shows, in training and after: of "room", "situation" (its words, "situation_text", and the
    asker's "pose") and "question". A model that is trained without one of them says how much of the questions needs
    it."""
    redraw: bool = True
    """Whether training draws other points of a room each time; else it shows those of evaluation."""
    flip: bool = False
    """Mirror training's rooms along x, and along y, each every other time. Words are not changed with them, so that
    half of the rooms have their left and right exchanged."""
    turn: float = 5.0
    """Degrees up to which training turns rooms about each axis."""
    shift: float = 0.5
    """Metres up to which training moves rooms along each axis."""
    together: int = 1
    """Questions of a room that training asks in a row, of the same points and changes: a detector that learns computes
    the room once for all of them."""

    def __post_init__(self) -> None:
        at_least_one(points=self.points, max_text_len=self.max_text_len, together=self.together)
        if unknown := sorted(set(self.hidden) - set(get_args(Hidden))):
            raise DataError(f"data.hidden: {unknown[0]!r} is not known", f"of {', '.join(get_args(Hidden))}")
        if not (0 <= self.turn < 45 and self.shift >= 0):
            raise DataError(f"data.turn={self.turn} is not in [0, 45), or data.shift={self.shift} is negative")

    @property
    def num_features(self) -> int:
        """What a point has beside its place."""
        return 3 * self.colour + self.height + 2 * self.given_objects

    @property
    def changes(self) -> bool:
        """Whether training moves, turns or mirrors rooms."""
        return bool(self.flip or self.turn or self.shift)

    def change(self, drawn: Numbers) -> Change:
        """The change of eight uniform numbers (8,)."""
        flips = (self.flip and drawn[0] < 0.5, self.flip and drawn[1] < 0.5)
        angles = np.deg2rad(self.turn) * (2 * drawn[2:5] - 1)
        turn = np.array([0.0, 0.0, 0.0, 1.0])
        for axis, angle in enumerate(angles):
            one = np.zeros(4)
            one[axis], one[3] = np.sin(angle / 2), np.cos(angle / 2)
            turn = after(one, turn)
        signs = np.where([*flips, False], -1.0, 1.0)
        return Change(flips, rotation(turn) * signs, turn, self.shift * (2 * drawn[5:8] - 1))

    def features(self, points: Array, colours: npt.NDArray[np.uint8], floor: float) -> Array:
        """(n, F) colours and heights, of points that are not changed yet."""
        parts = [np.empty((len(points), 0), np.float64)]
        if self.colour:
            parts.append((colours - np.array(MEAN_COLOUR)) / 256)
        if self.height:
            parts.append(points[:, 2:].astype(np.float64) - floor)
        return np.concatenate(parts, 1).astype(np.float32)


def floor_of(points: Array) -> float:
    """Height of the floor of all points of a room, in metres."""
    return float(np.percentile(points[:, 2], _FLOOR))


def changed_boxes(boxes: Array, change: Change) -> Array:
    """Boxes (k, 6) after a change: the smallest ones along the axes around the turned ones."""
    moved = turned_boxes(boxes, change.matrix)
    moved[:, :3] += change.shift.astype(np.float32)
    return moved


def changed_pose(pose: Numbers, change: Change) -> Numbers:
    """A pose (7,), place and quaternion, after a change; what is left of the asker stays so in the mirrored room."""
    turn = pose[3:]
    if change.flip[0]:  # a mirror image of a rotation is one only together with the asker's own mirror image
        turn = after(turn * [1, -1, -1, 1], np.array([0.0, 0.0, 1.0, 0.0]))
    if change.flip[1]:
        turn = turn * [-1, 1, -1, 1]
    return np.concatenate([change.matrix @ pose[:3] + change.shift, after(change.turn, turn)])


def framed_pose(pose: Numbers, frame: Numbers | None) -> Numbers:
    """A pose (7,) of an annotation in the room's frame (3, 4), whose rotation is about z; NaN where that is unknown."""
    if frame is None:
        return np.full(7, np.nan)
    angle = np.arctan2(frame[1, 0], frame[0, 0])
    turn = after(np.array([0.0, 0.0, np.sin(angle / 2), np.cos(angle / 2)]), pose[3:])
    return np.concatenate([frame[:, :3] @ pose[:3] + frame[:, 3], turn])


def after(one: Numbers, other: Numbers) -> Numbers:
    """The quaternion (4,), x, y, z, w, of turning by `other` and then by `one`."""
    v, u, a, b = one[:3], other[:3], one[3], other[3]
    return np.array([*(a * u + b * v + np.cross(v, u)), a * b - v @ u])


def rotation(turn: Numbers) -> Numbers:
    """The matrix (3, 3) of a quaternion (4,) x, y, z, w of length 1."""
    x, y, z, w = turn
    return np.array([
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ])  # fmt: skip


def pose_of(place: tuple[float, float], degrees: float) -> Numbers:
    """The pose (7,) of someone at a place (x, y) on the floor who looks so many degrees from +x towards +y."""
    half = np.deg2rad(degrees - 180) / 2  # without a turn one looks along -x
    return np.array([*place, 0, 0, 0, np.sin(half), np.cos(half)])


def degrees_of(pose: Numbers) -> float:
    """Where someone with a pose (7,) looks, from above: degrees from +x towards +y."""
    x, y, _ = -rotation(pose[3:])[:, 0]
    return float(np.rad2deg(np.arctan2(y, x)))


def with_extent(boxes: Array) -> npt.NDArray[np.bool_]:
    """(k,) which boxes (k, 6) have an extent along each axis."""
    return np.asarray(np.isfinite(boxes).all(1) & (boxes[:, 3:6] > 0).all(1))


def rows_of(instances: Index, ids: Index) -> Index:
    """(n,) the row of `ids` (k,) that has the object of each point; -1 where none has."""
    rows = np.full(max(instances.max(initial=-1), ids.max(initial=-1)) + 2, -1)  # the last one is for no object
    rows[ids] = np.arange(len(ids))
    of: Index = rows[np.maximum(instances, -1)]
    return of
