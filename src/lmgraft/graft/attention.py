"""Attention of an encoder's layer, noted while the layer runs, whoever computes it by torch's own function.

Knows no host: whatever calls `torch.nn.functional.scaled_dot_product_attention` is seen, and nothing else.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lmgraft.contracts import is_traced
from lmgraft.errors import HostError
from lmgraft.graft.reads import ReadState

_ROWS = 64  # rows of attention weights at a time

Weights = Callable[[Tensor], Tensor]
"""From scores q k^T (B, N, R, T) to weights."""


def mean_attention(q: Tensor, k: Tensor, weights: Weights) -> Tensor:
    """Attention of q (B, N, R, H) to k (B, M, T, H), the mean over its rows: (B, N, T), float32."""
    keys = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1).transpose(-1, -2)
    # A few rows at a time: all weights of 1,568 tokens and 32 heads are 315 MB a sample.
    parts = (weights(part @ keys).float().sum(2) for part in torch.split(q, _ROWS, dim=2))
    total: Tensor = functools.reduce(torch.add, parts)
    return total / q.shape[2]


class CatchAttention(TorchFunctionMode):
    """Inside, `note` is called with queries, keys and the function from scores to weights of each attention."""

    def __init__(self, note: Callable[[Tensor, Tensor, Weights], None]) -> None:
        super().__init__()
        self.note = note

    def begin(self, *_: Any) -> None:
        """A hook before the layer."""
        self.__enter__()  # type: ignore[no-untyped-call]

    def end(self, *_: Any) -> None:
        """A hook behind the layer, called though it fails."""
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            given = dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)) | kwargs
            q, k, mask, scale = given["query"], given["key"], given.get("attn_mask"), given.get("scale")
            if q.shape[-2] == k.shape[-2] and q.dim() == 4 and (mask is None or mask.shape[-2] == 1):

                def weights(scores: Tensor) -> Tensor:
                    scores = scores * (q.shape[-1] ** -0.5 if scale is None else scale)
                    if mask is not None and mask.dtype == torch.bool:
                        scores = scores.masked_fill(~mask, float("-inf"))
                    return (scores if mask is None or mask.dtype == torch.bool else scores + mask).softmax(-1)

                self.note(q, k, weights)
        return func(*args, **kwargs)


_open: ContextVar[tuple[tuple[object, list[Tensor]], ...]] = ContextVar("lmgraft_attention", default=())
"""Layers that run now, innermost last: by which pair of hooks each is watched, and what was received in it."""


class BeginWatch:
    """Forward pre-hook on a layer: from now on its attention is noted, for `received_attention`.

    Args:
        state: Of the graft that this belongs to.
    """

    def __init__(self, state: ReadState) -> None:
        self.state = state

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if is_traced():
            raise HostError(
                "budget_rule='attention' looks at the encoder's attention as it runs, which no traced program can",
                "choose another budget_rule, or do not compile or export the model",
            )
        received: list[Tensor] = []

        @torch.no_grad()
        def note(q: Tensor, k: Tensor, weights: Weights) -> None:
            received.append(mean_attention(q.detach(), k.detach(), weights).mean(1))

        CatchAttention(note).begin()
        _open.set((*_open.get(), (self.state, received)))


class EndWatch:
    """Always-called forward hook on a layer: ends what `BeginWatch` of the same state began."""

    def __init__(self, state: ReadState) -> None:
        self.state = state

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        watched = _open.get()
        if watched and watched[-1][0] is self.state:
            _open.set(watched[:-1])
            CatchAttention(lambda *_: None).end()


def received_attention() -> Tensor | None:
    """(B, T): the mean attention that each token got in the innermost watched layer; None where there is none."""
    watched = _open.get()
    return watched[-1][1][-1] if watched and watched[-1][1] else None
