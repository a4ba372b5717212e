"""A twin of a block whose projections are computed in fewer bits: quicker, and not exact.

    int8    weights rounded once, for each output channel; inputs at each call, for each token.
            CPU, by oneDNN: products of unsigned inputs and signed weights, summed exactly.
    16bit   weights and inputs in bfloat16, sums as the device makes them

Norms, softmax and residuals stay as wide as the input. The twin's own weights are the block's:
no second copy, and what reads a weight instead of calling a projection reads the exact one.
Forward only; who may call a twin, and when, is not decided here.
"""

from __future__ import annotations

import copy
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter

from lmgraft.block.block import FrozenBlock
from lmgraft.block.lora import LoraProjection
from lmgraft.block.parts import Projection
from lmgraft.errors import ApproximationError, first_line

_SMALLEST = 1e-30
"""Least scale of a row: one of zeros must not divide by zero."""


def round_block(block: FrozenBlock, mode: str) -> FrozenBlock:
    """A twin of `block` over the same storage, its projections replaced.

    Weights are rounded at a projection's first call: one that is never called costs nothing.

    Args:
        block: Its subclassed or wrapped projections are left exact.
        mode: "int8" or "16bit".

    Raises:
        ApproximationError: If this machine has no int8 products.
    """
    if mode == "int8":
        activation_levels()
    with torch.inference_mode(False), torch.no_grad():
        shared = {id(p): Parameter(p.data, requires_grad=False) for p in block.parameters()}
        twin: FrozenBlock = copy.deepcopy(block, dict(shared))
    kind: type[HalfProjection | Int8Projection] = Int8Projection if mode == "int8" else HalfProjection
    for parent in list(twin.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is Projection:
                setattr(parent, name, kind(child))
            elif type(child) is LoraProjection:
                setattr(parent, name, RoundedLora(child, kind))
    return twin


class HalfProjection(Projection):
    """x W^T + b in bfloat16, returned in the dtype of x."""

    def __init__(self, exact: Projection) -> None:
        nn.Module.__init__(self)
        self.weight, self.bias = exact.weight, exact.bias
        self._rounded: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self._rounded is None:
            with torch.inference_mode(False), torch.no_grad():
                self._rounded = self.weight.to(torch.bfloat16)
        out = F.linear(x.to(torch.bfloat16), self._rounded).to(x.dtype)
        return out if self.bias is None else out + self.bias.to(x.dtype)

    def added_memory(self) -> int:
        """Bytes of rounded weights beside the exact ones."""
        own = self._rounded
        return 0 if own is None or own.data_ptr() == self.weight.data_ptr() else own.numel() * own.element_size()


class Int8Projection(Projection):
    """x W^T + b by 8-bit integers, returned in the dtype of x.

    A scale for each token keeps one large token from coarsening the others, and carries a NaN
    of a token through to all its outputs.
    """

    def __init__(self, exact: Projection) -> None:
        nn.Module.__init__(self)
        self.weight, self.bias = exact.weight, exact.bias
        self._rounded: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self._rounded is None:
            with torch.inference_mode(False), torch.no_grad():
                self._rounded = pack(self.weight)
        rows = x.flatten(0, -2).float()
        if not rows.shape[0]:
            return x.new_zeros(*x.shape[:-1], self.weight.shape[0])
        levels = activation_levels()
        scale = (rows.abs().amax(-1, keepdim=True) / levels).clamp_min(_SMALLEST)
        out = multiply(rows, scale, levels, *self._rounded)
        out = out.mul_(scale) if self.bias is None else torch.addcmul(self.bias.float(), out, scale)
        return out.view(*x.shape[:-1], -1).to(x.dtype)

    def added_memory(self) -> int:
        """Bytes of rounded weights and their scales beside the exact ones."""
        return 0 if self._rounded is None else self.weight.numel() + 4 * self.weight.shape[0]


class RoundedLora(LoraProjection):
    """A LoRA projection whose frozen part is rounded; its low-rank part is computed as it is."""

    def __init__(self, exact: LoraProjection, kind: type[HalfProjection | Int8Projection]) -> None:
        nn.Module.__init__(self)
        self.weight, self.bias, self.scale = exact.weight, exact.bias, exact.scale
        self.lora_a, self.lora_b = exact.lora_a, exact.lora_b
        self.rounded = kind(exact)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.rounded(x)
        return out + self._low_rank(x)


def pack(weight: Tensor) -> tuple[Tensor, Tensor]:
    """`weight` (P, K) as oneDNN multiplies it, and the scale of each row (P,)."""
    wide = weight.detach().float()
    scale = (wide.abs().amax(1) / 127).clamp_min(_SMALLEST)
    rounded = (wide / scale.unsqueeze(1)).round_().to(torch.int8)
    return torch.ops.onednn.qlinear_prepack(rounded, None), scale


def multiply(rows: Tensor, scale: Tensor, levels: int, packed: Tensor, weight_scale: Tensor) -> Tensor:
    """(M, P) float32: `rows` / `scale` (M, K), rounded to -levels ... levels, times a packed weight."""
    zero = levels + 1
    # Conversion cuts off, and all numbers are positive: half more rounds to the nearest.
    quantised = (rows / scale).add_(zero + 0.5).to(torch.uint8)
    zeros = torch.zeros(weight_scale.shape, dtype=torch.int32)
    out: Tensor = torch.ops.onednn.qlinear_pointwise(
        quantised, 1.0, zero, packed, weight_scale, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return out


@lru_cache(maxsize=1)
def activation_levels() -> int:
    """Steps between zero and a token's largest number: 127, or 63 on CPUs whose sums overflow.

    Without VNNI instructions two products of 8 bits are summed in 16, and stop at 32767. Found
    by a product of the largest numbers. Inputs up to 127 cannot get there.

    Raises:
        ApproximationError: If this build of torch or this CPU has no int8 products.
    """
    rows = torch.ones(16, 64)
    try:
        packed, weight_scale = pack(torch.ones(16, 64))
        out = multiply(rows, torch.full((16, 1), 1 / 127), 127, packed, weight_scale) / 127
    except (RuntimeError, AttributeError) as error:
        raise ApproximationError(
            f"int8 products of torch {torch.__version__} do not work here ({first_line(error)})",
            'use mode="16bit", or a build of torch with oneDNN on an x86 CPU',
        ) from None
    return 127 if torch.allclose(out, rows.new_full((), 64.0), rtol=1e-3) else 63
