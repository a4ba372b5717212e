"""Does the model need the tokens that the block amplifies? Tokens are chosen by a rule and masked.

Masked at the input of the first layer that a graft may lie behind, a token carries the mean of the item's others;
masked as keys of the block it is hidden from the block's attention alone. What is lost is compared with tokens chosen
otherwise, as many and as clumped. Knows models through `contracts.Host`, no data and no metric.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lmgraft.analysis.activations import distance_to_mean, mean_of_tokens
from lmgraft.contracts import Host
from lmgraft.errors import HostError
from lmgraft.graft import GraftLayer

_TRIES, _NEAR_ENOUGH = 300, 0.02
"""Exchanges that are tried, at most, and the relative error of the distance to the nearest at which they end."""


def amplification(before: Tensor, after: Tensor, padded: Tensor | None = None) -> Tensor:
    """How much farther from the mean a token lies behind W2 than before W1: the ratio of magnitudes, (B, T).

    Args:
        before: (B, T, V) before W1.
        after: (B, T, V) behind W2.
        padded: (B, T) bool; these get 0.
    """
    least = torch.finfo(torch.float32).tiny
    ratio = distance_to_mean(after, padded) / distance_to_mean(before, padded).clamp_min(least)
    return ratio if padded is None else ratio.masked_fill(padded, 0.0)


def top_share(values: Tensor, share: float, padded: Tensor | None = None) -> Tensor:
    """The tokens with the largest values: (B, T) bool, `share` of each item's tokens, at least one where there is one;
    of equal values the first.

    Raises:
        ValueError: If `share` is not within 0 and 1.
    """
    if not 0 < share <= 1:
        raise ValueError(f"a share of {share} of the tokens")
    ranked = values if padded is None else values.masked_fill(padded, float("-inf"))
    rank = ranked.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    there = torch.full_like(rank[:, :1], values.shape[1]) if padded is None else (~padded).sum(1, keepdim=True)
    chosen: Tensor = rank < (there * share).round().clamp_min(1)
    return chosen if padded is None else chosen & ~padded


def elsewhere(
    chosen: Tensor,
    draws: Sequence[np.random.Generator],
    *,
    grid: tuple[int, ...] | None = None,
    places: Tensor | None = None,
    padded: Tensor | None = None,
) -> Tensor:
    """Tokens at random, of each item as many as were chosen of it, and as clumped where it is known where they lie.

    In a grid the chosen ones move together by a random step, round its edges. Where tokens lie at places, those are
    sought from a random token on that lie to each other as the chosen ones do (`_alike`). An item of which neither is
    known, or that is padded and has no places, gives any of its tokens.

    Args:
        chosen: (B, T) bool, none of them padded.
        draws: Of each item, so that what is drawn does not depend on the others of its batch.
        grid: Sizes of the tokens' grid, whose product is T.
        places: (B, T, k), where tokens lie in space; those of padded ones do not matter.
        padded: (B, T) bool; these are not drawn.

    Returns:
        (B, T) bool.
    """
    there = torch.ones_like(chosen) if padded is None else ~padded
    drawn = torch.zeros_like(chosen)
    for item, draw in enumerate(draws):
        kept = there[item]
        own = chosen[item][kept].cpu().numpy()
        at = None if places is None else places[item][kept].double().cpu().numpy()
        if grid is not None and kept.all():
            found = _rolled(own, grid, draw)
        elif at is not None and np.isfinite(at).all():
            found = _alike(own, at, draw)
        else:
            found = draw.permutation(own)
        drawn[item, kept] = torch.from_numpy(found).to(chosen.device)
    return drawn


def _rolled(chosen: NDArray[np.bool_], grid: tuple[int, ...], draw: np.random.Generator) -> NDArray[np.bool_]:
    steps = [int(draw.integers(size)) for size in grid]
    if not any(steps):  # it would be the chosen ones again
        steps[-1] = 1
    return np.roll(chosen.reshape(grid), steps, axis=tuple(range(len(grid)))).reshape(-1)


def _alike(chosen: NDArray[np.bool_], places: NDArray[np.float64], draw: np.random.Generator) -> NDArray[np.bool_]:
    """As many tokens (T,) that lie to each other as the chosen ones do, at places (T, k).

    One of the chosen is put at a random other token. The rest follow, those near it first: each is put at the token
    that is still free and whose distances to those before it are nearest to what they were, by the sum of squared
    relative errors. Shifted places would leave the cloud at its edge, and crowd there. What the edge and gaps still
    change of how near tokens are, `_exchanged` mends.
    """
    own = np.flatnonzero(chosen)
    if not len(own) or len(own) == len(chosen):
        return chosen.copy()
    apart = np.linalg.norm(places[:, None] - places, axis=-1)
    least = max(1e-3 * apart.max(), np.finfo(float).tiny)
    first = draw.choice(own)
    order = own[apart[first, own].argsort(kind="stable")]
    put = [int(draw.choice(np.delete(np.arange(len(chosen)), first)))]
    for known in range(1, len(order)):
        wanted = apart[order[known], order[:known]]
        strain = np.square((apart[:, put] - wanted) / (wanted + least)).sum(1)
        strain[put] = np.inf
        put.append(int(strain.argmin()))
    found = np.isin(np.arange(len(chosen)), put)
    np.fill_diagonal(apart, np.inf)
    return found if len(own) == 1 else _exchanged(found, _nearest(apart, chosen), apart, draw)


def _exchanged(
    found: NDArray[np.bool_], wanted: float, apart: NDArray[np.float64], draw: np.random.Generator
) -> NDArray[np.bool_]:
    """Exchange a random token for one outside wherever that brings the mean distance to the nearest to what is wanted.

    Args:
        found: (T,)
        wanted: The chosen ones' mean distance to the nearest of them.
        apart: (T, T), infinite of a token to itself.
        draw: Of what is tried.
    """
    now = _nearest(apart, found)
    for _ in range(_TRIES):
        if abs(now - wanted) <= _NEAR_ENOUGH * wanted:
            break
        tried = found.copy()
        tried[[draw.choice(np.flatnonzero(found)), draw.choice(np.flatnonzero(~found))]] = [False, True]
        reached = _nearest(apart, tried)
        if abs(reached - wanted) < abs(now - wanted):
            found, now = tried, reached
    return found


def _nearest(apart: NDArray[np.float64], among: NDArray[np.bool_]) -> float:
    """The mean distance of each of some tokens to the nearest other of them."""
    return float(apart[np.ix_(among, among)].min(1).mean())


@contextmanager
def masked_input(model: nn.Module, host: Host, chosen: Tensor, padded: Tensor | None = None) -> Iterator[None]:
    """Inside, chosen tokens enter the first of the layers that a graft may lie behind as the mean of the item's others.

    What lies before that layer (`host.layers[0]`) has seen the chosen tokens: the embedding alone of a ViT, the vision
    tower of METER, the polylines' subgraphs of VectorNet, and of mmTransformer the agents' attention to each other.
    What goes round it sees them still: METER's first layer of words reads the image's tokens as they were, and
    mmTransformer's proposals the lanes. Places that a model gives to later layers again (Point-BERT adds them, rotary
    models turn by them) stay known.

    Args:
        model: What is called inside.
        host: Of the model.
        chosen: (B, T) bool, without prefix tokens.
        padded: (B, T) bool; these count for no mean. An item of which no token is left gives 0.

    Raises:
        HostError: While the model runs, if its first layer has other tokens than its last (a pyramid of maps), or the
            model is called with other items than were chosen for.
    """
    prefix = host.layout.num_prefix_tokens

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], Any]:
        name = next(iter(kwargs), "")
        tokens = args[0] if args else kwargs[name]
        if not isinstance(tokens, Tensor) or tokens.dim() != 3 or tokens.shape[1] != prefix + chosen.shape[1]:
            shape = tuple(tokens.shape) if isinstance(tokens, Tensor) else type(tokens).__name__
            raise HostError(
                f"the first layer is given {shape}, and the last has {chosen.shape[1]} tokens",
                "tokens can be masked at the input of encoders that keep their tokens",
            )
        _same_items(tokens, chosen)
        patches = tokens[:, prefix:]
        mean = mean_of_tokens(patches, chosen if padded is None else chosen | padded)
        masked = torch.cat([tokens[:, :prefix], torch.where(chosen.unsqueeze(-1), mean, patches)], 1)
        return ((masked, *args[1:]), kwargs) if args else (args, {**kwargs, name: masked})

    first = model.get_submodule(host.layers[0])
    handle = first.register_forward_pre_hook(hook, with_kwargs=True, prepend=True)
    try:
        yield
    finally:
        handle.remove()


def _same_items(tokens: Tensor, chosen: Tensor) -> None:
    if len(tokens) != len(chosen):
        raise HostError(
            f"the model is called with {len(tokens)} items where {len(chosen)} are looked at",
            "tokens can be masked where each item is scored by itself, not by pairs with others",
        )


@contextmanager
def masked_keys(inserted: GraftLayer, chosen: Tensor) -> Iterator[None]:
    """Inside, the block's attention does not see chosen tokens (B, T); they still ask, and are read.

    Raises:
        HostError: While the model runs, if it is called with other items than were chosen for.
    """
    prefix = inserted.host.layout.num_prefix_tokens

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], Any]:
        _same_items(args[0], chosen)
        given = args[1] if len(args) > 1 else kwargs.get("key_padding_mask")
        never = chosen.new_zeros(len(chosen), prefix)
        hidden = torch.cat([never, chosen], 1)
        mask = hidden if given is None else hidden | given
        return (args[0], mask, *args[2:]), {k: v for k, v in kwargs.items() if k != "key_padding_mask"}

    handle = inserted.register_forward_pre_hook(hook, with_kwargs=True, prepend=True)
    try:
        yield
    finally:
        handle.remove()
