"""Forecasts that nothing was trained for: constant velocity, and what the nearest known histories went on to do."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lmgraft.backbones.scene_parts import Forecast, velocity


class ConstantVelocity(nn.Module):
    """The target goes on as it went: one trajectory (B, 1, T, 2).

    Args:
        future: Steps to come, T.
        steps: Of the history, from whose mean displacement the velocity is; those that are not seen are left out. The
            default, half a second at 10 Hz, passes over the noise of a tracker and still sees a car brake.
    """

    def __init__(self, future: int, steps: int = 5) -> None:
        super().__init__()
        self.future, self.steps = future, steps

    def forward(self, agents: Tensor, agent_valid: Tensor, *others: Tensor) -> Forecast:
        path, mean = agents[:, 0], velocity(agents, agent_valid, self.steps)
        steps = torch.arange(1, self.future + 1, device=path.device, dtype=path.dtype)
        return Forecast((path[:, -1:] + mean[:, None] * steps[:, None])[:, None], path.new_zeros(len(path), 1))


class NearestNeighbours(nn.Module):
    """What the K known targets of the most similar histories did, in the target's frame: (B, K, T, 2).

    Histories are compared by the mean squared distance of the steps that both are seen at; the nearer, the more
    probable.

    Args:
        histories: (N, S, 2) in metres, each in its target's frame.
        valid: (N, S) bool.
        futures: (N, T, 2)
        count: K; all where fewer are known.
    """

    known: Tensor
    seen: Tensor
    futures: Tensor

    def __init__(self, histories: Tensor, valid: Tensor, futures: Tensor, count: int = 6) -> None:
        super().__init__()
        self.count = min(count, len(futures))
        seen = valid.float()
        path = histories * seen[..., None]
        self.register_buffer("known", _joined(path.square().sum(-1), seen, path), persistent=False)
        self.register_buffer("seen", seen, persistent=False)
        self.register_buffer("futures", futures, persistent=False)

    def forward(self, agents: Tensor, agent_valid: Tensor, *others: Tensor) -> Forecast:
        seen = agent_valid[:, 0].float()
        path = agents[:, 0] * seen[..., None]
        # |a - b|^2 = |a|^2 + |b|^2 - 2 a b, summed over steps that both have, as one matrix product.
        asked = _joined(seen, path.square().sum(-1), -2 * path)
        apart = asked @ self.known.T / (seen @ self.seen.T).clamp_min(1)
        nearest, index = apart.topk(self.count, largest=False)
        return Forecast(self.futures[index], -nearest)


def _joined(first: Tensor, second: Tensor, path: Tensor) -> Tensor:
    return torch.cat([first, second, path.flatten(1)], 1)
