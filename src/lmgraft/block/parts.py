"""The parts of a block: norms, attention without order, MLPs.

Weights are plain Parameters, not nn.Linear, so that a host's weight initialisation, which walks
all nn.Linear modules, cannot touch them. Weights kept in another dtype than the input are
widened or narrowed at use: computing happens in the host's dtype.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter

from lmgraft.block.config import ACTIVATIONS, BlockConfig, NormKind
from lmgraft.block.frozen import FrozenModule
from lmgraft.block.products import grouped, linear


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
        wide = at_least_float32(x)
        if self.kind == "layer":
            wide = wide - wide.mean(-1, keepdim=True)
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        gain = self.gain(wide.dtype)
        if gain is not None:  # (heads, H) is a gain for each head, with x as (B, heads, T, H)
            normed = normed * (gain.unsqueeze(-2) if gain.dim() == 2 else gain)
        if self.bias is not None:
            normed = normed + self.bias.to(wide.dtype)
        return normed.to(x.dtype)

    def gain(self, dtype: torch.dtype) -> Tensor | None:
        """What the normed vector is multiplied by; None for one."""
        if self.weight is None:
            return None
        return self.weight.to(dtype) + 1 if self.kind == "rms_plus_one" else self.weight.to(dtype)


class Scale(FrozenModule):
    """x times one number."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = Parameter(weight, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight.to(x.dtype)


class Projection(FrozenModule):
    """x W^T + b."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.weight = Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)

    @classmethod
    def of(cls, linear: nn.Linear) -> Projection:
        """The same tensors, in the same dict, as a projection."""
        made = cls(linear.weight, linear.bias)
        made._parameters = linear._parameters
        made.in_features, made.out_features = linear.in_features, linear.out_features  # type: ignore[assignment]
        return made

    def without_bias(self, x: Tensor) -> Tensor:
        """x W^T."""
        return linear(x, self.weight)

    def by_group(self, x: Tensor, groups: int, *, transposed: bool) -> Tensor:
        """x W_g^T (transposed) or x W_g for each of `groups` equal parts of the rows of W: x (G, n, .)."""
        return grouped(x, self.weight.view(groups, -1, self.weight.shape[1]), transposed=transposed)


class Attention(FrozenModule):
    """Softmax attention over all visible tokens: no causal mask, no positions (paper, Section 3).

    Some query rows may be asked for instead of all: a token's output depends on every key and
    value, but only on its own query.
    """

    v: Projection | None
    """None where values are made from the keys' projection (`latent.py`)."""
    sink_bias: Parameter | None

    def __init__(self, config: BlockConfig, tensors: Mapping[str, Tensor], scale: float | None) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        self.scale = config.head_dim**-0.5 if scale is None else scale
        self.softcap, self.clip, self.qk_norm = config.logit_softcap, config.clip_qkv, config.qk_norm
        self.q, self.k, self.o = (projection(tensors, f"attention.{n}") for n in "qko")
        self.v = None if config.kv_rank else projection(tensors, "attention.v")
        self.q_gate = projection(tensors, "attention.q_gate") if config.query_gate else None
        self.v_norm = Norm(config.norm, config.norm_eps) if config.value_norm else None
        sink = tensors.get("attention.sink_bias")
        self.sink_bias = None if sink is None else Parameter(sink, requires_grad=False)
        if config.qk_norm != "none":
            self.q_norm, self.k_norm = (
                Norm(config.norm, config.norm_eps, tensors[f"attention.{n}_norm.weight"]) for n in "qk"
            )

    def forward(self, queries: Tensor, x: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
        """Attend from `queries` (B, R, D) to `x` (B, T, D); True in the mask (B, T) = padded, or (B, R, T)."""
        q = self.split_queries(self.q(queries))
        k = self.split_keys(self.k(x))
        v = self.values_in(k) if self.v is None else self.split_values(self.v(x))
        visible, alone = see(key_padding_mask)
        return self.output(self.gated(self.mix(q, k, v, visible), queries), alone)

    def inputs(self) -> dict[str, Projection]:
        """What the layer's normed input is projected to for queries, keys and values; "v" only where it is its own."""
        named = {"q": self.q, "k": self.k, "v": self.v}
        return {name: module for name, module in named.items() if module is not None}

    def split_queries(self, q: Tensor) -> Tensor:
        """Projected queries (B, R, N x H) -> (B, N, R, H), bounded and normed."""
        return self._split(q, self.num_heads, "q_norm")

    def split_keys(self, k: Tensor) -> Tensor:
        """Projected keys (B, T, M x H) -> (B, M, T, H), bounded and normed."""
        return self._split(k, self.num_kv_heads, "k_norm")

    def split_values(self, v: Tensor) -> Tensor:
        """Projected values (B, T, M x H) -> (B, M, T, H), bounded and normed."""
        values = self._split(v, self.num_kv_heads, None)
        return values if self.v_norm is None else self.v_norm(values)

    def values_in(self, k: Tensor) -> Tensor:
        """The values that lie in the keys of `split_keys`, where there is no projection for values."""
        raise NotImplementedError("keys and values have a projection each")

    def mix(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
        """softmax(q k^T) v: (B, N, R, H)."""
        group = self.num_heads // self.num_kv_heads
        if group > 1:  # grouped queries: each key/value head serves `group` query heads
            k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        if self.softcap is None and self.sink_bias is None:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=self.scale)
        return self.weights(q @ k.transpose(-1, -2), visible).to(v.dtype) @ v

    def weights(self, scores: Tensor, visible: Tensor | None) -> Tensor:
        """Attention weights (B, N, R, T), float32 or wider, of raw scores q k^T."""
        wide = at_least_float32(scores) * self.scale
        if self.softcap is not None:
            wide = self.softcap * torch.tanh(wide / self.softcap)
        if visible is not None:
            wide = wide.masked_fill(~visible, float("-inf"))
        if self.sink_bias is None:
            return wide.softmax(-1)
        sink = self.sink_bias.to(wide.dtype).view(1, -1, 1, 1).expand(*wide.shape[:3], 1)
        return torch.cat([wide, sink], -1).softmax(-1)[..., :-1]

    def gated(self, context: Tensor, queries: Tensor | None) -> Tensor:
        """Contexts (B, N, R, H), times the gates of their tokens `queries` (B, R, D) where there are any."""
        if self.q_gate is None:
            return context
        gate = self.q_gate(queries).view(*context.shape[:1], -1, self.num_heads, self.head_dim).transpose(1, 2)
        return context * torch.sigmoid(gate)

    def output(self, context: Tensor, alone: Tensor | None) -> Tensor:
        """Contexts of all heads (B, N, R, H) -> (B, R, D); zero for samples without a visible key."""
        out: Tensor = self.o(context.transpose(1, 2).flatten(2))
        return out if alone is None else out.masked_fill(alone[:, 0], 0.0)

    def _split(self, x: Tensor, heads: int, norm: str | None) -> Tensor:
        if self.clip is not None:
            x = x.clamp(-self.clip, self.clip)
        if norm and self.qk_norm == "full_width":
            x = getattr(self, norm)(x)
        batch, tokens, _ = x.shape
        x = x.reshape(batch, tokens, heads, self.head_dim).transpose(1, 2)
        if norm and self.qk_norm in ("per_head", "per_own_head"):
            x = getattr(self, norm)(x)
        return x


def see(key_padding_mask: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Which keys are visible (B, 1, 1, T), and which samples have none (B, 1, 1, 1).

    Of a mask of pairs (B, R, T), for each query: (B, 1, R, T) and (B, 1, R, 1).

    A sample without any visible key would be a softmax over nothing: it sees all keys instead
    (finite numbers, finite gradients), and `Attention.output` then takes exactly zero.
    """
    if key_padding_mask is None:
        return None, None
    visible = ~(key_padding_mask[:, None, None] if key_padding_mask.dim() == 2 else key_padding_mask[:, None])
    alone = ~visible.any(-1, keepdim=True)
    return visible | alone, alone


class GatedUnit(FrozenModule):
    """act(gate) * up, with what a config says of bounds and shifts."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.activation, self.limit, self.shift = config.activation, config.gate_limit, config.up_shift

    def inner(self, gate: Tensor, up: Tensor) -> Tensor:
        """Both (..., F) -> (..., F)."""
        if self.limit is not None:
            gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
        return ACTIVATIONS[self.activation](gate) * (up + self.shift if self.shift else up)


class MLP(GatedUnit):
    """down(act(gate(x)) * up(x)), or down(act(up(x))) without a gate; tensors begin with `name`."""

    def __init__(self, config: BlockConfig, tensors: Mapping[str, Tensor], name: str = "mlp") -> None:
        super().__init__(config)
        self.gate = projection(tensors, f"{name}.gate") if config.mlp == "gated" else None
        self.up, self.down = projection(tensors, f"{name}.up"), projection(tensors, f"{name}.down")

    def forward(self, x: Tensor, mean: bool = False) -> Tensor:
        """(B, R, D) -> (B, R, D), or the mean over R, (B, 1, D): the last projection is linear."""
        up = self.up(x)
        hidden = ACTIVATIONS[self.activation](up) if self.gate is None else self.inner(self.gate(x), up)
        out: Tensor = self.down(hidden.mean(1, keepdim=True) if mean else hidden)
        return out


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in the dtype in which norms and softmax are computed."""
    return x if x.dtype == torch.float64 else x.float()


def projection(tensors: Mapping[str, Tensor], name: str) -> Projection:
    """The projection of this name."""
    return Projection(tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))
