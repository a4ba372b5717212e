"""Forecasting where an agent in traffic goes: several trajectories with beliefs, scored as Argoverse scores them."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lmgraft.backbones.scene_parts import Forecast, ForecastWithNodes, Nodes
from lmgraft.contracts import Metric
from lmgraft.data.base import Data
from lmgraft.data.motion.motion_data import MotionData
from lmgraft.data.motion.scenes import Scenes
from lmgraft.errors import RecipeError
from lmgraft.tasks.base import MakeOptimizer, MakeSchedule, Task

MISSED = 2.0
"""Metres; a forecast that ends farther from the truth is a miss."""
COUNTS = (6, 1)
"""K: how many of the most probable trajectories count."""


def _metres(name: str, what: str, k: int, margin: float) -> Metric:
    return Metric(
        name=f"{name}{k}", title=f"test {what}, K={k}", higher_is_better=False, scale=1, unit="m", difference_unit="m",
        margin=margin, low=0.0, digits=3,
    )  # fmt: skip


def _missed(k: int) -> Metric:
    return Metric(
        name=f"mr{k}", title=f"test miss rate, K={k}", higher_is_better=False, scale=100, unit="%",
        difference_unit="points", margin=0.01, low=0.0, high=1.0, largest_margin=0.1,
    )  # fmt: skip


MINFDE6, MINFDE1 = (_metres("minfde", "minFDE", k, 0.03) for k in COUNTS)
MINADE6, MINADE1 = (_metres("minade", "minADE", k, 0.02) for k in COUNTS)
BRIER_MINFDE6, BRIER_MINFDE1 = (_metres("brier_minfde", "brier-minFDE", k, 0.03) for k in COUNTS)
MR6, MR1 = (_missed(k) for k in COUNTS)


class Scene(NamedTuple):
    """What a picture of a scene is drawn from; a batch of them, or one."""

    agents: Tensor
    agent_valid: Tensor
    lanes: Tensor
    lane_valid: Tensor
    future: Tensor


class Forecasting(Task):
    """A model that maps a scene to K trajectories of its target with logits.

    Of the K most probable trajectories, that counts which ends nearest the truth: minFDE is its error at the end,
    minADE its mean error, a miss is an end more than 2 m away, and brier-minFDE adds (1 - p)^2 of its belief p among
    all that the model gives. K is 6, or all of a model that gives fewer, and 1.

    Args:
        model: (agents, agent_valid, agent_types, lanes, lane_valid, lane_attributes), as `Scenes.seen`, -> what has
            `trajectories` (B, K, T, 2) in metres and `logits` (B, K), as `Forecast` has.
        data: The scenes.
        optimizer: Makes the optimiser from the model.
        schedule: Makes the step-wise schedule from optimiser and number of steps.
        confidence: "kl" teaches beliefs softmax(-distance at the end), as mmTransformer's code; "cross_entropy" the
            trajectory that ends nearest.
        confidence_weight: Of that loss beside the Huber loss of the trajectory that ends nearest.
        node_weight: Of node completion, where the model gives it; the paper's alpha.

    Raises:
        RecipeError: If an option cannot be.
    """

    data_type: ClassVar[type[Data]] = MotionData  # type: ignore[type-abstract]

    def __init__(
        self,
        model: Any,
        data: MotionData,
        optimizer: MakeOptimizer,
        schedule: MakeSchedule,
        *,
        confidence: Literal["kl", "cross_entropy"] = "kl",
        confidence_weight: float = 1.0,
        node_weight: float = 1.0,
    ) -> None:
        super().__init__(model, data, optimizer, schedule)
        if confidence not in ("kl", "cross_entropy"):
            raise RecipeError(f"task.confidence={confidence!r} is neither 'kl' nor 'cross_entropy'")
        if min(confidence_weight, node_weight) < 0:
            raise RecipeError(
                f"task.confidence_weight={confidence_weight}, task.node_weight={node_weight}", "none is negative"
            )
        self.confidence, self.confidence_weight, self.node_weight = confidence, confidence_weight, node_weight

    @classmethod
    def metrics(cls, data: Data | None = None) -> tuple[Metric, ...]:
        return (MINFDE6, MINADE6, MR6, BRIER_MINFDE6, MINFDE1, MINADE1, MR1, BRIER_MINFDE1)

    def inputs(self, batch: Scenes) -> tuple[Tensor, ...]:
        return batch.seen

    def shown(self, batch: Scenes) -> Scene:
        return Scene(batch.agents, batch.agent_valid, batch.lanes, batch.lane_valid, batch.future)

    def loss(self, out: Forecast | ForecastWithNodes, batch: Scenes) -> Tensor:
        """Winner takes all: Huber of the trajectory that ends nearest, the beliefs, and node completion."""
        trajectories, logits = out.trajectories.float(), out.logits.float()
        ends = distances(trajectories, batch.future)[..., -1].detach()
        nearest = ends.argmin(1)
        loss = F.huber_loss(_take(trajectories, nearest), batch.future)
        if self.confidence == "kl":
            beliefs = F.kl_div(logits.log_softmax(1), (-ends).softmax(1), reduction="batchmean")
        else:
            beliefs = F.cross_entropy(logits, nearest)
        loss = loss + self.confidence_weight * beliefs
        nodes: Nodes | None = getattr(out, "nodes", None)
        if nodes is None:
            return loss
        # What is wanted stays: were it taught as well, tokens that are all alike would meet it.
        missed = F.huber_loss(nodes.completed.float(), nodes.wanted.detach().float(), reduction="none").mean(-1)
        of_nodes: Tensor = (missed * nodes.hidden).sum() / nodes.hidden.sum().clamp_min(1)
        return loss + self.node_weight * of_nodes

    def score(self, out: Forecast, batch: Scenes) -> dict[str, Tensor]:
        """The metrics of each target, and the number of its type."""
        columns: dict[str, Tensor] = {}
        for k in COUNTS:
            of_k = errors(out.trajectories.float(), out.logits.float(), batch.future, k)
            columns |= {f"{name}{k}": column for name, column in of_k.items()}
        return columns | {"by_agent_type": batch.agent_types[:, 0].int()}

    def targets(self, batch: Scenes) -> Tensor:
        """Where each target ends, (B, 2) in metres."""
        return batch.future[:, -1]

    def predict(self, out: Forecast, batch: Scenes) -> list[dict[str, Any]]:
        """Each trajectory with its belief, the most probable first, in metres in the target's frame."""
        beliefs, order = out.logits.float().softmax(1).sort(dim=1, descending=True, stable=True)
        ordered = out.trajectories.float().gather(1, order[..., None, None].expand_as(out.trajectories))
        rounded = [[[[round(x, 3) for x in p] for p in t] for t in of] for of in ordered.tolist()]
        return [
            {"ends": [t[-1] for t in of], "probabilities": [round(p, 6) for p in ps], "trajectories": of}
            for of, ps in zip(rounded, beliefs.tolist(), strict=True)
        ]


def distances(trajectories: Tensor, future: Tensor) -> Tensor:
    """(B, K, T): how far each trajectory (B, K, T, 2) is from the truth (B, T, 2) at each step, in metres."""
    off: Tensor = torch.linalg.vector_norm(trajectories - future[:, None], dim=-1)
    return off


def errors(trajectories: Tensor, logits: Tensor, future: Tensor, k: int) -> dict[str, Tensor]:
    """Argoverse's metrics of each target, (B,): "minfde", "minade", "mr" and "brier_minfde".

    Args:
        trajectories: (B, M, T, 2), of which the k most probable count; of equally probable ones the first.
        logits: (B, M)
        future: (B, T, 2)
        k: Above 0; all count where there are fewer.
    """
    beliefs, order = logits.softmax(1).sort(dim=1, descending=True, stable=True)
    off = distances(trajectories, future)
    off = off.gather(1, order[:, :k, None].expand(-1, -1, off.shape[2]))
    minfde, best = off[..., -1].min(1)
    belief = beliefs[:, :k].gather(1, best[:, None])[:, 0]
    return {
        "minfde": minfde,
        "minade": _take(off, best).mean(1),
        "mr": (minfde > MISSED).float(),
        "brier_minfde": minfde + (1 - belief).square(),
    }


def _take(of_modes: Tensor, mode: Tensor) -> Tensor:
    """(B, K, ...) -> (B, ...), the one of each item."""
    return of_modes[torch.arange(len(mode), device=mode.device), mode]
