"""Any traffic scenes: forecasts that nothing was trained for, on the run's own test scenes and by its metrics."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from lmgraft.backbones.motion_baselines import ConstantVelocity, NearestNeighbours
from lmgraft.checkpoint.digest import json_digest
from lmgraft.data.items import spread_over
from lmgraft.data.motion.motion_data import MotionData
from lmgraft.errors import DataError
from lmgraft.studies.robustness.suite import Condition, Suite

_AT_A_TIME = 256


@dataclass(frozen=True, kw_only=True)
class MotionBaselines(Suite):
    """The model, constant velocity, and the nearest training histories, each on the same test scenes."""

    name = "motion-baselines"
    data_type = MotionData
    word = "baseline"
    whole = "baselines"

    steps: int = 5
    """Steps of the history whose mean displacement is the constant velocity."""
    neighbours: int = 20000
    """Training targets whose histories are known, evenly spread over all."""

    def __post_init__(self) -> None:
        if min(self.steps, self.neighbours) < 1:
            raise DataError(f"suite {self.name}: steps={self.steps} and neighbours={self.neighbours} are at least 1")

    def conditions(self, data: MotionData) -> list[Condition]:
        data.prepare_data()
        data.setup("test")
        known: dict[str, Any] = {"data": json_digest(data.fingerprint())}
        items, future = data.still("test"), data.framing.future
        nearest = lru_cache(1)(lambda: self._nearest(data))
        return [
            Condition(key="clean", items=items, identity=known),
            Condition(
                key=f"{self.name}/constant_velocity", items=items, identity=known | {"steps": self.steps},
                title="constant velocity", part="constant_velocity",
                wrap=lambda _: ConstantVelocity(future, self.steps),
            ),
            Condition(
                key=f"{self.name}/nearest_neighbours", items=items, identity=known | {"neighbours": self.neighbours},
                title="nearest training histories", part="nearest_neighbours", wrap=lambda _: nearest(),
            ),
        ]  # fmt: skip

    def _nearest(self, data: MotionData) -> nn.Module:
        items = data.still("train")
        chosen = spread_over(len(items), self.neighbours)
        parts = [items.batch(chosen[at : at + _AT_A_TIME]) for at in range(0, len(chosen), _AT_A_TIME)]
        histories, valid = (torch.cat([part[n][:, 0] for part in parts]) for n in range(2))
        return NearestNeighbours(histories, valid, torch.cat([part.future for part in parts]))

    def notes(self, data: MotionData) -> list[str]:
        return [
            "a baseline sees the target's own history alone and was not trained; constant velocity offers one "
            "trajectory also where six count"
        ]
