"""Where a model can be grafted and how its head reads: what an adapter says of a backbone.

This room knows no backbone and no graft; neither imports the other, both speak `Host`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from lmgraft.contracts.tokens import Axes, Reads


class Output(Protocol):
    """Where the tokens are in what a layer returns, which may hold more than them."""

    def take(self, output: Any) -> Any:
        """Return the tokens (B, T, V), or the map, of `output`."""
        ...

    def put(self, output: Any, tokens: Tensor) -> Any:
        """Return `output` with `tokens`, all of them or those that are read, in the place of its own."""
        ...


@dataclass(frozen=True)
class Entry:
    """Tokens that are one entry of a tuple or a list; a tensor that is returned alone is taken as it is."""

    index: int | None = None
    """Position of the tokens. None: first in a tuple, while a list is left to be refused."""

    def take(self, output: Any) -> Any:
        """Return the entry that holds the tokens, or `output` itself where it has no such entry."""
        index = self.index or 0
        is_known = isinstance(output, tuple) or (self.index is not None and isinstance(output, list))
        return output[index] if is_known and -len(output) <= index < len(output) else output

    def put(self, output: Any, tokens: Tensor) -> Any:
        """Return `tokens`, or a tuple or list like `output` with them in it."""
        if not isinstance(output, (tuple, list)):
            return tokens
        entries = [*output]
        entries[self.index or 0] = tokens
        return entries if isinstance(output, list) else tuple(entries)


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
    parts: Callable[[nn.Module, tuple[Any, ...]], Tensor] | None = None
    """From the same, for pictures: where the K points lie that each token is made of, (B, T, K, k), NaN for none. None
    where a token is shown at its place."""
    shares: Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor] | None = None
    """From a model, the arguments of its call and a truth (B, ...), bool, of what these hold (points): the share of
    each token that the truth is of, (B, T), NaN for tokens that lie nowhere. None where patches of the grid say it."""


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
    output: Output = Entry()
    """Where tokens are in what a layer returns."""
    layout: TokenLayout = TokenLayout()
    mapper_init: Literal["trunc_normal", "default"] = "default"
    """How this host's own linear layers are initialised; the mappers follow it."""
    reads: Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Reads] = reads_everything
    """From a call of the model: which tokens does it read behind the tail, as the model stands now? None for
    all, as where the call also asks for tokens that the head does not read (hidden states)."""
    padding_mask: Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Tensor | None] = no_padding
    """From a call of the module at the point: (B, T) bool, True = padded, or None."""
    run_before_existing_hooks: bool = False
    """Whether hooks that lie at the point already are to see the graft's output: true of a host that
    records its hidden states by hooks of its own."""
    head_from_tokens: Callable[[Any, Tensor], Any] | None = None
    """From the tokens behind the tail point, all (B, T, V) or the read ones (B, R, V), to the model's
    output; None where that is not known. Called with the model."""
    varying: tuple[Mapping[int, str], ...] = ()
    """For each input of a call: axes beside the batch whose size differs from call to call -> a name, the same for axes
    that go together ({1: "agents"}). Exported programs take any size there. Empty where the batch alone differs."""
    not_exported: str = ""
    """Why no program can be made of it, for the error; empty where one can."""

    def point(self, at: str | int) -> GraftPoint | None:
        """The point that `at` names, or None when `at` is no name or index of a point."""
        depth = len(self.layers)
        if not depth:
            return None
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
