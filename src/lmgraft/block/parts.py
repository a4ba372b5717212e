"""The parts of a block: norms, attention without order, MLPs.

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

from lmgraft.block.config import ACTIVATIONS, BlockConfig, NormKind
from lmgraft.block.frozen import FrozenModule


class Norm(FrozenModule):
    """A norm over the last axis, computed in float32 or wider, returned in the input's dtype.

    Args:
        kind: See `NormKind`.
        eps: Added to the mean square (variance).
        weight: Gain, as stored; None is a gain of one.
        bias: Shift of a LayerNorm; None is zero.
    """

    def __init__(self, kind: NormKind, eps: float, weight: Tensor | None = None, bias: Tensor | None = None) -> None:
        super().__init__()
        self.kind, self.eps = kind, eps
        self.weight = None if weight is None else Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        if self.kind == "layer":
            wide = wide - wide.mean(-1, keepdim=True)
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        if self.weight is not None:
            gain = self.weight.to(wide.dtype)
            if gain.dim() == 2:  # a gain for each head, with x as (B, heads, T, H)
                gain = gain.unsqueeze(-2)
            normed = normed * (1 + gain if self.kind == "rms_plus_one" else gain)
        if self.bias is not None:
            normed = normed + self.bias.to(wide.dtype)
        return normed.to(x.dtype)


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

    def __init__(self, config: BlockConfig, tensors: Mapping[str, Tensor], scale: float | None) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        self.scale = config.head_dim**-0.5 if scale is None else scale
        self.softcap, self.clip, self.qk_norm = config.logit_softcap, config.clip_qkv, config.qk_norm
        self.q, self.k, self.v, self.o = (_projection(tensors, f"attention.{n}") for n in "qkvo")
        if config.qk_norm != "none":
            self.q_norm, self.k_norm = (
                Norm(config.norm, config.norm_eps, tensors[f"attention.{n}_norm.weight"]) for n in "qk"
            )

    def forward(self, queries: Tensor, x: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
        """Attend from `queries` (B, R, D) to `x` (B, T, D); True in the mask (B, T) = padded."""
        q, k, v = (self._bounded(p(y)) for p, y in ((self.q, queries), (self.k, x), (self.v, x)))
        if self.qk_norm == "full_width":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (self._heads(y, n) for y, n in ((q, self.num_heads), (k, self.num_kv_heads), (v, self.num_kv_heads)))
        if self.qk_norm in ("per_head", "per_own_head"):
            q, k = self.q_norm(q), self.k_norm(k)
        group = self.num_heads // self.num_kv_heads
        if group > 1:  # grouped queries: each key/value head serves `group` query heads
            k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        if key_padding_mask is None:
            out: Tensor = self.o(self._mix(q, k, v, None).transpose(1, 2).flatten(2))
            return out
        visible = ~key_padding_mask[:, None, None, :]
        # A sample without any visible key would be a softmax over nothing: let it see all
        # keys (finite numbers, finite gradients), then take exactly zero instead.
        alone = ~visible.any(-1, keepdim=True)
        out = self.o(self._mix(q, k, v, visible | alone).transpose(1, 2).flatten(2))
        return out.masked_fill(alone[:, 0], 0.0)

    def _mix(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
        if self.softcap is None:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=self.scale)
        scores = self.softcap * torch.tanh(q @ k.transpose(-1, -2) * (self.scale / self.softcap))
        if visible is not None:
            scores = scores.masked_fill(~visible, float("-inf"))
        wide = scores if scores.dtype == torch.float64 else scores.float()
        return wide.softmax(-1).to(v.dtype) @ v

    def _bounded(self, x: Tensor) -> Tensor:
        return x if self.clip is None else x.clamp(-self.clip, self.clip)

    def _heads(self, x: Tensor, heads: int) -> Tensor:
        """(B, T, heads * H) -> (B, heads, T, H)."""
        batch, tokens, _ = x.shape
        return x.reshape(batch, tokens, heads, self.head_dim).transpose(1, 2)


class MLP(FrozenModule):
    """down(act(gate(x)) * up(x)), or down(act(up(x))) without a gate."""

    def __init__(self, config: BlockConfig, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.activation = config.activation
        self.gate = _projection(tensors, "mlp.gate") if config.mlp == "gated" else None
        self.up, self.down = _projection(tensors, "mlp.up"), _projection(tensors, "mlp.down")

    def forward(self, x: Tensor) -> Tensor:
        act = ACTIVATIONS[self.activation]
        out: Tensor = self.down(act(self.up(x)) if self.gate is None else act(self.gate(x)) * self.up(x))
        return out


def _projection(tensors: Mapping[str, Tensor], name: str) -> Projection:
    return Projection(tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))
