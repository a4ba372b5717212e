"""Which tokens are meant, and how they lie in a tensor.

This room knows no model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lmgraft.contracts.traces import sizes

Tokens = None | int | slice | tuple[int, ...] | Tensor
"""Which tokens of (B, T, d), of all samples or of each.

None: all of them. An int, a slice or a tuple of ints: the same tokens for every sample.
A long tensor (R,): likewise; (B, R): its own tokens for each sample. Negative counts from the end.
"""


@dataclass(frozen=True)
class MeanOf:
    """Only the mean over these tokens is read: what is linear can be computed for the mean alone."""

    tokens: int | slice | tuple[int, ...] | None = None


Reads = Tokens | MeanOf
"""Which tokens are read later on, or that only their mean is."""


def take_tokens(x: Tensor, reads: Tokens) -> Tensor:
    """The tokens of `x` (B, T, d) named by `reads`, as (B, R, d); `x` itself for None."""
    if reads is None:
        return x
    if isinstance(reads, int):
        return x.select(1, reads).unsqueeze(1)  # a view; x[:, -1:0] would be empty for a negative index
    if isinstance(reads, slice):
        return x[:, reads]
    if isinstance(reads, tuple):
        return x[:, list(reads)]
    index = torch.where(reads < 0, reads + x.shape[1], reads).long()
    if index.dim() == 1:
        return x.index_select(1, index)
    if index.shape[0] != x.shape[0]:
        raise IndexError(f"tokens are read of {index.shape[0]} samples, but there are {x.shape[0]}")
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def take_reads(x: Tensor, reads: Reads) -> Tensor:
    """What is read of `x` (B, T, d): its tokens (B, R, d), or their mean (B, 1, d)."""
    return take_tokens(x, reads.tokens).mean(1, keepdim=True) if isinstance(reads, MeanOf) else take_tokens(x, reads)


def count_tokens(tokens: int, reads: Reads) -> int:
    """R: how many of `tokens` tokens `reads` names."""
    if isinstance(reads, MeanOf):
        return count_tokens(tokens, reads.tokens)
    if reads is None:
        return tokens
    if isinstance(reads, int):
        return 1
    if isinstance(reads, slice):
        return len(range(*reads.indices(tokens)))
    return len(reads) if isinstance(reads, tuple) else reads.shape[-1]


Axes = Literal["tokens", "NHWC", "NCHW", "any"]
"""How tokens lie at a point: (B, T, V), or a map whose places are the tokens, row by row.

any: (B, T, V), or whichever of the two maps has V at its place; a map that could be both is an error.
"""


def map_axes(x: Tensor, axes: Axes, width: int) -> Axes | None:
    """How `x` lies: `axes` where it fits, what "any" turns out to be, or None where V is not at its place."""
    fits: list[Axes] = []
    shape = sizes(x)
    if x.dim() == 3 and shape[2] == width:
        fits = ["tokens"]
    elif x.dim() == 4:
        fits = [kind for kind, axis in (("NHWC", 3), ("NCHW", 1)) if shape[axis] == width]  # type: ignore[misc]
    if axes == "any":
        return fits[0] if len(fits) == 1 else None
    return axes if axes in fits else None


def to_tokens(x: Tensor, axes: Axes) -> Tensor:
    """Tokens (B, T, V) of `x`, which lies as `map_axes` says."""
    if axes == "NHWC":
        return x.flatten(1, 2)
    return x.flatten(2).transpose(1, 2) if axes == "NCHW" else x


def from_tokens(tokens: Tensor, like: Tensor, axes: Axes) -> Tensor:
    """The inverse of `to_tokens`: `tokens` as a map of the height and width of `like`.

    Contiguous where `like` is: a convnet may `view` its maps.
    """
    if axes == "tokens":
        return tokens
    if axes == "NHWC":
        return tokens.reshape(like.shape)
    folded = tokens.transpose(1, 2).reshape(like.shape)
    return folded.contiguous() if like.is_contiguous() else folded
