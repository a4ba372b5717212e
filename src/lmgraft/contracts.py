"""Words that every room shares: axis letters, reads, token layout and the Host contract.

Axis letters, used in docstrings and long tensor names throughout:

    B batch    T tokens   R read tokens
    V vision width (the encoder's embed_dim)    D LLM width
    N query heads   M key/value heads   H head width   F MLP width

This room knows no backbone and no graft. A backbone's adapter describes the backbone
as a `Host`; the graft reads that description; neither imports the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

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
        if not -x.shape[1] <= reads < x.shape[1]:
            raise IndexError(f"token {reads} is read, but there are {x.shape[1]}")
        # narrow() keeps a view; x[:, -1:0] would be empty for a negative index.
        return x.narrow(1, reads % x.shape[1], 1)
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


@dataclass(frozen=True, kw_only=True)
class TokenLayout:
    """How a host's tokens lie along T: prefix tokens first, then the grid, row by row."""

    num_prefix_tokens: int = 0
    """Class, distillation and register tokens before the first patch token."""
    grid: tuple[int, ...] | None = None
    """Sizes of the token grid, outermost first (rows, columns); None if unknown."""


@dataclass(frozen=True, kw_only=True)
class GraftPoint:
    """A place between two modules of the host where tokens (B, T, V) pass by."""

    module: str
    """Dotted path of the module at the point, as in `named_modules()`."""
    when: Literal["before", "after"] = "after"
    """Whether the tokens are taken before or after that module."""
    last: bool = False
    """True where only the host's norm and head come after, so that reads apply."""


def reads_everything(model: nn.Module) -> Reads:
    """The safe answer of a host that cannot tell what its head reads."""
    return None


def no_padding(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The answer of a host whose tokens are never padded."""
    return None


@dataclass(frozen=True, kw_only=True)
class Host:
    """Where a model can be grafted and how its head reads: plain data from an adapter.

    Functions named here are module-level ones, so that a grafted model still pickles.
    """

    embed_dim: int
    """V, the width of the tokens at every point."""
    layers: tuple[str, ...]
    """Dotted paths of the encoder layers, first to last."""
    layout: TokenLayout = TokenLayout()
    mapper_init: Literal["trunc_normal", "default"] = "default"
    """How this host's own linear layers are initialised; the mappers follow it."""
    reads: Callable[[nn.Module], Reads] = reads_everything
    """Asked at every call: which tokens does the head read as the model stands now?"""
    padding_mask: Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Tensor | None] = no_padding
    """From a call of the module at the point: (B, T) bool, True = padded, or None."""

    def point(self, at: str | int) -> GraftPoint | None:
        """The point that `at` names, or None when `at` is no name or index of a point."""
        depth = len(self.layers)
        if at == "head":
            return GraftPoint(module=self.layers[0], when="before")
        if at == "middle":
            return GraftPoint(module=self.layers[depth // 2 - 1] if depth > 1 else self.layers[0])
        index = depth - 1 if at == "tail" else at
        if not isinstance(index, int) or not -depth <= index < depth:
            return None
        index %= depth
        return GraftPoint(module=self.layers[index], last=index == depth - 1)
