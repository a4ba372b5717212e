"""Words that every room shares: axis letters, reads, token layout and the Host contract.

Axis letters, used in docstrings and long tensor names throughout:

    B batch    T tokens   R read tokens
    V vision width (the encoder's embed_dim)    D LLM width
    N query heads   M key/value heads   H head width   F MLP width

This room knows no backbone and no graft. A backbone's adapter describes the backbone
as a `Host`; the graft reads that description; neither imports the other.
"""

from __future__ import annotations

import inspect
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
    if x.dim() == 3 and x.shape[2] == width:
        fits = ["tokens"]
    elif x.dim() == 4:
        fits = [kind for kind, axis in (("NHWC", 3), ("NCHW", 1)) if x.shape[axis] == width]  # type: ignore[misc]
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


@dataclass(frozen=True, kw_only=True)
class TokenLayout:
    """How a host's tokens lie along T: prefix tokens first, then the grid, row by row."""

    num_prefix_tokens: int = 0
    """Class, distillation and register tokens before the first patch token."""
    grid: tuple[int, ...] | None = None
    """Sizes of the token grid, outermost first (rows, columns); None if unknown, and of maps, which have theirs."""
    places: Callable[[nn.Module, tuple[Any, ...]], Tensor] | None = None
    """From a model and the arguments of its call: where each token lies, (B, T, k), in the data's own units.
    Point centres, times of tubelets, ends of lanes; None where the grid says it all. A module-level function."""


@dataclass(frozen=True, kw_only=True)
class GraftPoint:
    """A place between two modules of the host where tokens pass by."""

    module: str
    """Dotted path of the module at the point, as in `named_modules()`."""
    when: Literal["before", "after"] = "after"
    """Whether the tokens are taken before or after that module."""
    last: bool = False
    """True where only the host's norm and head come after, so that reads apply."""
    width: int | None = None
    """V here; None where it is the host's `embed_dim`."""


def reads_everything(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Reads:
    """The safe answer of a host that cannot tell what its head reads."""
    return None


def no_padding(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The answer of a host whose tokens are never padded."""
    return None


def unseen_keys(mask: Tensor | None) -> Tensor | None:
    """Padded tokens by an attention mask (..., T, T), bool (True = seen) or added to the scores.

    Returns:
        (B, T) bool, True for tokens that no query sees; (1, T) for a mask without samples; None without
        a mask.
    """
    if mask is None:
        return None
    # Scores of -1e4 and less have no weight in any float format.
    seen = (mask if mask.dtype == torch.bool else mask > -1e4).any(dim=-2)
    while seen.dim() > 2:
        seen = seen.any(dim=1)
    return ~seen.reshape(-1, mask.shape[-1])


@dataclass(frozen=True, kw_only=True)
class Host:
    """Where a model can be grafted and how its head reads: plain data from an adapter.

    Functions named here are module-level ones, so that a grafted model still pickles.
    """

    embed_dim: int
    """V, the width of the tokens at the tail; in a grafted model, at its point."""
    layers: tuple[str, ...]
    """Dotted paths of the encoder layers, first to last; of stages, where the encoder has those.

    Of a stage that is an `nn.Sequential`, the path of its last child: gradient checkpointing may call
    the children and pass the stage, and its hooks, by.
    """
    first: str | None = None
    """Path of the module that the first layer starts with; None for the first layer itself."""
    embedding_paths: tuple[str, ...] = ()
    """Dotted paths of the modules and parameters before the first layer; empty where they are unknown, or
    where the model groups its parameters itself (timm's `group_matcher`)."""
    no_weight_decay: tuple[str, ...] = ()
    """Names of parameters that weight decay is not meant for: class tokens, positions. Empty where the model
    says so itself (timm's `no_weight_decay`)."""
    widths: tuple[int | None, ...] = ()
    """V before the first layer and behind each one; None where unknown. Empty: `embed_dim` everywhere."""
    axes: Axes = "tokens"
    """How tokens lie at every point."""
    layout: TokenLayout = TokenLayout()
    mapper_init: Literal["trunc_normal", "default"] = "default"
    """How this host's own linear layers are initialised; the mappers follow it."""
    reads: Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Reads] = reads_everything
    """From a call of the model: which tokens does it read behind the tail, as the model stands now? None for
    all, as where the call also asks for tokens that the head does not read (hidden states)."""
    asks_all: Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], bool] | None = None
    """Of adapters in the earlier form, with `reads(model)`: whether a call asks for all tokens."""
    padding_mask: Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Tensor | None] = no_padding
    """From a call of the module at the point: (B, T) bool, True = padded, or None."""
    run_before_existing_hooks: bool = False
    """Whether hooks that lie at the point already are to see the graft's output: true of a host that
    records its hidden states by hooks of its own."""
    head_from_tokens: Callable[[Any, Tensor], Any] | None = None
    """From the tokens behind the tail point, all (B, T, V) or the read ones (B, R, V), to the model's
    output; None where that is not known. Called with the model."""

    def __post_init__(self) -> None:
        if len(inspect.signature(self.reads).parameters) == 1:
            object.__setattr__(self, "reads", _ReadsOfModel(self.reads, self.asks_all))

    def point(self, at: str | int) -> GraftPoint | None:
        """The point that `at` names, or None when `at` is no name or index of a point."""
        depth = len(self.layers)
        if at == "head":
            width = self.widths[0] if self.widths else self.embed_dim
            module = self.first or self.layers[0]
            return None if width is None else GraftPoint(module=module, when="before", width=width)
        if at in ("middle", "tail"):
            index, last = (depth - 1, True) if at == "tail" else (max(depth // 2 - 1, 0), False)
        elif isinstance(at, int) and -depth <= at < depth:
            index, last = at % depth, at % depth == depth - 1
        else:
            return None
        return GraftPoint(module=self.layers[index], last=last, width=self.widths[index + 1] if self.widths else None)


@dataclass(frozen=True)
class _ReadsOfModel:
    """`Host.reads` of an adapter in the earlier form: `reads(model)`, and `asks_all` of the call."""

    reads: Callable[..., Reads]
    asks_all: Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], bool] | None

    def __call__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Reads:
        return None if self.asks_all is not None and self.asks_all(model, args, kwargs) else self.reads(model)
