"""Padding that is not computed: in training the short samples of a batch lie in one row, and see nothing of each other.

Padding costs what tokens cost, though nothing reads what comes of it; where samples differ much, as rooms do in their
objects, that is half of the work. Every token that is no padding has the same output as without. Knows tokens and
masks, not what is computed of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lmgraft.contracts import is_traced

_WORTH = 0.8
"""Of the batch's tokens and padding, what rows may have; above that the batch is left as it is."""


class Packing(NamedTuple):
    """Where the tokens of a batch (B, T) lie in rows (R, L)."""

    tokens: Tensor
    """(N,) int64, the tokens that are no padding, by their number in the batch."""
    places: Tensor
    """(N,) int64, their numbers in the rows."""
    hidden: Tensor
    """(R, L, L) bool: which of its row a place does not see: all but its own sample. Free places see each other."""


def packing_of(padded: Tensor) -> Packing | None:
    """How a padding mask (B, T) bool is packed; None where that would not save enough."""
    kept = ~padded
    counts: list[int] = kept.sum(1).tolist()
    length = max(counts)
    rows, starts, used = _first_fit(counts, length)
    if not 0 < used * length <= _WORTH * padded.numel():
        return None
    sample, place = kept.nonzero(as_tuple=True)
    first = torch.tensor([row * length + start for row, start in zip(rows, starts, strict=True)], device=padded.device)
    places = first[sample] + (kept.cumsum(1) - 1)[kept]
    owner = torch.full((used * length,), -1, device=padded.device)
    owner[places] = sample
    owner = owner.view(used, length)
    return Packing(sample * padded.shape[1] + place, places, owner[:, :, None] != owner[:, None, :])


def _first_fit(counts: Sequence[int], length: int) -> tuple[list[int], list[int], int]:
    """The row and start of each sample, and how many rows: the longest first, each into the fullest row with space."""
    rows, starts, used = [0] * len(counts), [0] * len(counts), 0
    with_space: list[list[int]] = [[] for _ in range(length + 1)]  # rows by how much is free
    for sample in sorted(range(len(counts)), key=lambda one: -counts[one]):
        count = counts[sample]
        if count == 0:
            continue
        free = next((space for space in range(count, length) if with_space[space]), length)
        if free < length:
            row = with_space[free].pop()
        else:
            row, used = used, used + 1
        rows[sample], starts[sample] = row, length - free
        with_space[free - count].append(row)
    return rows, starts, used


def packed(
    compute: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], x: Tensor, padded: Tensor
) -> tuple[Tensor, Tensor]:
    """What `compute` makes of tokens (B, T, V) and their padding mask (B, T), with less padding where that is worth it.

    Args:
        compute: Of tokens (R, L, V), and a mask (R, L) of padding or (R, L, L) of what each token does not see, to two
            tensors (R, L, D).

    Returns:
        Both as (B, T, D); 0 for padding that was not computed. Under a tracer, where numbers are not looked at, it is
        computed.
    """
    plain = type(x) is Tensor and padded.shape == x.shape[:2] and len(x) > 1
    packing = packing_of(padded) if plain and not is_traced() else None
    if packing is None:
        return compute(x, padded)
    tokens = x.flatten(0, 1)
    # Free places hold some token, whose numbers are sound, and their outputs go nowhere.
    index = packing.tokens[:1].repeat(packing.hidden[..., 0].numel())
    index[packing.places] = packing.tokens
    made = compute(tokens[index].view(*packing.hidden.shape[:2], -1), packing.hidden)
    y, h = (
        out.new_zeros(len(tokens), out.shape[2]).index_copy(0, packing.tokens, out.flatten(0, 1)[packing.places])
        for out in made
    )
    return y.view(*padded.shape, -1), h.view(*padded.shape, -1)
