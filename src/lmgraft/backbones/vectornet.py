"""VectorNet (Gao et al., arXiv 2005.04259) in plain PyTorch, and as a host.

Polylines of agents and lanes become one token each and attend to each other; the target's token, the first, says where
it may go. A graft lies behind the global graph, so that one token is read of it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmgraft.backbones import scene_parts as parts
from lmgraft.backbones.own_path import is_own
from lmgraft.backbones.refusals import shares
from lmgraft.backbones.scene_parts import (
    AGENT_WIDTH,
    LANE_WIDTH,
    Forecast,
    ForecastWithNodes,
    Nodes,
    Seen,
    Subgraph,
    unit,
)
from lmgraft.contracts import Host, Reads, TokenLayout
from lmgraft.errors import HostError

_KINDS = AGENT_WIDTH - 4
"""What an agent's vector has behind its ends, and a lane's has not."""


class GlobalLayer(nn.Module):
    """All tokens attend to all, by one head and without a scale: softmax(q k^T) v, as published."""

    def __init__(self, dim: int, residual: bool) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(dim, dim) for _ in range(3))
        self.residual = residual

    def forward(self, nodes: Tensor, padded: Tensor) -> Tensor:
        q, k, v = (part(nodes).unsqueeze(1) for part in (self.q, self.k, self.v))
        out = F.scaled_dot_product_attention(q, k, v, ~padded[:, None, None], scale=1.0).squeeze(1)
        return nodes + out if self.residual else out


class GlobalGraph(nn.Module):
    """The global layers, and what node completion reads of their tokens; a graft changes the tokens alone."""

    def __init__(self, dim: int, layers: int, residual: bool, completes: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(GlobalLayer(dim, residual) for _ in range(layers))
        self.complete = nn.Sequential(unit(dim, dim), nn.Linear(dim, dim)) if completes else None

    def forward(self, nodes: Tensor, padded: Tensor) -> tuple[Tensor, Tensor | None]:
        """Tokens (B, N, V), and in training what each would say of its node before the graph, (B, N, V)."""
        for layer in self.layers:
            nodes = layer(nodes, padded)
        return nodes, self.complete(nodes) if self.training and self.complete is not None else None


class VectorNet(nn.Module):
    """A scene (`Scenes.seen`) to a `Forecast`.

    Args:
        history: Steps that agents are seen for, S.
        future: Steps to come, T.
        num_modes: K, trajectories that are offered. The paper's one or six; Argoverse counts six.
        hidden: Width of every hidden layer, 64 as published; tokens have twice as much.
        subgraph_layers: Three, as published.
        global_layers: One, as published.
        residual: Add each global layer's input to its output. Not published; without it the target's token has its
            own way only as far as it attends to itself, which small sets are too few to teach.
        from_velocity: Steps of the history whose mean displacement is added to each step that is forecast, so that the
            decoder learns what differs from it; 0: none, as published.
        coordinate_scale: Metres that are one unit of what the first layers are given; 1 as published. Beside attributes
            of 0 and 1, places tens of metres away drown the rest of a vector.
        node_completion: Share of the tokens that training hides, to be told from the others; 0 for none. Hidden are
            others than the target. The paper does not say how many: 0.1 hides a few of a scene.

    Raises:
        HostError: If an argument cannot be.
    """

    def __init__(
        self,
        history: int,
        future: int,
        *,
        num_modes: int = 6,
        hidden: int = 64,
        subgraph_layers: int = 3,
        global_layers: int = 1,
        residual: bool = False,
        from_velocity: int = 0,
        coordinate_scale: float = 1.0,
        node_completion: float = 0.0,
    ) -> None:
        super().__init__()
        if min(history - 1, future, num_modes, hidden, subgraph_layers, global_layers) < 1:
            raise HostError("VectorNet has at least one of everything, and two steps of history", "check its arguments")
        shares(node_completion=node_completion)
        parts.check_start(from_velocity, coordinate_scale, history)
        self.from_velocity, self.coordinate_scale = from_velocity, coordinate_scale
        self.embed_dim, self.history, self.node_completion = 2 * hidden, history, node_completion
        self.shape = (num_modes, future, 2)
        self.subgraph = Subgraph(AGENT_WIDTH + LANE_WIDTH - 4, hidden, subgraph_layers)
        self.identity = nn.Linear(2, self.embed_dim) if node_completion else None
        self.global_graph = GlobalGraph(self.embed_dim, global_layers, residual, self.identity is not None)
        self.decoder = unit(self.embed_dim, hidden)
        self.steps = nn.Linear(hidden, num_modes * future * 2)
        self.scores = nn.Linear(hidden, num_modes)

    def polylines(self, seen: Seen) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (B, N, V) of length 1 before the global graph, agents' before lanes'; which are padded, (B, N); and
        each one's identity, the least of its starts, (B, N, 2).

        Raises:
            HostError: If it is no scene that the model was made for.
        """
        parts.check_scene(seen, self.history)
        seen = parts.scaled(seen, self.coordinate_scale)
        agents, agents_seen = parts.agent_vectors(*seen[:3])
        lanes, lanes_seen = parts.lane_vectors(*seen[3:])
        lanes = torch.cat([lanes[..., :4], lanes.new_zeros(*lanes.shape[:3], _KINDS), lanes[..., 4:]], -1)
        both = (F.pad(agents, (0, LANE_WIDTH - 4)), agents_seen), (lanes, lanes_seen)
        tokens = torch.cat([self.subgraph(*polylines) for polylines in both], 1)
        starts = [v[..., :2].masked_fill(~s[..., None], torch.inf).amin(2) for v, s in both]
        padded = parts.padding(agents_seen, lanes_seen)
        return F.normalize(tokens, dim=-1), padded, torch.cat(starts, 1).nan_to_num(posinf=0.0)

    def decode(self, tokens: Tensor, velocity: Tensor | None = None) -> Forecast:
        """From tokens (B, N, V), of which the first is read; and what is added to each step, (B, 2) in metres."""
        target = self.decoder(tokens[:, 0])
        steps = self.steps(target).unflatten(-1, self.shape)
        steps = steps if velocity is None else steps + velocity[:, None, None]
        return Forecast(steps.cumsum(2), self.scores(target))

    def forward(
        self,
        agents: Tensor,
        agent_valid: Tensor,
        agent_types: Tensor,
        lanes: Tensor,
        lane_valid: Tensor,
        lane_attributes: Tensor,
    ) -> Forecast | ForecastWithNodes:
        whole, padded, starts = self.polylines((agents, agent_valid, agent_types, lanes, lane_valid, lane_attributes))
        nodes, hidden = whole, None
        if self.identity is not None:
            if self.training:
                drawn = torch.rand(padded.shape, device=padded.device) < self.node_completion
                hidden = drawn & ~padded & (torch.arange(padded.shape[1], device=padded.device) > 0)
                nodes = nodes.masked_fill(hidden[..., None], 0.0)
            nodes = nodes + F.normalize(self.identity(starts), dim=-1)
        tokens, completed = self.global_graph(nodes, padded)
        start = parts.velocity(agents, agent_valid, self.from_velocity) if self.from_velocity else None
        forecast = self.decode(tokens, start)
        if completed is None or hidden is None:
            return forecast
        return ForecastWithNodes(*forecast, Nodes(completed, whole, hidden))


def create(name: str, kwargs: dict[str, Any]) -> VectorNet:
    """Make a VectorNet; the factory `vectornet`.

    Args:
        name: "vectornet".
        kwargs: Those of `VectorNet`.

    Raises:
        HostError: If the name or an argument is unknown.
    """
    model: VectorNet = parts.made(VectorNet, name, "vectornet", kwargs)
    return model


def describe(model: VectorNet) -> Host:
    """The tail lies behind the global graph; the target's token is first, and read alone."""
    known = is_own(model, VectorNet, ("forward", "decode")) and not model.from_velocity
    inner = tuple(f"global_graph.layers.{i}" for i in range(len(model.global_graph.layers) - 1))
    return Host(
        embed_dim=model.embed_dim,
        layers=(*inner, "global_graph"),
        embedding_paths=("subgraph", "identity"),
        layout=TokenLayout(num_prefix_tokens=1, places=parts.places, shares=parts.token_shares),
        reads=reads_of_target,
        padding_mask=parts.padding_of_call,
        head_from_tokens=head_from_tokens if known else None,
        varying=parts.VARYING,
    )


def head_from_tokens(model: VectorNet, tokens: Tensor) -> Forecast:
    """Run what comes behind the global graph."""
    return model.decode(tokens)


def reads_of_target(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Reads:
    """Return the target's token."""
    return 0 if is_own(model, VectorNet, ("forward", "decode")) else None
