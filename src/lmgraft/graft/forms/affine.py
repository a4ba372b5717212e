"""What attention sees of a token, as an affine map of something narrower.

The mapper makes the block's input a linear image of a V-wide token, h = W1 x, so its norm is

    u = A y + b      with  y = x n,   A = diag(g) W1,   n = (x^T G x / D + eps)^(-1/2),   G = W1^T W1

and for a LayerNorm W1 is first centred over D, W1c = (I - 1 1^T / D) W1. Neither h nor u, D wide,
is ever formed for a token. Without a norm before attention n is one. A mapper's bias is one more
column of W1 and a one appended to x.

Norm scales and Gram matrices are float32 or wider whatever autocast and TF32 say. Knows tensors,
not modules of a host.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from lmgraft.block.parts import Norm, Projection, at_least_float32
from lmgraft.block.products import grouped

_Function = TypeVar("_Function", bound=Callable[..., object])


def constant_in_traces(function: _Function) -> _Function:
    """Mark it to run once in a trace, as `torch.compiler.assume_constant_result` does by importing the compiler.

    That import takes as long as torch's own, and most who import lmgraft compile nothing.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@dataclass(frozen=True)
class Affine:
    """A mapper and the norm behind it. C is V, or V + 1 where the mapper has a bias."""

    matrix: Tensor
    """A (D, C)."""
    shift: Tensor | None
    """b (D,): the shift of a LayerNorm."""
    gram: Tensor | None
    """G (C, C) of the centred, ungained mapper; None without a norm."""
    eps: float


@dataclass(frozen=True)
class Fold:
    """A projection behind the affine map: W u + c = weight y + bias."""

    weight: Tensor
    """W A (P, C)."""
    bias: Tensor | None
    """W b + c (P,)."""

    def by_group(self, x: Tensor, groups: int, *, transposed: bool) -> Tensor:
        """As `Projection.by_group`."""
        return grouped(x, self.weight.view(groups, -1, self.weight.shape[1]), transposed=transposed)


def affine(mapper: nn.Linear, norm: nn.Module) -> Affine:
    """The affine map of `mapper` and the attention norm behind it, differentiable in both."""
    weight: Tensor = mapper.weight
    if mapper.bias is not None:
        weight = torch.cat([weight, mapper.bias.unsqueeze(1)], dim=1)
    if not isinstance(norm, Norm):
        return Affine(weight, None, None, 0.0)
    with _exactly(weight):
        wide = at_least_float32(weight)
        if norm.kind == "layer":
            wide = wide - wide.mean(0, keepdim=True)
        gain = norm.gain(wide.dtype)
        matrix = wide if gain is None else wide * gain.unsqueeze(1)
        exact = _exact(wide)
        gram = (exact.T @ exact).to(wide.dtype)
    return Affine(matrix.to(weight.dtype), norm.bias, gram, norm.eps)


def narrow_tokens(x: Tensor, mapper: nn.Linear, map_: Affine) -> Tensor:
    """y (B, T, C), float32 or wider, of x (B, T, V)."""
    with _exactly(x):
        y = at_least_float32(x)
        if mapper.bias is not None:
            y = torch.cat([y, y.new_ones(*y.shape[:-1], 1)], dim=-1)
        if map_.gram is None:
            return y
        exact = _exact(y)
        # Rounding can leave a token that the mapper nearly annihilates a little below zero.
        square = (exact @ map_.gram.to(exact.dtype) * exact).sum(-1, keepdim=True).clamp_min(0).to(y.dtype)
        return y * torch.rsqrt(square / mapper.out_features + map_.eps)


def fold(map_: Affine, projection: Projection) -> Fold:
    """`projection` behind `map_`, as one narrow projection."""
    rows = map_.matrix.T
    if map_.shift is not None:
        rows = torch.cat([rows, map_.shift.to(rows.dtype).unsqueeze(0)])
    folded = projection.without_bias(rows)
    bias: Tensor | None = projection.bias
    if map_.shift is not None:
        bias = folded[-1] if bias is None else folded[-1] + bias.to(folded.dtype)
        folded = folded[:-1]
    return Fold(folded.T, bias)


def _exact(x: Tensor) -> Tensor:
    """Where float32 products may be rounded to TF32 or bfloat16, in float64 instead."""
    return x.double() if _float32_is_rounded(x.device.type) else x


@constant_in_traces
def _float32_is_rounded(device: str) -> bool:
    backend = torch.backends.cuda if device == "cuda" else torch.backends.mkldnn
    precision = getattr(getattr(backend, "matmul", None), "fp32_precision", None)
    if precision is None:  # torch before 2.9
        return torch.get_float32_matmul_precision() != "highest"
    return precision not in ("none", "ieee")


def _exactly(x: Tensor) -> torch.autocast:
    return torch.autocast(x.device.type, enabled=False)
