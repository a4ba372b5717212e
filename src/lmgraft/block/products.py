"""Products with frozen weights, where the plain way wastes memory or time.

Stored narrow   A `weight.to(x.dtype)` inside autograd keeps the widened copy of every weight until
                the backward pass: a 16-bit block would cost more than a 32-bit one. Here a piece
                is widened, used and dropped, in the forward and again in the backward pass.
Few rows        On CPU, BLAS takes up to twice as long for a few rows times a large matrix as for
                that matrix times a few columns, and read tokens are few rows.

Both are one function whose backward pass is itself, transposed. Everything else is torch's own.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lmgraft.contracts import is_traced

_PIECE = {"cpu": 1 << 21, "cuda": 1 << 26}
"""Numbers of a weight that are widened at a time; on CPU 8 MiB of float32, which stay in the cache."""

_LARGE = 1 << 20
"""Numbers of a weight from which on the order of its product matters."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b for x (..., a) and W (b, a), in the dtype of `x` or of autocast."""
    if not (_is_plainly_frozen(x, weight) and (_is_narrow(x, weight) or _few(x, weight))):
        return F.linear(x, _as_used(weight, x), None if bias is None else _as_used(bias, x))
    out: Tensor = _Product.apply(x.reshape(1, -1, x.shape[-1]), weight.unsqueeze(0), True)
    out = out.squeeze(0).view(*x.shape[:-1], weight.shape[0])
    return out if bias is None else out + bias.to(x.dtype)


def grouped(x: Tensor, weight: Tensor, *, transposed: bool) -> Tensor:
    """x W^T (transposed) or x W for each group: x (G, n, .), W (G, b, a)."""
    if _is_plainly_frozen(x, weight) and _is_narrow(x, weight):
        out: Tensor = _Product.apply(x, weight, transposed)
        return out
    used = _as_used(weight, x)
    return torch.bmm(x, used.transpose(1, 2) if transposed else used)


def _as_used(weight: Tensor, x: Tensor) -> Tensor:
    # Autocast casts both by itself: a detour over x's dtype would cost twice.
    return weight if torch.is_autocast_enabled(x.device.type) else weight.to(x.dtype)


def _is_plainly_frozen(x: Tensor, weight: Tensor) -> bool:
    """Eager, outside autocast and transforms, and nobody wants the weight's gradient."""
    if is_traced() or weight.requires_grad:
        return False  # compilers choose orders and fuse the widening themselves
    return not (torch.is_autocast_enabled(x.device.type) or torch._C._are_functorch_transforms_active())


def _is_narrow(x: Tensor, weight: Tensor) -> bool:
    return weight.dtype != x.dtype and weight.numel() > _piece(weight)


def _few(x: Tensor, weight: Tensor) -> bool:
    rows = x.numel() // max(1, x.shape[-1])
    return x.device.type == "cpu" and weight.dtype == x.dtype and 1 < rows <= 256 and weight.numel() >= _LARGE


class _Product(torch.autograd.Function):
    """`grouped` for a frozen W; saves W as it is stored."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, transposed: bool) -> Tensor:
        groups, rows, columns = weight.shape
        if weight.dtype == x.dtype and groups == 1:
            return _in_best_order(x[0], weight[0], transposed).unsqueeze(0)
        if transposed:
            out = x.new_empty(groups, x.shape[1], rows)
            for group, piece in _pieces(weight):
                out[group, :, piece] = _in_best_order(x[group], weight[group, piece].to(x.dtype), True)
            return out
        out = x.new_zeros(groups, x.shape[1], columns)
        for group, piece in _pieces(weight):
            out[group] += _in_best_order(x[group, :, piece], weight[group, piece].to(x.dtype), False)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, bool], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.save_for_forward(inputs[1])
        ctx.transposed = inputs[2]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        back: Tensor = _Product.apply(grads[0], weight, not ctx.transposed)
        return back, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        (weight,) = ctx.saved_tensors
        out: Tensor = _Product.apply(tangents[0], weight, ctx.transposed)
        return out


def _in_best_order(x: Tensor, weight: Tensor, transposed: bool) -> Tensor:
    """x W^T or x W for x (n, .); the row counts are those of benchmarks/few_rows.py."""
    few = x.device.type == "cpu" and len(x) <= 256
    if transposed:
        return (weight @ x.T).T if few and len(x) > 1 else x @ weight.T
    return (weight.T @ x.T).T if few and len(x) >= 16 else x @ weight


def _piece(weight: Tensor) -> int:
    return _PIECE.get(weight.device.type, _PIECE["cuda"])


def _pieces(weight: Tensor) -> list[tuple[int, slice]]:
    groups, rows, columns = weight.shape
    step = max(1, _piece(weight) // columns)
    return [(group, slice(i, i + step)) for group in range(groups) for i in range(0, rows, step)]
