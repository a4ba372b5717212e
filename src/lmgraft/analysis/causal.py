"""Does the model need the tokens that the block amplifies? Tokens are chosen by a rule and masked.

Masked at the encoder's input a token carries the mean of the item's other tokens, as if nothing were known of it;
masked as keys of the block it is hidden from the block's attention alone. What is lost is compared with tokens chosen
otherwise, as many and as clumped. Knows models through `contracts.Host`, no data and no metric.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lmgraft.analysis.activations import distance_to_mean, mean_of_tokens
from lmgraft.contracts import Host
from lmgraft.errors import HostError
from lmgraft.graft import GraftLayer


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
    """The tokens with the largest values: (B, T) bool, `share` of each item's tokens, at least one; of equal values the
    first.

    Raises:
        ValueError: If `share` is not within 0 and 1.
    """
    if not 0 < share <= 1:
        raise ValueError(f"a share of {share} of the tokens")
    ranked = values if padded is None else values.masked_fill(padded, float("-inf"))
    rank = ranked.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    there = torch.full_like(rank[:, :1], values.shape[1]) if padded is None else (~padded).sum(1, keepdim=True)
    chosen: Tensor = rank < (there * share).round().clamp_min(1)
    return chosen


def elsewhere(chosen: Tensor, grid: tuple[int, ...] | None, seed: int) -> Tensor:
    """Tokens at random, as many and as clumped as those that were chosen: (B, T) bool.

    In a grid the chosen ones move together by a random step, round its edges; without one each item takes those of
    another item of the batch, and of an item by itself as many as it has at random.

    Args:
        chosen: (B, T) bool.
        grid: Sizes of the tokens' grid, whose product is T.
        seed: Of the draw; items of one batch draw differently.
    """
    generator = torch.Generator().manual_seed(seed)
    items, count = chosen.shape
    if grid is not None:
        moved = []
        for one in chosen.unflatten(1, grid):  # type: ignore[no-untyped-call]
            steps = [int(torch.randint(size, (), generator=generator)) for size in grid]
            if not any(steps):  # it would be the chosen ones again
                steps[-1] = 1
            moved.append(one.roll(steps, dims=tuple(range(len(grid)))).flatten())
        return torch.stack(moved)
    if items > 1:
        return chosen.roll(int(torch.randint(1, items, (), generator=generator)), dims=0)
    order = torch.randperm(count, generator=generator).to(chosen.device)
    return chosen[:, order]


@contextmanager
def masked_input(model: nn.Module, host: Host, chosen: Tensor) -> Iterator[None]:
    """Inside, chosen tokens (B, T) enter the encoder's first layer as the mean of the item's others.

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
        mean = mean_of_tokens(patches, chosen)
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
