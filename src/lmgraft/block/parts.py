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
from lmgraft.contracts import is_jit_traced


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
        q = self.split_queries(self.q(queries))
        k, v = self.split_keys(self.k(x)), self.split_values(self.v(x))
        visible, alone = see(key_padding_mask)
        return self.output(self.mix(q, k, v, visible), alone)

    def split_queries(self, q: Tensor) -> Tensor:
        """Projected queries (B, R, N x H) -> (B, N, R, H), bounded and normed."""
        return self._split(q, self.num_heads, "q_norm")

    def split_keys(self, k: Tensor) -> Tensor:
        """Projected keys (B, T, M x H) -> (B, M, T, H), bounded and normed."""
        return self._split(k, self.num_kv_heads, "k_norm")

    def split_values(self, v: Tensor) -> Tensor:
        """Projected values (B, T, M x H) -> (B, M, T, H), bounded."""
        return self._split(v, self.num_kv_heads, None)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
        """softmax(q k^T) v: (B, N, R, H)."""
        group = self.num_heads // self.num_kv_heads
        if group > 1:  # grouped queries: each key/value head serves `group` query heads
            k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        if self.softcap is None:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=self.scale)
        return self.weights(q @ k.transpose(-1, -2), visible).to(v.dtype) @ v

    def weights(self, scores: Tensor, visible: Tensor | None) -> Tensor:
        """Attention weights (B, N, R, T), float32 or wider, of raw scores q k^T."""
        wide = at_least_float32(scores) * self.scale
        if self.softcap is not None:
            wide = self.softcap * torch.tanh(wide / self.softcap)
        if visible is not None:
            wide = wide.masked_fill(~visible, float("-inf"))
        return wide.softmax(-1)

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

    A sample without any visible key would be a softmax over nothing: it sees all keys instead
    (finite numbers, finite gradients), and `Attention.output` then takes exactly zero.
    """
    if key_padding_mask is None:
        return None, None
    visible = ~key_padding_mask[:, None, None, :]
    alone = ~visible.any(-1, keepdim=True)
    return visible | alone, alone


class MLP(FrozenModule):
    """down(act(gate(x)) * up(x)), or down(act(up(x))) without a gate."""

    def __init__(self, config: BlockConfig, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.activation = config.activation
        self.gate = _projection(tensors, "mlp.gate") if config.mlp == "gated" else None
        self.up, self.down = _projection(tensors, "mlp.up"), _projection(tensors, "mlp.down")

    def forward(self, x: Tensor, mean: bool = False) -> Tensor:
        """(B, R, D) -> (B, R, D), or the mean over R, (B, 1, D): the last projection is linear."""
        act = ACTIVATIONS[self.activation]
        hidden = act(self.up(x)) if self.gate is None else act(self.gate(x)) * self.up(x)
        out: Tensor = self.down(hidden.mean(1, keepdim=True) if mean else hidden)
        return out


class Experts(FrozenModule):
    """A mixture of gated MLPs: each token goes through those that a router chooses for it, and no others.

    An MLP is a function of each token by itself, so only tokens that are read are routed; an expert
    that none of them chose is not touched, and a 16-bit one is widened when it is.
    """

    def __init__(self, config: BlockConfig, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.activation, self.shares = config.activation, config.router_shares
        self.count, self.chosen = config.num_experts, config.experts_per_token
        self.router = _projection(tensors, "mlp.router")
        self.gate, self.up, self.down = (_Stack(tensors[f"mlp.{name}.weight"]) for name in ("gate", "up", "down"))

    def forward(self, x: Tensor, mean: bool = False) -> Tensor:
        """(B, R, D) -> (B, R, D), or the mean over R, (B, 1, D)."""
        tokens = x.reshape(-1, x.shape[-1])
        shares, experts = at_least_float32(self.router(tokens)).softmax(-1).topk(self.chosen, dim=-1)
        if self.shares == "chosen":
            shares = shares / shares.sum(-1, keepdim=True)
        act, out = ACTIVATIONS[self.activation], torch.zeros_like(tokens)
        # A trace is of other inputs too.
        called = range(self.count) if is_jit_traced() else sorted(set(experts.flatten().tolist()))
        for expert in called:
            rows, place = torch.where(experts == expert)
            inner = tokens[rows]
            made = self.down(act(self.gate(inner, expert)) * self.up(inner, expert), expert)
            out = out.index_add(0, rows, (made * shares[rows, place, None]).to(out.dtype))
        out = out.reshape(x.shape)
        return out.mean(1, keepdim=True) if mean else out


class _Stack(FrozenModule):
    """One matrix for each expert: weight (E, out, in)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = Parameter(weight, requires_grad=False)

    def forward(self, x: Tensor, expert: int) -> Tensor:
        return linear(x, self.weight[expert])


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in the dtype in which norms and softmax are computed."""
    return x if x.dtype == torch.float64 else x.float()


def _projection(tensors: Mapping[str, Tensor], name: str) -> Projection:
    return Projection(tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))
