"""A recorded scene -> what is shown of it for one target: in the target's frame, the nearest agents and lanes.

All is worked out in float64, so that neither where a map has its origin nor how it is turned changes anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lmgraft.data.base import at_least_one
from lmgraft.data.motion.scenario import Array, Index, LaneMap, Mask, Scenario, UnreadableSceneError
from lmgraft.errors import DataError

Single = npt.NDArray[np.float32]

LEAST_HISTORY = 5
"""Steps in which a target must be seen, the present among them; half a second."""
LEAST_SEEN = 4
"""Steps in which another agent must be seen, as in mmTransformer's code."""
_MOVED = 2.0  # metres, over which a heading is taken
_STANDS = 0.5  # metres, below which positions say nothing of a heading


@dataclass(frozen=True, kw_only=True)
class Framing:
    """What is shown of a scene: the keys of every motion data set."""

    history: int = 20
    """Steps that are seen, the present being the last."""
    future: int = 30
    """Steps to come that are asked for."""
    stride: int = 1
    """Take every n-th step, counted from the present: 2 shows and asks for 5 a second."""
    agent_radius: float = 56.0
    """Metres around the target within which agents are shown, if they are seen at present; the default is
    mmTransformer's."""
    max_agents: int = 68
    """Most agents, the target among them; the nearest are kept."""
    lane_radius: float = 65.0
    """Metres, |x| + |y| in the target's frame, within which the box of a piece of lane must reach; mmTransformer's."""
    max_lanes: int = 248
    """Most pieces of lanes; the nearest are kept."""
    lane_length: float = 20.0
    """Metres of a piece of lane at most: a centreline is cut into equal pieces."""
    lane_points: int = 10
    """Points of a piece, evenly along it; Argoverse 1's lanes have as many."""

    def __post_init__(self) -> None:
        whole = ("history", "future", "stride", "max_agents", "max_lanes")
        at_least_one(**{name: getattr(self, name) for name in whole})
        for name in ("agent_radius", "lane_radius", "lane_length"):
            if not getattr(self, name) > 0:
                raise DataError(f"data.{name}={getattr(self, name)} must be more than 0")
        if self.lane_points < 2 or self.history < 2:
            raise DataError("data.lane_points and data.history must be at least 2")


class Framed(NamedTuple):
    """What is shown for one target, which is the first of the A agents."""

    agents: Single
    """(A, S, 2)."""
    agent_valid: Mask
    """(A, S)."""
    agent_types: npt.NDArray[np.uint8]
    """(A,)."""
    truth: Mask
    """(A,), whom the target interacts with."""
    known: bool
    """Whether `truth` is known."""
    lanes: Single
    """(L, P, 2)."""
    lane_attributes: npt.NDArray[np.uint8]
    """(L, 3)."""
    future: Single
    """(T, 2), NaN where the scene ends before, or the target is not seen."""
    pose: Array
    """(3,) x, y in metres and heading in radians of the target at present, on the map."""


def frame(scene: Scenario, target: int, framing: Framing, needs_future: bool = True) -> Framed:
    """What is shown of a scene for one target, a row of its tracks.

    Args:
        scene: As it was recorded.
        target: Which of its tracks.
        framing: What is shown.
        needs_future: Whether a future that has begun must be there to its end.

    Raises:
        UnreadableSceneError: If the target is not seen enough, or the scene is too short.
    """
    past, ahead = _steps(scene, framing)
    now = scene.seen - 1
    _check_target(scene, target)
    there = ahead < scene.positions.shape[1]
    there[there] = scene.valid[target, ahead[there]]
    if needs_future and scene.positions.shape[1] > scene.seen:
        _check_future(scene, target, ahead, there)
    origin = scene.positions[target, now]
    heading = heading_of(scene, target)
    cos, sin = np.cos(heading), np.sin(heading)
    turn = np.array([[cos, -sin], [sin, cos]])
    shown = _agents(scene, target, framing, past)
    valid = scene.valid[shown][:, past]
    agents = np.where(valid[..., None], (scene.positions[shown][:, past] - origin) @ turn, 0.0)
    future = np.full((framing.future, 2), np.nan)
    future[there] = (scene.positions[target, ahead[there]] - origin) @ turn
    lanes, attributes = _lanes(scene.lanes, origin, turn, framing)
    return Framed(
        agents.astype(np.float32),
        valid,
        scene.types[shown].astype(np.uint8),
        shown == (-1 if scene.interacts.get(target) is None else scene.interacts[target]),
        target in scene.interacts,
        lanes.astype(np.float32),
        attributes.astype(np.uint8),
        future.astype(np.float32),
        np.array([*origin, heading]),
    )


def _steps(scene: Scenario, framing: Framing) -> tuple[Index, Index]:
    """Columns of the steps that are shown and of those that are asked for."""
    past = scene.seen - 1 - framing.stride * np.arange(framing.history)[::-1]
    ahead = scene.seen - 1 + framing.stride * np.arange(1, framing.future + 1)
    if past[0] < 0:
        raise UnreadableSceneError(f"it has {scene.seen} steps to see, not {scene.seen - past[0]}")
    return past, ahead


def _check_target(scene: Scenario, target: int) -> None:
    seen = scene.valid[target, : scene.seen]
    if not seen[-1]:
        raise UnreadableSceneError(f"target {scene.ids[target]} is not seen at present")
    if seen.sum() < LEAST_HISTORY:
        raise UnreadableSceneError(
            f"target {scene.ids[target]} is seen in {seen.sum()} steps, and {LEAST_HISTORY} are needed"
        )


def _check_future(scene: Scenario, target: int, ahead: Index, there: Mask) -> None:
    steps, last = scene.positions.shape[1] - scene.seen, int(ahead[-1])
    if last >= steps + scene.seen:
        raise UnreadableSceneError(f"it has {steps} steps to come, not {last + 1 - scene.seen}")
    if not there.all():
        raise UnreadableSceneError(f"target {scene.ids[target]} is not seen in every step to come")


def heading_of(scene: Scenario, track: int) -> float:
    """Where a track is headed at present, in radians of the map.

    The direction from where it was when last at least 2 m away. One that moved less: the recorded heading; where there
    is none, the direction of what it moved, from half a metre on; else that of the nearest lane.
    """
    path = scene.positions[track, : scene.seen][scene.valid[track, : scene.seen]]
    moved = path[-1] - path
    far = np.hypot(*moved.T)
    before = np.flatnonzero(far >= _MOVED)
    if len(before):
        return float(np.arctan2(*moved[before[-1], ::-1]))
    if scene.headings is not None and np.isfinite(scene.headings[track]):
        return float(scene.headings[track])
    if far.max() >= _STANDS:
        return float(np.arctan2(*moved[far.argmax(), ::-1]))
    return _lane_heading(scene.lanes, path[-1])


def _lane_heading(lanes: LaneMap, place: Array) -> float:
    """The direction of the segment of a centreline that comes nearest to a place."""
    start, step = lanes.points[:-1], np.diff(lanes.points, axis=0)
    length = np.maximum((step**2).sum(1), 1e-12)
    along = np.clip(((place - start) * step).sum(1) / length, 0, 1)
    far = np.hypot(*(start + along[:, None] * step - place).T)
    far[lanes.starts[1:-1] - 1] = np.inf  # from the end of one lane to the start of the next
    far[~step.any(1)] = np.inf
    return float(np.arctan2(*step[far.argmin(), ::-1]))


def _agents(scene: Scenario, target: int, framing: Framing, past: Index) -> Index:
    """Rows of the tracks that are shown: the target, then the others, the nearest first."""
    now = scene.seen - 1
    far = np.hypot(*(scene.positions[:, now] - scene.positions[target, now]).T)
    least = min(LEAST_SEEN, len(past))
    near = scene.valid[:, now] & (far <= framing.agent_radius) & (scene.valid[:, past].sum(1) >= least)
    near[target] = False
    others = np.flatnonzero(near)
    others = others[np.argsort(far[others], kind="stable")][: framing.max_agents - 1]
    return np.concatenate([[target], others]).astype(np.int64)


def _lanes(lanes: LaneMap, origin: Array, turn: Array, framing: Framing) -> tuple[Array, Index]:
    """Pieces (L, P, 2) of the lanes around a target in its frame, the nearest first, and their attributes (L, 3)."""
    pieces, attributes, boxes = lanes.cut(framing.lane_length, framing.lane_points)
    reach = framing.lane_radius + framing.lane_length  # however the target's frame is turned
    near = ((boxes[:, :2] <= origin + reach) & (boxes[:, 2:] >= origin - reach)).all(1)
    pieces, attributes = (pieces[near] - origin) @ turn, attributes[near]
    outside = np.maximum(np.maximum(pieces.min(1), -pieces.max(1)), 0).sum(1)
    far = np.hypot(pieces[..., 0], pieces[..., 1]).min(1)
    kept = np.argsort(far, kind="stable")
    kept = kept[outside[kept] <= framing.lane_radius][: framing.max_lanes]
    return pieces[kept], attributes[kept]
