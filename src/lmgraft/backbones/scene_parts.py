"""What encoders of traffic scenes share: what they return, a scene as vectors, polylines as tokens, where tokens lie.

A scene comes as its agents' places, which of these are valid, the agents' types, and the same of lanes: what
`lmgraft.data.motion.scenes.Scenes.seen` holds. The target is the first agent, at the origin.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmgraft.backbones.refusals import construct
from lmgraft.errors import HostError

AGENT_TYPES, LANE_ATTRIBUTES = 6, (3, 4, 3)
"""How many types of agents there are, and how many values each attribute of a lane has."""
AGENT_WIDTH, LANE_WIDTH = 5 + AGENT_TYPES, 4 + sum(LANE_ATTRIBUTES)
"""Widths of the vectors that `agent_vectors` and `lane_vectors` make."""
VARYING: tuple[Mapping[int, str], ...] = ({1: "agents"},) * 3 + ({1: "lanes"},) * 3
"""Axes of a scene's six tensors, beside the batch, whose size differs from scene to scene."""

Seen = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""agents (B, A, S, 2), agent_valid (B, A, S), agent_types (B, A), lanes (B, L, P, 2), lane_valid (B, L, P),
lane_attributes (B, L, 3)."""


class Nodes(NamedTuple):
    """What node completion says of each token, and what it was to say."""

    completed: Tensor
    """(B, N, V)"""
    wanted: Tensor
    """(B, N, V)"""
    hidden: Tensor
    """(B, N) bool, the tokens that were hidden from the model: these count."""


class Forecast(NamedTuple):
    """Where a target may go: K trajectories of T steps, and how probable each is."""

    trajectories: Tensor
    """(B, K, T, 2), in metres in the target's frame."""
    logits: Tensor
    """(B, K)"""


class ForecastWithNodes(NamedTuple):
    """A `Forecast` in training with node completion."""

    trajectories: Tensor
    logits: Tensor
    nodes: Nodes


def check_start(from_velocity: int, coordinate_scale: float, history: int) -> None:
    """Refuse settings of encoders that cannot be.

    Raises:
        HostError: Naming the key.
    """
    if not (isinstance(from_velocity, int) and 0 <= from_velocity < history):
        raise HostError(
            f"backbone.kwargs.from_velocity={from_velocity} of {history} steps of history", f"0 to {history - 1} can be"
        )
    if not coordinate_scale > 0:
        raise HostError(f"backbone.kwargs.coordinate_scale={coordinate_scale}", "give metres, above 0")


def scaled(seen: Seen, scale: float) -> Seen:
    """A scene whose places are in units of `scale` metres."""
    agents, agent_valid, types, lanes, lane_valid, attributes = seen
    return agents / scale, agent_valid, types, lanes / scale, lane_valid, attributes


def check_scene(seen: Seen, history: int) -> None:
    """Refuse what is no scene, or one of another number of steps than a model was made for.

    Raises:
        HostError: Naming the shapes.
    """
    agents, lanes = seen[0], seen[3]
    if agents.dim() != 4 or not agents.shape[1] or lanes.dim() != 4 or agents.shape[2] != history or lanes.shape[2] < 2:
        raise HostError(
            f"agents {tuple(agents.shape)} and lanes {tuple(lanes.shape)}",
            f"this model takes agents (B, A, {history}, 2), the target first, and lanes (B, L, P, 2) of two points or "
            "more",
        )


def agent_vectors(agents: Tensor, valid: Tensor, types: Tensor) -> tuple[Tensor, Tensor]:
    """Each agent's ways to a step from where it was seen before: (B, A, S - 1, `AGENT_WIDTH`), and which there are.

    Of a way: where it starts and ends, when it ends (-1 at the first step, 0 at the last), the agent's type as 0 and 1.
    """
    before = _seen_before(valid)
    starts = agents.gather(2, before.clamp_min(0)[..., None].expand(-1, -1, -1, 2))
    ends = torch.cat([starts, agents[:, :, 1:]], -1)
    steps = agents.shape[2] - 1
    time = torch.arange(1 - steps, 1, device=agents.device, dtype=agents.dtype) / steps
    kind = _one_hot(types, AGENT_TYPES, agents)[:, :, None].expand(-1, -1, steps, -1)
    time = time[:, None].expand(*ends.shape[:3], 1)
    return torch.cat([ends, time, kind], -1), valid[:, :, 1:] & (before >= 0)


def _seen_before(valid: Tensor) -> Tensor:
    """(B, A, S) bool to (B, A, S - 1): of each step but the first the last one before it that is seen, -1 for none."""
    steps = torch.arange(valid.shape[2], device=valid.device)
    earlier = valid[:, :, None, :] & (steps < steps[1:, None])
    return torch.where(earlier, steps, -1).amax(-1)


def lane_vectors(lanes: Tensor, valid: Tensor, attributes: Tensor) -> tuple[Tensor, Tensor]:
    """Each lane's pieces: (B, L, P - 1, `LANE_WIDTH`), where they start and end, and the attributes as 0 and 1."""
    ends = torch.cat([lanes[:, :, :-1], lanes[:, :, 1:]], -1)
    known = [_one_hot(attributes[..., i], count, lanes) for i, count in enumerate(LANE_ATTRIBUTES)]
    of_lane = torch.cat(known, -1)[:, :, None].expand(-1, -1, lanes.shape[2] - 1, -1)
    return torch.cat([ends, of_lane], -1), valid[:, :, :-1] & valid[:, :, 1:]


def _one_hot(numbers: Tensor, count: int, like: Tensor) -> Tensor:
    return (numbers[..., None] == torch.arange(count, device=numbers.device)).to(like.dtype)


class Subgraph(nn.Module):
    """Polylines to one token each: at each layer a vector meets the maximum over its polyline (VectorNet, Eq. 2 and 3).

    Args:
        width: Of a vector.
        hidden: Of a layer; a token has twice as much.
        layers: How many.
    """

    def __init__(self, width: int, hidden: int, layers: int) -> None:
        super().__init__()
        widths = [width] + [2 * hidden] * (layers - 1)
        self.layers = nn.ModuleList(unit(before, hidden) for before in widths)

    def forward(self, vectors: Tensor, seen: Tensor) -> Tensor:
        """(B, N, M, width) and (B, N, M) bool to (B, N, 2 hidden); 0 for a polyline of which nothing is seen."""
        layers: Any = self.layers
        x: Tensor = layers[0](vectors)
        for linear, norm, relu in layers[1:]:
            of_vector, of_maximum = linear.weight.chunk(2, 1)
            whole = F.linear(_maximum(x, seen), of_maximum)  # one vector a polyline is multiplied once, not M times
            x = relu(norm(F.linear(x, of_vector, linear.bias) + whole[:, :, None]))
        # The maximum of vectors that the maximum is joined to is that twice.
        return _maximum(x, seen).repeat(1, 1, 2)


def _maximum(vectors: Tensor, seen: Tensor) -> Tensor:
    # Behind a ReLU nothing is below 0, so what is not seen never is the maximum.
    return vectors.masked_fill(~seen[..., None], 0.0).amax(2)


def unit(width: int, out: int) -> nn.Sequential:
    """A linear map, a layer norm and a ReLU."""
    return nn.Sequential(nn.Linear(width, out), nn.LayerNorm(out), nn.ReLU())


def last_places(agents: Tensor, valid: Tensor) -> Tensor:
    """Where each agent is seen last: (B, A, 2); 0 where it never is."""
    steps = torch.arange(1, agents.shape[2] + 1, device=agents.device)
    last = (valid * steps).argmax(-1)
    places = agents.gather(2, last[..., None, None].expand(-1, -1, 1, 2))[:, :, 0]
    return places.masked_fill(~valid.any(-1, keepdim=True), 0.0)


def velocity(agents: Tensor, valid: Tensor, steps: int) -> Tensor:
    """The target's mean displacement between the first and the last time that it is seen in its last `steps` ways:
    (B, 2), in metres a step; 0 where it is seen but once."""
    path, seen = agents[:, 0, -steps - 1 :], valid[:, 0, -steps - 1 :]
    at = torch.arange(steps + 1, device=seen.device)
    first = torch.where(seen, at, steps).amin(1, keepdim=True)
    last = torch.where(seen, at, 0).amax(1, keepdim=True)
    ends = [path.gather(1, one[..., None].expand(-1, -1, 2))[:, 0] for one in (first, last)]
    moved = (ends[1] - ends[0]) / (last - first).clamp_min(1)
    return torch.where(last > first, moved, 0.0)


def padding(agents_seen: Tensor, lanes_seen: Tensor) -> Tensor:
    """(B, A + L) bool, True for agents and lanes of which no vector is seen; the target is there in any case."""
    seen = torch.cat([agents_seen.any(-1), lanes_seen.any(-1)], 1)
    target = torch.arange(seen.shape[1], device=seen.device) == 0
    return ~(seen | target)


def places(model: Any, args: tuple[Any, ...]) -> Tensor:
    """Where agents (at their last step) and lanes (the mean of their points) lie: (B, A + L, 2), NaN for padding.

    Args:
        model: Not used: all encoders of scenes have these tokens.
        args: Of the model's call.
    """
    agents, agent_valid, _, lanes, lane_valid, _ = args
    count = lane_valid.sum(-1, keepdim=True)
    centres = (lanes * lane_valid[..., None]).sum(2) / count  # 0 / 0 is NaN
    last = last_places(agents, agent_valid).masked_fill(~agent_valid.any(-1, keepdim=True), torch.nan)
    return torch.cat([last, centres], 1)


def token_shares(model: Any, args: tuple[Any, ...], truth: Tensor) -> Tensor:
    """Whether each agent is one of those that are meant: (B, A + L), 0 for lanes, NaN for the target and padding.

    Args:
        model: Not used.
        args: Of the model's call.
        truth: (B, A) bool.
    """
    _, agent_valid, _, _, lane_valid, _ = args
    of_agents = truth.float().masked_fill(~agent_valid.any(-1), torch.nan)
    of_agents[:, 0] = torch.nan
    of_lanes = truth.new_zeros(lane_valid.shape[:2], dtype=torch.float32)
    return torch.cat([of_agents, of_lanes.masked_fill(~lane_valid.any(-1), torch.nan)], 1)


def padding_of_call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Which tokens are padded: the second argument of each layer that a graft can lie at."""
    padded: Tensor = args[1]
    return padded


def made(cls: type[Any], name: str, expected: str, kwargs: Mapping[str, Any]) -> Any:
    """A model of a class, for its factory.

    Args:
        cls: The class.
        name: As the recipe has it; only `expected` is known.
        expected: The name.
        kwargs: The class's arguments; there are no weights of others, so `pretrained` may only be false.

    Raises:
        HostError: If the name or an argument is unknown.
    """
    if name != expected:
        raise HostError(f"there is no encoder of scenes {name!r} here", f"backbone.name is {expected}")
    arguments = dict(kwargs)
    if arguments.pop("pretrained", None):
        raise HostError("backbone.kwargs.pretrained: there are no released weights", "leave it out")
    return construct(cls, cls.__name__, arguments)
