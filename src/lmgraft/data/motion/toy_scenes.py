"""Toy scenes, drawn when asked for: cars near a crossing follow their lanes. For debug recipes; they say nothing."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from lmgraft.data.motion.motion_data import MotionData
from lmgraft.data.motion.scenario import RATE, Array, LaneMap, Scenario
from lmgraft.data.motion.scenes import AGENT_TYPES
from lmgraft.data.motion.table import Source

_TURNS = (0.0, 0.02, -0.02)  # of the lanes ahead, radians a metre: straight on, left, right
_LONG = 80.0  # metres of a lane
_GAP = 12.0  # metres between cars on a lane


class ToyScenes(MotionData):
    """Drawn scenes of five agents and five lanes, each with two targets.

    Args:
        train_size: Training scenes; items are twice as many.
        test_size: Test scenes, and as many that choose the epoch.
        options: See `MotionData`.
    """

    name = "toy_scenes"
    packages = ()

    def __init__(self, train_size: int = 32, test_size: int = 8, **options: Any) -> None:
        super().__init__(**options)
        self.sizes = {"train": train_size, "val": test_size, "test": test_size}

    def find(self) -> dict[str, Source]:
        starts = {"train": 0, "val": 1_000_000, "test": 2_000_000}
        return {split: self._source(starts[split], size) for split, size in self.sizes.items()}

    def _source(self, start: int, size: int) -> Source:
        framing = self.framing
        steps = framing.stride * framing.history, framing.stride * framing.future
        return Source(
            read=partial(draw_scene, seen=steps[0], ahead=steps[1]),
            keys=range(start, start + size),
            names=[str(number) for number in range(start, start + size)],
            identity={"name": self.name, "start": start},
        )


def draw_scene(seed: int, seen: int = 20, ahead: int = 30) -> Scenario:
    """A scene of three lanes from one start, two that cross them, four vehicles on lanes and a pedestrian."""
    draw = np.random.Generator(np.random.Philox(seed))
    place, angle = draw.uniform(-1e4, 1e4, 2), draw.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    along = np.linspace(0, _LONG, 20)
    lanes = [_bent(along, bend) for bend in _TURNS]
    lanes += [np.stack([np.full(20, side), along - _LONG / 2], 1) for side in (10.0, 14.0)]
    on = draw.integers(0, len(_TURNS), 2)
    times = np.arange(1 - seen, ahead + 1) / RATE
    speeds = draw.uniform(4, 9, 2)
    tracks = [
        _bent(20 + draw.uniform(0, 5) + speed * times, _TURNS[lane]) for speed, lane in zip(speeds, on, strict=True)
    ]
    tracks += [_bent(20 - _GAP + speeds[0] * times, _TURNS[on[0]])]
    tracks += [np.stack([np.full(len(times), 10.0), 6.0 * times - 5], 1)]
    tracks += [np.stack([15 + 1.2 * times, np.full(len(times), 6.0)], 1)]
    positions = np.stack(tracks) + draw.normal(0, 0.02, (len(tracks), len(times), 2))
    attributes = [(1, 1 + n, 1) for n in range(len(_TURNS))] + [(2, 1, 2)] * 2
    return Scenario(
        ids=tuple(f"{n}" for n in range(len(tracks))),
        types=np.array([AGENT_TYPES.index(kind) for kind in ("vehicle", "bus", "vehicle", "vehicle", "pedestrian")]),
        positions=positions @ turn + place,
        valid=np.ones(positions.shape[:2], bool),
        seen=seen,
        targets=(1, 2),
        lanes=LaneMap.of([lane @ turn + place for lane in lanes], attributes),
        group=f"{seed // 2}",
        interacts={1: None, 2: 0},
    )


def _bent(along: Array, bend: float) -> Array:
    """Places (n, 2) so many metres along a path from the origin that bends by so many radians a metre."""
    if bend == 0:
        return np.stack([along, np.zeros_like(along)], 1)
    return np.stack([np.sin(bend * along), 1 - np.cos(bend * along)], 1) / bend
