"""The scenes of one split, as training or as evaluation shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmgraft.data.draws import uniforms
from lmgraft.data.items import ItemSet
from lmgraft.data.loader import Draw
from lmgraft.data.motion.framing import Framed, Framing
from lmgraft.data.motion.scenes import LANE_ATTRIBUTES, Scenes
from lmgraft.data.motion.table import Table

_TURN = list(LANE_ATTRIBUTES).index("turn")
_MIRRORED = torch.tensor([0, 1, 3, 2])  # of the values of "turn"


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What training changes at random: functions of (seed, epoch, item)."""

    seed: int = 0
    flip: bool = True
    """Mirror every other scene left to right."""
    hide: int = 10
    """Hide up to so many of the first steps of all agents, each number as likely; never more than half of them."""


class SceneSet(ItemSet):
    """Some items of a table.

    Args:
        table: All items of the source.
        index: Which of them, in order; all can be shown.
        groups: (N,) which items of the table belong together.
        framing: How they were prepared.
        changes: What training changes; None shows them as they are.
    """

    def __init__(
        self, table: Table, index: Tensor, groups: Tensor, framing: Framing, changes: Changes | None = None
    ) -> None:
        self.table, self.framing, self.changes = table, framing, changes
        self.indices, self._all_groups = index, groups
        self.groups = groups[index]

    def place(self, index: int) -> str:
        return self.table.items[index].name

    def about(self, index: int) -> dict[str, Any]:
        """The scene, the target's track, and its frame: the forecast's origin on the map and which way is ahead."""
        x, y, heading = self.table[index].pose.tolist()
        origin = [round(x, 3), round(y, 3)]
        return {"file": self.place(index), "track": self.table.items[index].track, "origin": origin, "heading": heading}

    def changed_by(self, changes: Changes | None) -> SceneSet:
        """The same items, shown otherwise."""
        return SceneSet(self.table, self.indices, self._all_groups, self.framing, changes)

    def __getitems__(self, draws: list[Draw]) -> Scenes:
        index = self.indices[[draw.sample for draw in draws]]
        scenes = collate([self.table[i] for i in index.tolist()], self.framing, index, self._all_groups[index])
        if self.changes is None:
            return scenes
        drawn = uniforms(self.changes.seed, [draw.epoch for draw in draws], index.numpy(), 2)
        flipped = (
            torch.from_numpy(drawn[:, 0] < 0.5) if self.changes.flip else torch.zeros(len(index), dtype=torch.bool)
        )
        most = min(self.changes.hide, self.framing.history // 2)
        hidden = torch.from_numpy(np.floor(drawn[:, 1] * (most + 1)).astype(np.int64))
        return hide_first(mirror(scenes, flipped), hidden)


def collate(framed: Sequence[Framed], framing: Framing, index: Tensor, group: Tensor) -> Scenes:
    """A batch of items, padded to the most agents and lanes among them."""
    size, steps, points = len(framed), framing.history, framing.lane_points
    most = max((len(one.agents) for one in framed), default=1)
    lanes = max((len(one.lanes) for one in framed), default=0)
    out = Scenes(
        agents=torch.zeros(size, most, steps, 2),
        agent_valid=torch.zeros(size, most, steps, dtype=torch.bool),
        agent_types=torch.zeros(size, most, dtype=torch.int64),
        lanes=torch.zeros(size, lanes, points, 2),
        lane_valid=torch.zeros(size, lanes, points, dtype=torch.bool),
        lane_attributes=torch.zeros(size, lanes, len(LANE_ATTRIBUTES), dtype=torch.int64),
        future=torch.zeros(size, framing.future, 2),
        index=index,
        group=group,
        truth=torch.zeros(size, most, dtype=torch.bool),
        ignored=torch.ones(size, most, dtype=torch.bool),
    )
    for i, one in enumerate(framed):
        count, pieces = len(one.agents), len(one.lanes)
        for name in ("agents", "agent_valid", "agent_types", "truth"):
            getattr(out, name)[i, :count] = torch.from_numpy(getattr(one, name))
        for name in ("lanes", "lane_attributes"):
            getattr(out, name)[i, :pieces] = torch.from_numpy(getattr(one, name))
        out.lane_valid[i, :pieces] = True
        out.ignored[i, :count] = not one.known
        out.future[i] = torch.from_numpy(one.future)
    return out


def mirror(scenes: Scenes, which: Tensor) -> Scenes:
    """Some scenes of a batch left to right; `which` is (B,) bool."""
    sign = torch.ones(len(which), 2)
    sign[which, 1] = -1
    attributes = scenes.lane_attributes.clone()
    attributes[which, :, _TURN] = _MIRRORED[attributes[which][..., _TURN]]
    return scenes._replace(
        agents=scenes.agents * sign[:, None, None],
        lanes=scenes.lanes * sign[:, None, None],
        future=scenes.future * sign[:, None],
        lane_attributes=attributes,
    )


def hide_first(scenes: Scenes, steps: Tensor) -> Scenes:
    """A batch without the first steps of any agent; `steps` is (B,), and never reaches the present."""
    history = scenes.agents.shape[2]
    kept = torch.arange(history) >= steps.clamp(max=history - 1)[:, None, None]
    valid = scenes.agent_valid & kept
    return scenes._replace(agents=scenes.agents * valid[..., None], agent_valid=valid)
