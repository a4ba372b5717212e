"""The parts of a block: RMSNorm, attention without order, gated MLP.

Weights are plain Parameters, not nn.Linear, so that a host's weight initialisation, which walks
all nn.Linear modules, cannot touch them. Weights kept in another dtype than the input are
widened or narrowed at use: computing happens in the host's dtype.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter

from lmgraft.block.config import ACTIVATIONS, BlockConfig
from lmgraft.block.frozen import FrozenModule


def rms_norm(x: Tensor, eps: float, weight: Tensor | None = None) -> Tensor:
    """x / rms(x) x weight over the last axis, computed in float32 or wider, returned in x's dtype."""
    wide = x if x.dtype == torch.float64 else x.float()
    normed = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)
    return normed if weight is None else normed * weight.to(x.dtype)


class RMSNorm(FrozenModule):
    """RMSNorm with a gain; without one it is the unit-gain norm of the paper's code."""

    def __init__(self, eps: float, weight: Tensor | None = None) -> None:
        super().__init__()
        self.eps = eps
        self.weight = None if weight is None else Parameter(weight, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.eps, self.weight)


class Projection(FrozenModule):
    """x W^T + b."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.weight = Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


class Attention(FrozenModule):
    """Softmax attention over all visible tokens: no causal mask, no positions (paper, Section 3).

    Some query rows may be asked for instead of all: a token's output depends on every key and
    value, but only on its own query.
    """

    def __init__(self, config: BlockConfig, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        self.q, self.k, self.v, self.o = (_projection(tensors, f"attention.{n}") for n in "qkvo")

    def forward(self, queries: Tensor, x: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
        """Attend from `queries` (B, R, D) to `x` (B, T, D); True in the mask (B, T) = padded."""
        q = self._heads(self.q(queries), self.num_heads)
        k = self._heads(self.k(x), self.num_kv_heads)
        v = self._heads(self.v(x), self.num_kv_heads)
        group = self.num_heads // self.num_kv_heads
        if group > 1:  # grouped queries: each key/value head serves `group` query heads
            k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        visible = None if key_padding_mask is None else ~key_padding_mask[:, None, None, :]
        if visible is None:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            # A sample without any visible key would be a softmax over nothing: let it see all
            # keys (finite numbers, finite gradients), then take exactly zero instead.
            alone = ~visible.any(-1, keepdim=True)
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=visible | alone)
        out: Tensor = self.o(mixed.transpose(1, 2).flatten(2))
        return out if visible is None else out.masked_fill(alone[:, 0], 0.0)

    def _heads(self, x: Tensor, heads: int) -> Tensor:
        """(B, T, heads * H) -> (B, heads, T, H)."""
        batch, tokens, _ = x.shape
        return x.reshape(batch, tokens, heads, self.head_dim).transpose(1, 2)


class GatedMLP(FrozenModule):
    """down(act(gate(x)) * up(x))."""

    def __init__(self, config: BlockConfig, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.activation = config.activation
        self.gate, self.up, self.down = (_projection(tensors, f"mlp.{n}") for n in ("gate", "up", "down"))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(ACTIVATIONS[self.activation](self.gate(x)) * self.up(x))
        return out


def _projection(tensors: Mapping[str, Tensor], name: str) -> Projection:
    return Projection(tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))
