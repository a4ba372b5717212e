"""Products with frozen weights that are stored narrower than the computing dtype.

A plain `weight.to(x.dtype)` inside autograd keeps the widened copy of every weight until the
backward pass: a 16-bit block would cost more than a 32-bit one. Here a piece is widened, used
and dropped, in the forward and again in the backward pass, so a 16-bit block costs its own size
and one piece.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_PIECE = 1 << 21
"""Numbers of a weight that are widened at a time: 8 MiB in float32, which stays in the cache."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b for x (..., a) and W (b, a), in the dtype of `x` or of autocast."""
    if not _needs_pieces(x, weight):
        return F.linear(x, _as_used(weight, x), None if bias is None else _as_used(bias, x))
    out: Tensor = _InPieces.apply(x.flatten(0, -2).unsqueeze(0), weight.unsqueeze(0), True)
    out = out.view(*x.shape[:-1], weight.shape[0])
    return out if bias is None else out + bias.to(x.dtype)


def grouped(x: Tensor, weight: Tensor, *, transposed: bool) -> Tensor:
    """x W^T (transposed) or x W for each group: x (G, n, .), W (G, b, a)."""
    if _needs_pieces(x, weight):
        out: Tensor = _InPieces.apply(x, weight, transposed)
        return out
    used = _as_used(weight, x)
    return torch.bmm(x, used.transpose(1, 2) if transposed else used)


def _as_used(weight: Tensor, x: Tensor) -> Tensor:
    # Autocast casts both by itself: a detour over x's dtype would cost twice.
    return weight if torch.is_autocast_enabled(x.device.type) else weight.to(x.dtype)


def _needs_pieces(x: Tensor, weight: Tensor) -> bool:
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type):
        return False  # compilers fuse the widening themselves
    return weight.dtype != x.dtype and weight.numel() > _PIECE and not weight.requires_grad


class _InPieces(torch.autograd.Function):
    """`grouped` for a frozen W; saves W as it is stored."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, transposed: bool) -> Tensor:
        groups, rows, columns = weight.shape
        if transposed:
            out = x.new_empty(groups, x.shape[1], rows)
            for group, piece in _pieces(weight):
                out[group, :, piece] = x[group] @ weight[group, piece].to(x.dtype).T
            return out
        out = x.new_zeros(groups, x.shape[1], columns)
        for group, piece in _pieces(weight):
            out[group].addmm_(x[group, :, piece], weight[group, piece].to(x.dtype))
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, bool], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.transposed = inputs[2]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        back: Tensor = _InPieces.apply(grads[0], weight, not ctx.transposed)
        return back, None, None


def _pieces(weight: Tensor) -> list[tuple[int, slice]]:
    groups, rows, columns = weight.shape
    step = max(1, _PIECE // columns)
    return [(group, slice(i, i + step)) for group in range(groups) for i in range(0, rows, step)]
