"""One traffic scene as it was recorded: tracks and lanes in metres of a map, float64. Readers make it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

RATE = 10
"""Steps a second, of every data set."""


class UnreadableSceneError(Exception):
    """A scene that cannot be used, and why; the data set counts it."""


@dataclass(frozen=True)
class LaneMap:
    """Centrelines one after the other."""

    points: Array
    """(N, 2) metres."""
    starts: Index
    """(L + 1,): lane i has the points from starts[i] to starts[i + 1], at least two."""
    attributes: Index
    """(L, 3), as `scenes.LANE_ATTRIBUTES`."""
    _cut: dict[tuple[float, int], tuple[Array, Index, Array]] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, lane: int) -> Array:
        return self.points[self.starts[lane] : self.starts[lane + 1]]

    def cut(self, length: float, count: int) -> tuple[Array, Index, Array]:
        """All lanes in pieces of at most `length` metres and `count` points; worked out once.

        Returns:
            Pieces (K, count, 2), their attributes (K, 3), and least x and y, greatest x and y of each (K, 4).
        """
        if (length, count) not in self._cut:
            cut = [cut_lane(self[lane], length, count) for lane in range(len(self))]
            pieces = np.concatenate([np.zeros((0, count, 2)), *cut])
            attributes = np.repeat(self.attributes, [len(one) for one in cut], axis=0)
            boxes = np.concatenate([pieces.min(1), pieces.max(1)], 1)
            self._cut[length, count] = pieces, attributes, boxes
        return self._cut[length, count]

    @classmethod
    def of(cls, lanes: list[Array], attributes: list[tuple[int, int, int]]) -> LaneMap:
        """From one (n, 2) array and three attributes a lane; lanes of fewer than two points are left out."""
        kept = [i for i, lane in enumerate(lanes) if len(lane) > 1]
        starts = np.cumsum([0, *(len(lanes[i]) for i in kept)], dtype=np.int64)
        points = np.concatenate([lanes[i] for i in kept]) if kept else np.zeros((0, 2))
        return cls(points, starts, np.array([attributes[i] for i in kept], np.int64).reshape(-1, 3))


def cut_lane(lane: Array, length: float, count: int) -> Array:
    """A centreline (n, 2) in equal pieces (k, count, 2) of points evenly along it; the next begins where one ends."""
    along = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(lane, axis=0).T))])
    parts = max(1, int(np.ceil(along[-1] / length - 1e-6)))
    at = np.linspace(0, along[-1], parts * (count - 1) + 1)
    points = np.stack([np.interp(at, along, lane[:, axis]) for axis in (0, 1)], 1)
    pieces: Array = points[np.arange(parts)[:, None] * (count - 1) + np.arange(count)]
    return pieces


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A scene: A tracks over `seen` steps that a model may see and those to come, at 10 Hz."""

    ids: tuple[str, ...]
    """Of the tracks."""
    types: Index
    """(A,), as `scenes.AGENT_TYPES`."""
    positions: Array
    """(A, steps, 2) metres; whatever where not valid."""
    valid: Mask
    """(A, steps)."""
    seen: int
    """Steps that a model may see; the last of them is the present."""
    targets: tuple[int, ...]
    """Rows of the tracks whose future is asked for."""
    lanes: LaneMap
    group: str
    """What the scene shares with others that are not independent of it: the drive, the minute of a simulation."""
    headings: Array | None = None
    """(A,) radians at the present, where they were recorded; NaN where not."""
    interacts: Mapping[int, int | None] = field(default_factory=dict)
    """Target -> the row of the track that it interacts with, None for no one; a target without entry: not known."""

    def __post_init__(self) -> None:
        if not self.targets:
            raise UnreadableSceneError("no track is a target")
        if not np.isfinite(self.positions[self.valid]).all():
            bad = int((~np.isfinite(self.positions).all(-1) & self.valid).any(1).argmax())
            raise UnreadableSceneError(f"positions of track {self.ids[bad]} are not finite")
        if not len(self.lanes):
            raise UnreadableSceneError("its map has no lanes")
        if not np.isfinite(self.lanes.points).all():
            raise UnreadableSceneError("its map has lanes that are not finite")


def by_track(row: Index, step: Index, values: Array, shape: tuple[int, int], ids: Sequence[str]) -> tuple[Array, Mask]:
    """A table's rows as tracks over steps: values (A, steps, ...), and where there are any (A, steps).

    Args:
        row: (N,) the track of each row of the table.
        step: (N,)
        values: (N, ...)
        shape: A and steps.
        ids: Of the tracks, for the error.

    Raises:
        UnreadableSceneError: If two rows of a track and step have different values.
    """
    out, valid = np.zeros((*shape, *values.shape[1:])), np.zeros(shape, bool)
    out[row, step], valid[row, step] = values, True
    differ = (out[row, step] != values) & ~np.isnan(values)
    if differ.any():
        first = int(np.flatnonzero(differ.reshape(len(values), -1).any(1))[0])
        raise UnreadableSceneError(f"track {ids[row[first]]} is in two places at step {step[first]}")
    return out, valid


def check_times(seconds: Array) -> None:
    """Refuse steps that are not a tenth of a second apart; recorders jitter by up to half of that.

    Args:
        seconds: When the steps were, in order.

    Raises:
        UnreadableSceneError: If they are not.
    """
    gaps = np.diff(seconds) * RATE
    if len(gaps) and (not np.isfinite(gaps).all() or gaps.min() < 0.5 or gaps.max() > 1.5):
        raise UnreadableSceneError(f"steps are {gaps.min() / RATE:.3f} to {gaps.max() / RATE:.3f} s apart, not 0.1 s")
