"""mmTransformer (Liu et al., arXiv 2103.11624) in plain PyTorch, and as a host.

Stacked transformers: one reads each agent's history into K proposals, one adds the lanes to the target's proposals, one
lets the agents see each other. A graft lies where agents' tokens and the lanes' memory are one sequence, before the
trajectories are decoded, so that one token is read of it, or the K proposals.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmgraft.backbones import scene_parts as parts
from lmgraft.backbones.own_path import is_own
from lmgraft.backbones.refusals import one_of
from lmgraft.backbones.scene_parts import AGENT_WIDTH, LANE_WIDTH, Forecast, Seen, Subgraph, unit
from lmgraft.contracts import Host, Reads, TokenLayout
from lmgraft.errors import HostError

_LANE_LAYERS = 2
_BASE = 10_000.0  # of the sinusoids


class Attention(nn.Module):
    """Tokens (B, T, V) attend to a source (B, S, V); where nothing of it can be seen, nothing comes of it."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q, self.k, self.v, self.out = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor, source: Tensor, unseen: Tensor | None) -> Tensor:
        """`unseen`: (B, S) bool, or None where all is seen."""
        q, k, v = self.q(x), self.k(source), self.v(source)
        visible = None
        if unseen is not None:  # a zero more, which is seen only where all else is not: no softmax is over nothing
            k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
            visible = torch.cat([~unseen, unseen.all(1, keepdim=True)], 1)[:, None, None]
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (q, k, v))
        heads = F.scaled_dot_product_attention(q, k, v, visible)
        out: Tensor = self.out(heads.transpose(1, 2).flatten(2))
        return out


class Layer(nn.Module):
    """A layer with its norms before: attention of tokens to each other, to a memory if there is one, and an MLP."""

    def __init__(self, dim: int, num_heads: int, hidden: int, crosses: bool) -> None:
        super().__init__()
        self.attention = Attention(dim, num_heads)
        self.cross = Attention(dim, num_heads) if crosses else None
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, dim))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(3 if crosses else 2))

    def forward(self, x: Tensor, padded: Tensor | None, memory: Tensor | None = None) -> Tensor:
        """`padded` is of the memory where there is one, else of the tokens."""
        y = self.norms[0](x)
        x = x + self.attention(y, y, padded if self.cross is None else None)
        if self.cross is not None:
            x = x + self.cross(self.norms[1](x), memory, padded)
        x = x + self.mlp(self.norms[-1](x))
        return x


class Stack(nn.Module):
    """Layers and a norm behind them."""

    def __init__(self, dim: int, depth: int, num_heads: int, hidden: int, crosses: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(dim, num_heads, hidden, crosses) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, padded: Tensor | None, memory: Tensor | None = None) -> Tensor:
        for layer in self.layers:
            x = layer(x, padded, memory)
        out: Tensor = self.norm(x)
        return out


class Joint(nn.Module):
    """Where agents and lanes are one sequence: (B, T, V) as it came. A graft lies behind it."""

    def forward(self, tokens: Tensor, padded: Tensor) -> Tensor:
        """`padded`: (B, T) bool, which tokens are."""
        return tokens


class MMTransformer(nn.Module):
    """A scene (`Scenes.seen`) to a `Forecast`.

    Args:
        history: Steps that agents are seen for, S.
        future: Steps to come, T.
        num_modes: K, trajectories that are offered; six as published.
        embed_dim: Width V, 128 as published; an even number.
        depth: Layers of each transformer: two as published.
        num_heads: Two as published.
        mlp_ratio: Hidden width of MLPs over V, two as published.
        from_velocity: Steps of the history whose mean displacement is added to each step that is forecast, so that the
            decoder learns what differs from it; 0: none, as published.
        coordinate_scale: Metres that are one unit of the places that the first layers are given; 1 as published. Ways
            from step to step stay in metres.
        layer_by_mode: Give each trajectory a last layer of its own. Published is one for all, trained by regions of
            where targets end; trained by the nearest trajectory alone, all of them go straight on.
        read: What of the joint sequence the head reads. "vehicle": the target's token, the first, beside each proposal;
            the paper of grafts says that its block sees tokens of agents and lanes. "proposals": the K proposals, which
            then come before agents and lanes in the sequence, so that each is seen with all.

    Raises:
        HostError: If an argument cannot be.
    """

    def __init__(
        self,
        history: int,
        future: int,
        *,
        num_modes: int = 6,
        embed_dim: int = 128,
        depth: int = 2,
        num_heads: int = 2,
        mlp_ratio: float = 2.0,
        from_velocity: int = 0,
        coordinate_scale: float = 1.0,
        layer_by_mode: bool = False,
        read: Literal["vehicle", "proposals"] = "vehicle",
    ) -> None:
        super().__init__()
        one_of("read", read, ("vehicle", "proposals"))
        least = min(history - 1, future, num_modes, depth, num_heads, embed_dim, mlp_ratio * embed_dim)
        if least < 1 or embed_dim % (4 * num_heads):
            raise HostError(
                f"an mmTransformer of {embed_dim} in {num_heads} heads, {depth} layers, {num_modes} modes, from "
                f"{history} steps to {future} cannot be made",
                "at least one of everything and two steps of history; embed_dim is a multiple of 4 num_heads",
            )
        parts.check_start(from_velocity, coordinate_scale, history)
        self.from_velocity, self.coordinate_scale = from_velocity, coordinate_scale
        v, self.read, self.history, self.num_modes = embed_dim, read, history, num_modes
        self.embed_dim, self.shape = v, (future, 2)
        size = (v, depth, num_heads, int(v * mlp_ratio))
        self.history_embed, self.history_encoder = nn.Linear(AGENT_WIDTH - 1, v), Stack(*size)
        self.queries, self.history_decoder = nn.Parameter(torch.empty(num_modes, v)), Stack(*size, crosses=True)
        self.place, self.fuse = nn.Linear(2, v // 2), nn.Linear(v + v // 2, v)
        self.lane_net, self.lane_embed = Subgraph(LANE_WIDTH, v // 4, _LANE_LAYERS), nn.Linear(v // 2, v)
        self.lane_encoder, self.lane_decoder = Stack(*size), Stack(*size, crosses=True)
        self.vehicle, self.vehicle_place = nn.Linear(num_modes * v, v), nn.Linear(2, v)
        self.social, self.joint = Stack(*size), Joint()
        self.join = nn.Linear(2 * v, v) if read == "proposals" else nn.Identity()
        wide = v if read == "proposals" else 2 * v
        self.layer_by_mode, out = layer_by_mode, future * 2 * (num_modes if layer_by_mode else 1)
        self.regression = nn.Sequential(unit(wide, 2 * v), nn.Linear(2 * v, v), nn.ReLU(), nn.Linear(v, out))
        self.confidence = nn.Sequential(nn.Linear(wide, v), nn.ReLU(), nn.Linear(v, 1))
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        nn.init.orthogonal_(self.queries)

    def proposals(self, agents: Tensor, valid: Tensor, types: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each agent's K proposals by its own history and place, (B, A, K, V); its last place, scaled, (B, A, 2); which
        of its vectors are seen, (B, A, S - 1)."""
        vectors, seen = parts.agent_vectors(agents, valid, types)
        moves = torch.cat([vectors[..., 2:4] - vectors[..., :2], vectors[..., 4:]], -1) * seen[..., None]
        moves = torch.cat([moves, seen[..., None].to(moves.dtype)], -1)
        batch, count = seen.shape[:2]
        unseen = ~seen.flatten(0, 1)
        x = self.history_embed(moves.flatten(0, 1)) + sinusoids(seen.shape[2], self.embed_dim, moves)
        memory = self.history_encoder(x, unseen)
        queries = self.queries.repeat(batch * count, 1, 1)
        of_history = self.history_decoder(queries, unseen, memory).unflatten(0, (batch, count))
        last = parts.last_places(agents, valid) / self.coordinate_scale
        place = self.place(last)[:, :, None].expand(-1, -1, self.num_modes, -1)
        return self.fuse(torch.cat([place, of_history], -1)), last, seen

    def sequence(self, seen: Seen) -> tuple[Tensor, Tensor, Tensor]:
        """The joint sequence (B, T, V), which of it is padded (B, T), and the target's proposals with the lanes
        (B, K, V).

        Raises:
            HostError: If it is no scene that the model was made for.
        """
        parts.check_scene(seen, self.history)
        proposals, last, agents_seen = self.proposals(*seen[:3])
        lanes, lanes_seen = parts.lane_vectors(*parts.scaled(seen, self.coordinate_scale)[3:])
        padded = parts.padding(agents_seen, lanes_seen)
        no_agent, no_lane = padded[:, : last.shape[1]], padded[:, last.shape[1] :]
        memory = self.lane_encoder(self.lane_embed(self.lane_net(lanes, lanes_seen)), no_lane)
        with_lanes = self.lane_decoder(proposals[:, 0], no_lane, memory)
        vehicles = self.social(self.vehicle(proposals.flatten(2)) + self.vehicle_place(last), no_agent)
        tokens = [vehicles, memory]
        if self.read == "proposals":
            with_lanes = self.join(self._beside(vehicles[:, :1], with_lanes))
            tokens, padded = [with_lanes, *tokens], F.pad(padded, (self.num_modes, 0), value=False)
        return torch.cat(tokens, 1), padded, with_lanes

    def _beside(self, token: Tensor, proposals: Tensor) -> Tensor:
        return torch.cat([token.expand(-1, self.num_modes, -1), proposals], -1)

    def decode(self, read: Tensor, velocity: Tensor | None = None) -> Forecast:
        """From what is read for each proposal, (B, K, 2V), or (B, K, V) of proposals in the sequence; and what is added
        to each step, (B, 2) in metres."""
        steps = self.regression(read)
        if self.layer_by_mode:
            steps = steps.unflatten(-1, (self.num_modes, -1)).diagonal(dim1=1, dim2=2).transpose(1, 2)
        steps = steps.unflatten(-1, self.shape)
        steps = steps if velocity is None else steps + velocity[:, None, None]
        return Forecast(steps.cumsum(2), self.confidence(read).squeeze(-1))

    def forward(
        self,
        agents: Tensor,
        agent_valid: Tensor,
        agent_types: Tensor,
        lanes: Tensor,
        lane_valid: Tensor,
        lane_attributes: Tensor,
    ) -> Forecast:
        seen = agents, agent_valid, agent_types, lanes, lane_valid, lane_attributes
        tokens, padded, with_lanes = self.sequence(seen)
        tokens = self.joint(tokens, padded)
        proposals = self.read == "proposals"
        read = tokens[:, : self.num_modes] if proposals else self._beside(tokens[:, :1], with_lanes)
        start = parts.velocity(agents, agent_valid, self.from_velocity) if self.from_velocity else None
        return self.decode(read, start)


def sinusoids(steps: int, dim: int, like: Tensor) -> Tensor:
    """Sines and cosines of each step in turn: (steps, dim), of the type and on the device of another tensor."""
    rates = torch.exp(torch.arange(0, dim, 2, device=like.device) * (-math.log(_BASE) / dim))
    angles = torch.arange(steps, device=like.device)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1).to(like.dtype)


def create(name: str, kwargs: dict[str, Any]) -> MMTransformer:
    """Make an mmTransformer; the factory `mmtransformer`.

    Args:
        name: "mmtransformer".
        kwargs: Those of `MMTransformer`.

    Raises:
        HostError: If the name or an argument is unknown.
    """
    model: MMTransformer = parts.made(MMTransformer, name, "mmtransformer", kwargs)
    return model


def describe(model: MMTransformer) -> Host:
    """The tail lies behind the joint sequence; "head" before the transformer in which agents see each other."""
    proposals = model.read == "proposals"
    known = proposals and is_own(model, MMTransformer, ("forward", "decode")) and not model.from_velocity
    return Host(
        embed_dim=model.embed_dim,
        layers=("joint",),
        first="social",
        layout=TokenLayout(num_prefix_tokens=model.num_modes if proposals else 1, places=places, shares=token_shares),
        reads=reads_of_head,
        padding_mask=parts.padding_of_call,
        head_from_tokens=head_from_tokens if known else None,
        varying=parts.VARYING,
    )


def head_from_tokens(model: MMTransformer, tokens: Tensor) -> Forecast:
    """Run what comes behind the joint sequence, where the head reads proposals of it."""
    return model.decode(tokens[:, : model.num_modes])


def reads_of_head(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Reads:
    """Return the target's token, or the proposals."""
    if not is_own(model, MMTransformer, ("forward", "decode")):
        return None
    return slice(0, model.num_modes) if model.read == "proposals" else 0


def places(model: Any, args: tuple[Any, ...]) -> Tensor:
    """Return where agents and lanes lie, (B, T, 2) in metres; NaN for padding, and for proposals before them."""
    return _behind_proposals(model, parts.places(model, args))


def token_shares(model: Any, args: tuple[Any, ...], truth: Tensor) -> Tensor:
    """Return which tokens are of agents that a truth (B, A) means: (B, T)."""
    return _behind_proposals(model, parts.token_shares(model, args, truth)[..., None])[..., 0]


def _behind_proposals(model: Any, values: Tensor) -> Tensor:
    return F.pad(values, (0, 0, model.num_modes if model.read == "proposals" else 0, 0), value=torch.nan)
