"""Random scenes for tests of encoders: uneven numbers of agents, steps and lanes. Not a test file itself."""

from __future__ import annotations

import torch
from torch import Tensor

from lmgraft.data.motion.scenes import AGENT_TYPES, LANE_ATTRIBUTES

HISTORY, FUTURE, POINTS = 5, 4, 4
SIZES = {"history": HISTORY, "future": FUTURE}

Seen = tuple[Tensor, ...]


def scenes(batch: int = 3, agents: int = 4, lanes: int = 5, seed: int = 0) -> Seen:
    """`Scenes.seen`: the first scene is full, the others have ever fewer agents, lanes, and steps of agents; the last
    has no lane. Padding is 0."""
    draw = torch.Generator().manual_seed(seed)
    rank = torch.arange(batch)
    there = torch.arange(agents) < (agents - rank[:, None]).clamp_min(1)
    first = torch.randint(0, HISTORY - 1, (batch, agents), generator=draw)
    first[0] = first[:, 0] = 0
    valid = there[..., None] & (torch.arange(HISTORY) >= first[..., None])
    lane_there = torch.arange(lanes) < lanes - 2 * rank[:, None]
    if batch > 1:
        lane_there[-1] = False
    lengths = torch.randint(2, POINTS + 1, (batch, lanes), generator=draw)
    lane_valid = lane_there[..., None] & (torch.arange(POINTS) < lengths[..., None])
    paths = torch.randn(batch, agents, HISTORY, 2, generator=draw).cumsum(2)
    points = 3 * torch.randn(batch, lanes, POINTS, 2, generator=draw)
    known = [torch.randint(len(names), (batch, lanes), generator=draw) for names in LANE_ATTRIBUTES.values()]
    types = torch.randint(len(AGENT_TYPES), (batch, agents), generator=draw)
    return (
        (paths - paths[:, :1, -1:]) * valid[..., None],
        valid,
        types * there,
        points * lane_valid[..., None],
        lane_valid,
        torch.stack(known, -1) * lane_there[..., None],
    )


def one(seen: Seen, item: int) -> Seen:
    """A scene by itself, without padded agents and lanes."""
    agents, lanes = seen[1][item].any(-1), seen[4][item].any(-1)
    return tuple(x[item, kept][None] for x, kept in zip(seen, [agents] * 3 + [lanes] * 3, strict=True))


def padded(seen: Seen, agents: int, lanes: int) -> Seen:
    """With so many padded agents and lanes more."""
    more = [agents] * 3 + [lanes] * 3
    return tuple(
        torch.cat([x, x.new_zeros(len(x), count, *x.shape[2:])], 1) for x, count in zip(seen, more, strict=True)
    )


def shuffled(seen: Seen, seed: int = 0) -> Seen:
    """Agents but for the target in another order, and lanes."""
    draw = torch.Generator().manual_seed(seed)
    others = 1 + torch.randperm(seen[0].shape[1] - 1, generator=draw)
    agents, lanes = torch.cat([torch.zeros(1, dtype=torch.long), others]), torch.randperm(seen[3].shape[1])
    return tuple(x[:, order] for x, order in zip(seen, [agents] * 3 + [lanes] * 3, strict=True))
