"""Any traffic scenes: what a model of motion loses without the past, the others, or the lanes, and with noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lmgraft.data.draws import uniforms
from lmgraft.data.loader import Draw
from lmgraft.data.motion.motion_data import MotionData
from lmgraft.data.motion.scenario import RATE
from lmgraft.data.motion.scene_set import SceneSet, hide_first
from lmgraft.data.motion.scenes import Scenes
from lmgraft.errors import DataError
from lmgraft.studies.robustness.suites.changed import Change, TakenAway


def without_agents(items: SceneSet, draws: list[Draw], scenes: Scenes, seed: int) -> Scenes:
    """The target alone."""
    valid = scenes.agent_valid.clone()
    valid[:, 1:] = False
    return scenes._replace(agents=scenes.agents * valid[..., None], agent_valid=valid)


def without_lanes(items: SceneSet, draws: list[Draw], scenes: Scenes, seed: int) -> Scenes:
    """No lane."""
    nothing = torch.zeros_like(scenes.lane_attributes)
    return scenes._replace(
        lanes=torch.zeros_like(scenes.lanes), lane_valid=torch.zeros_like(scenes.lane_valid), lane_attributes=nothing
    )


def with_noise(scenes: Scenes, metres: float, seed: int) -> Scenes:
    """Every position of every agent displaced, each axis normally with a standard deviation of so many metres."""
    size, agents, steps, _ = scenes.agents.shape
    drawn = uniforms(seed, [0] * size, scenes.index.numpy(), agents * steps * 2).reshape(size, agents, steps, 2)
    far, angle = metres * np.sqrt(-2 * np.log1p(-drawn[..., 0])), 2 * np.pi * drawn[..., 1]  # Box and Muller
    moved = torch.from_numpy(np.stack([far * np.cos(angle), far * np.sin(angle)], -1)).float()
    return scenes._replace(agents=(scenes.agents + moved) * scenes.agent_valid[..., None])


@dataclass(frozen=True, kw_only=True)
class Motion(TakenAway):
    """Scenes with a history of one second, without other agents, without lanes, with noise on positions."""

    name = "motion"
    data_type = MotionData

    history: float = 1.0
    """Seconds that are left of the history where it is cut."""
    noise: float = 0.2
    """Standard deviation of the noise along each axis, in metres."""

    def __post_init__(self) -> None:
        if not (self.history > 0 and self.noise > 0):
            raise DataError(f"suite motion: history={self.history} and noise={self.noise} must be more than 0")

    def all_changes(self, data: MotionData) -> Mapping[str, tuple[str, Change]]:
        """Those whose strength is an option, and the others."""
        left = max(1, round(self.history * RATE / data.framing.stride))
        cut = max(0, data.framing.history - left)

        def short(items: SceneSet, draws: list[Draw], batch: Scenes, seed: int) -> Any:
            return hide_first(batch, torch.full((len(draws),), cut))

        def noisy(items: SceneSet, draws: list[Draw], batch: Scenes, seed: int) -> Any:
            return with_noise(batch, self.noise, seed)

        shorter: dict[str, tuple[str, Change]] = {"short_history": (f"{self.history:g} s of history", short)}
        return (shorter if cut else {}) | {
            "target_alone": ("without other agents", without_agents),
            "no_lanes": ("without lanes", without_lanes),
            "noise": (f"noise of {self.noise:g} m", noisy),
        }

    def notes(self, data: MotionData) -> list[str]:
        return ["a model that reads lanes and other agents loses in these conditions; one that does not, does not"]
