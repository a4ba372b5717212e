"""A token budget: the block is computed for n tokens of each sample, and answers for all of them.

    x (B, T, V) -+- keys and values of all T ----------------+
                 +- n of them, chosen by a rule: queries ---- block -- W2 -- (B, n, V)
                 +- each token's likest of the n: nearest (B, T) -------------- taken -- (B, T, V)

So heads that average, take maxima, mask padding or fold tokens to a map see T tokens as ever. A maximum is that over
the n; a mean weighs each of the n by the tokens that it stands for. Prefix tokens (class token, registers) are always
among the n and stand for themselves alone; padding is chosen only where a sample has fewer than n other tokens, and
stands for nothing.

The choice depends on a sample's own tokens and has no gradient. Tokens that are not chosen get theirs through keys and
values, and by the rule "mean" through the query too. It is another model, not another form: what is computed for the n
tokens is exact, in whichever form the planner takes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmgraft.block.parts import at_least_float32
from lmgraft.contracts import GraftPoint, Host, MeanOf, Reads, count_tokens, sizes, take_tokens
from lmgraft.errors import HostError

Rule = Literal["every", "mean", "norm", "attention"]

Choose = Callable[[Tensor, Tensor, int, Tensor | None], Tensor]
"""From tokens (B, T, V), padded (B, T), the count n and the attention that tokens received (B, T) or None: which n,
(B, n) indices, none of them twice."""


def every(x: Tensor, padded: Tensor, count: int, received: Tensor | None) -> Tensor:
    """Evenly spaced ones: the middles of `count` equal parts of what is not padded."""
    places = torch.arange(x.shape[1], device=x.device)
    order = (places + x.shape[1] * padded).argsort(1)  # padding comes last
    others = (~padded).sum(1, keepdim=True).clamp_min(count)
    middles = 2 * torch.arange(count, device=x.device) + 1
    return order.gather(1, middles * others // (2 * count))


def largest(x: Tensor, padded: Tensor, count: int, received: Tensor | None) -> Tensor:
    """Those of largest norm."""
    return _highest(x.square().sum(-1), padded, count)


def attended(x: Tensor, padded: Tensor, count: int, received: Tensor | None) -> Tensor:
    """Those that got the most attention in the encoder layer before the block.

    Raises:
        HostError: If that is not known.
    """
    if received is None or received.shape != padded.shape:
        raise HostError(
            "budget_rule='attention': the layer before the block does not attend over these tokens by torch's "
            "scaled_dot_product_attention, or its tokens were stored",
            "choose another budget_rule",
        )
    return _highest(received, padded, count)


def _highest(scores: Tensor, padded: Tensor, count: int) -> Tensor:
    return scores.masked_fill(padded, float("-inf")).topk(count).indices.sort(1).values


RULES: dict[Rule, Choose] = {"every": every, "mean": every, "norm": largest, "attention": attended}
"""By `GraftConfig.budget_rule`. By "mean" each query is the mean of the tokens that the chosen one stands for."""


@dataclass(frozen=True)
class Budgeted:
    """What a call computes within its budget."""

    x: Tensor
    """Tokens that give keys and values; by the rule "mean" the queries behind them, which are padded."""
    mask: Tensor | None
    reads: Reads
    nearest: Tensor
    """(B, T): which of the n stands for each token."""

    def spread(self, out: Tensor, reads: Reads) -> Tensor:
        """From `out` (B, n, V) to what is read of all T tokens, (B, R, V); (B, T, V) where their mean is."""
        asked = None if isinstance(reads, MeanOf) else reads
        return take_tokens(out, take_tokens(self.nearest.unsqueeze(2), asked).squeeze(2))


def exceeds(x: Tensor, reads: Reads, budget: int | None) -> bool:
    """Whether more tokens of `x` (B, T, V) are read than the budget allows."""
    tokens = sizes(x)[1]
    return budget is not None and budget < tokens and budget < count_tokens(tokens, reads)


def within(
    x: Tensor, mask: Tensor | None, budget: int, rule: Rule, prefix: int, received: Tensor | None = None
) -> Budgeted:
    """Choose `budget` tokens of `x` (B, T, V) by `rule`.

    Args:
        mask: (B, T) bool, True = padded, or None.
        budget: n, more than `prefix` and less than T.
        rule: A row of `RULES`.
        prefix: Class token and registers, first of all.
        received: (B, T), see `attended`.

    Raises:
        HostError: As the rule.
    """
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        padded = x.new_zeros(x.shape[:2], dtype=torch.bool) if mask is None else mask.expand(x.shape[0], -1)
        index, nearest = _choose(at_least_float32(x.detach()), padded, budget, rule, prefix, received)
    if rule != "mean":
        return Budgeted(x, mask, index, nearest)
    counted = (~padded).scatter(1, index, torch.ones_like(index, dtype=torch.bool))
    share = (F.one_hot(nearest, budget) * counted.unsqueeze(2)).to(at_least_float32(x).dtype)
    queries = (share / share.sum(1, keepdim=True)).to(x.dtype).transpose(1, 2) @ x
    hidden = padded.new_ones(x.shape[0], budget)
    joined = torch.cat([x, queries.to(x.dtype)], 1), torch.cat([padded, hidden], 1)
    return Budgeted(*joined, slice(-budget, None), nearest)


def _choose(
    x: Tensor, padded: Tensor, budget: int, rule: Rule, prefix: int, received: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The chosen tokens (B, n), prefix tokens first, and which of them stands for each token (B, T)."""
    x, padded = x[:, prefix:], padded[:, prefix:]
    received = None if received is None else received[:, prefix:]
    index = RULES[rule](x, padded, budget - prefix, received)
    directions = F.normalize(x, dim=-1)
    alike = directions @ take_tokens(directions, index).transpose(1, 2)
    alike = alike.masked_fill(padded.gather(1, index).unsqueeze(1), float("-inf"))
    places = torch.arange(budget, device=x.device).expand(x.shape[0], -1)
    first = places[:, :prefix]
    nearest = (alike.argmax(2) + prefix).scatter(1, index, places[:, prefix:])
    return torch.cat([first, index + prefix], 1), torch.cat([first, nearest], 1)


def check_place(model: nn.Module, host: Host, point: GraftPoint, budget: int | None, rule: Rule, *, asks: bool) -> None:
    """Refuse a budget that would choose nothing at a place, or could not.

    Args:
        model: To be grafted.
        host: Its description.
        point: Where.
        budget: See `GraftConfig`; None is refused nowhere.
        rule: Likewise.
        asks: Whether the host says what is read, and not the graft's config.

    Raises:
        HostError: If so.
    """
    prefix = host.layout.num_prefix_tokens
    if budget is None:
        return
    if budget <= prefix:
        raise HostError(
            f"budget={budget}: {prefix} class and register tokens are always computed", f"give {prefix + 1} or more"
        )
    if rule == "attention" and point.when == "before":
        raise HostError("budget_rule='attention': no encoder layer comes before this place", "choose another rule")
    reads = host.reads(model, (), {}) if asks and point.last else None
    if isinstance(reads, int | tuple):
        raise HostError(
            f"budget={budget}: the head of this {type(model).__qualname__} reads token {reads} alone",
            "leave budget out: it is for heads that read all tokens",
        )
