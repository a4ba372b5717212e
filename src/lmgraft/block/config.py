"""What a block is, as fields. Behaviour never depends on a model's name."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, fields
from functools import partial
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from lmgraft.errors import BlockError

FinalNorm = Literal["unit", "pretrained", "none"]
"""The LLM's final norm after the block: with gain one (as published), its own gain, or absent."""

NormKind = Literal["rms", "rms_plus_one", "layer"]
"""RMSNorm; RMSNorm whose stored gain is its distance from one (gemma); LayerNorm."""

NormPlace = Literal["pre", "post_residual", "post_branch", "sandwich"]
"""Where norms lie; with f attention or MLP:

    pre            x + f(norm(x))          nearly all
    post_residual  norm(x + f(x))          OPT-350M
    post_branch    x + norm(f(x))          OLMo 2
    sandwich       x + norm(f(norm(x)))    Gemma 2 and 3
"""

QkNorm = Literal["none", "per_head", "per_own_head", "full_width"]
"""Norm of queries and keys: one gain for all heads, one for each head, or over all heads at once."""

Parallel = Literal["none", "shared_norm", "own_norm"]
"""x + attention(norm(x)) + mlp(norm(x)), with one norm for both or one for each."""

Branches = Literal["both", "attention", "mlp"]
"""What a layer adds to its residual stream: both branches, or one of them (a control); the other is exactly zero."""

RouterScores = Literal["softmax", "sigmoid"]
"""How a router's logits become scores: over all experts together (Mixtral), or each by itself (DeepSeek-V3)."""

RouterShares = Literal["chosen", "all"]
"""What a token's shares of its experts add up to 1 over: those chosen (Mixtral), or all (OLMoE); see `RouterScores`."""

Order = Literal["none", "causal"]
"""Whether a layer reads its tokens in order: "none" of nearly all, "causal" of one that is recurrent by nature."""


def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x)."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "quick_gelu": quick_gelu,
}

FINAL_NORM = "final_norm"
"""Canonical name of the LLM's final norm, whose tensors lie outside its layers."""


@dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """Shape and behaviour of one layer; the defaults are a llama's.

    Raises:
        BlockError: If the fields contradict each other.
    """

    dim: int
    """D, width of the residual stream."""
    num_heads: int
    """N, query heads."""
    num_kv_heads: int
    """M, key/value heads; each serves N / M query heads."""
    head_dim: int
    """H, width of one head; N x H need not equal D."""
    mlp_dim: int
    """F, width inside the MLP."""
    norm: NormKind = "rms"
    norm_eps: float = 1e-5
    """Added to the mean square (variance) inside every norm."""
    norm_bias: bool = False
    """Whether LayerNorms have shifts."""
    norm_place: NormPlace = "pre"
    qk_norm: QkNorm = "none"
    qkv_bias: bool = False
    """Whether query, key and value projections have biases."""
    output_bias: bool = False
    """Whether attention's output projection has a bias."""
    mlp_bias: bool = False
    """Whether the MLP's projections have biases."""
    mlp: Literal["gated", "plain"] = "gated"
    """down(act(gate(x)) * up(x)), or down(act(up(x)))."""
    activation: str = "silu"
    """Name in `ACTIVATIONS`."""
    attention_scales: tuple[float, ...] = ()
    """What scores are multiplied by, for each layer of the block; 1 / sqrt(H) when empty."""
    logit_softcap: float | None = None
    """c tanh(scores / c) before the softmax."""
    clip_qkv: float | None = None
    """Bound on the values of queries, keys and values."""
    sinks: bool = False
    """Whether each head has a learnt score beside those of the keys, which takes weight and gives nothing (gpt-oss)."""
    query_gate: bool = False
    """Whether contexts are multiplied by the sigmoid of a further projection of the query's token (Qwen 3.5)."""
    value_norm: bool = False
    """Whether the values of each head are normed, by a gain of one (Gemma 4)."""
    kv_rank: int = 0
    """Width of the latent that keys and values of all heads are made from (DeepSeek's MLA); 0 for none."""
    q_rank: int = 0
    """Width of the latent that queries are made from, where there is `kv_rank`; 0 for none."""
    shared_key_dim: int = 0
    """How many of the H numbers of a key are one for all heads and no part of the latent: those with positions."""
    value_dim: int = 0
    """Width of one head's values, where there is `kv_rank`."""
    parallel: Parallel = "none"
    residual_scale: float = 1.0
    """What a branch is multiplied by before it is added."""
    residual_after_norm: bool = False
    """The branch is added to the normed input instead of the input (BLOOM, where so configured)."""
    output_scale: bool = False
    """Whether what a layer gives, its residual stream with it, is multiplied by a learnt number (Gemma 4)."""
    branches: Branches = "both"
    gate_limit: float | None = None
    """Bound on an MLP's gate from above, and on up from both sides (gpt-oss)."""
    up_shift: float = 0.0
    """Added to up in a gated MLP (gpt-oss: 1)."""
    num_experts: int = 0
    """E, MLPs of which each token takes some; 0 for one MLP that every token takes."""
    experts_per_token: int = 0
    router_scores: RouterScores = "softmax"
    router_shares: RouterShares = "chosen"
    router_bias: bool = False
    """Whether the router's logits have biases."""
    choice_bias: bool = False
    """Whether a learnt number for each expert is added to its score where experts are chosen, not in shares."""
    expert_groups: int = 1
    """Parts of the experts, of which a token chooses its experts from the best `groups_per_token`."""
    groups_per_token: int = 1
    shares_scale: float = 1.0
    """What all shares are multiplied by."""
    shared_mlp_dim: int = 0
    """Width of an MLP that every token takes beside its experts; 0 for none."""
    shared_gate: bool = False
    """Whether that MLP's output is multiplied by the sigmoid of a projection of the token to one number."""

    def __post_init__(self) -> None:
        for name in ("dim", "num_heads", "num_kv_heads", "head_dim", "mlp_dim"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise BlockError(f"BlockConfig.{name} must be a positive integer, got {value!r}")
        if self.num_heads % self.num_kv_heads:
            raise BlockError(f"{self.num_heads} query heads cannot share {self.num_kv_heads} key/value heads")
        if not isinstance(self.norm_eps, (int, float)) or not 0 <= self.norm_eps < 1:
            raise BlockError(f"BlockConfig.norm_eps must be a small number, got {self.norm_eps!r}")
        if not isinstance(self.activation, str) or self.activation not in ACTIVATIONS:
            raise BlockError(f"activation {self.activation!r} is not known", f"one of {', '.join(sorted(ACTIVATIONS))}")
        self._check_choices()
        self._check_latent()
        self._check_experts()
        if self.norm_place != "pre" and (self.parallel != "none" or self.residual_after_norm):
            raise BlockError(f"norm_place={self.norm_place!r} with a parallel or after-norm residual is not defined")

    def _check_choices(self) -> None:
        choices = {
            "norm": NormKind,
            "norm_place": NormPlace,
            "qk_norm": QkNorm,
            "parallel": Parallel,
            "branches": Branches,
            "router_scores": RouterScores,
            "router_shares": RouterShares,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in get_args(allowed):
                raise BlockError(f"BlockConfig.{name}={getattr(self, name)!r} is not one of {get_args(allowed)}")
        for field in fields(self):
            if isinstance(field.default, bool) and not isinstance(getattr(self, field.name), bool):
                raise BlockError(f"BlockConfig.{field.name} must be true or false, got {getattr(self, field.name)!r}")

    def _check_latent(self) -> None:
        if not self.kv_rank and (self.q_rank or self.shared_key_dim or self.value_dim):
            raise BlockError("q_rank, shared_key_dim and value_dim are of attention with a kv_rank")
        if self.kv_rank and not (self.value_dim > 0 and 0 <= self.shared_key_dim < self.head_dim):
            raise BlockError(
                f"latent attention of value_dim {self.value_dim}, with {self.shared_key_dim} of a key's "
                f"{self.head_dim} numbers shared by the heads, cannot be"
            )
        others = (self.qk_norm != "none", self.clip_qkv, self.logit_softcap, self.sinks, self.query_gate)
        if self.kv_rank and any((*others, self.value_norm)):
            raise BlockError("latent attention with norms of its heads, bounds, sinks or gates is not defined")

    def _check_experts(self) -> None:
        if (self.num_experts or self.experts_per_token) and not 0 < self.experts_per_token <= self.num_experts:
            raise BlockError(f"{self.experts_per_token} of {self.num_experts} experts a token cannot be")
        if self.num_experts and self.mlp != "gated":
            raise BlockError("experts are gated MLPs")
        groups, taken = self.expert_groups, self.groups_per_token
        if not self.num_experts:
            return
        if groups < 1 or self.num_experts % groups:
            raise BlockError(f"{self.num_experts} experts do not divide into {groups} groups")
        if not 1 <= taken <= groups or self.experts_per_token > taken * self.num_experts // groups:
            raise BlockError(f"{self.experts_per_token} experts out of {taken} of {groups} groups cannot be")

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Canonical tensor names of one layer and their shapes, in the order data flows."""
        attends, has_mlp = self.branches != "mlp", self.branches != "attention"
        on_stream = self.norm_place == "post_residual"  # norms of the sum, not of a branch
        after_norm = self.residual_after_norm and self.parallel == "none"
        own_norm = self.norm_place == "sandwich" or (self.norm_place == "pre" and self.parallel != "shared_norm")
        shapes: dict[str, tuple[int, ...]] = {}

        def norm(name: str, wanted: bool) -> None:
            parts = self.norm_shapes().items() if wanted else ()
            shapes.update({f"{name}.{part}": shape for part, shape in parts})

        shared = after_norm or self.parallel == "shared_norm"
        norm("attention_norm", self.norm_place in ("pre", "sandwich") and (attends or shared))
        if attends:
            shapes |= self._latent_shapes() if self.kv_rank else self._attention_shapes()
        norm("attention_post_norm", self.norm_place != "pre" and (attends or on_stream))
        norm("mlp_norm", own_norm and (has_mlp or after_norm))
        if has_mlp and self.num_experts:
            shapes |= self._expert_shapes()
        elif has_mlp:
            shapes |= self._mlp_shapes("mlp", self.mlp_dim)
        norm("mlp_post_norm", self.norm_place != "pre" and (has_mlp or on_stream))
        return shapes | ({"output_scale.weight": (1,)} if self.output_scale else {})

    def _attention_shapes(self) -> dict[str, tuple[int, ...]]:
        wide, narrow = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        qk = {
            "none": (),
            "per_head": ((self.head_dim,), (self.head_dim,)),
            "per_own_head": ((self.num_heads, self.head_dim), (self.num_kv_heads, self.head_dim)),
            "full_width": ((wide,), (narrow,)),
        }
        shapes = _projection("attention.q", wide, self.dim, self.qkv_bias)
        if self.query_gate:
            shapes |= _projection("attention.q_gate", wide, self.dim, self.qkv_bias)
        shapes |= _projection("attention.k", narrow, self.dim, self.qkv_bias)
        shapes |= _projection("attention.v", narrow, self.dim, self.qkv_bias)
        norms = ("attention.q_norm.weight", "attention.k_norm.weight")
        shapes |= dict(zip(norms, qk[self.qk_norm], strict=False))
        if self.sinks:
            shapes["attention.sink_bias"] = (self.num_heads,)
        return shapes | _projection("attention.o", self.dim, wide, self.output_bias)

    def _latent_shapes(self) -> dict[str, tuple[int, ...]]:
        """Of MLA: each side is projected to its latent, which is normed and projected to the heads."""
        queries, heads = self.num_heads * self.head_dim, self.num_heads
        shapes = _projection("attention.q", self.q_rank or queries, self.dim, self.qkv_bias and self.q_rank > 0)
        if self.q_rank:
            shapes["attention.q_norm.weight"] = (self.q_rank,)
            shapes["attention.q_up.weight"] = (queries, self.q_rank)
        shapes |= _projection("attention.k", self.kv_rank + self.shared_key_dim, self.dim, self.qkv_bias)
        shapes["attention.k_norm.weight"] = (self.kv_rank,)
        shapes["attention.k_up.weight"] = (heads * (self.head_dim - self.shared_key_dim), self.kv_rank)
        shapes["attention.v_up.weight"] = (heads * self.value_dim, self.kv_rank)
        return shapes | _projection("attention.o", self.dim, heads * self.value_dim, self.output_bias)

    def _mlp_shapes(self, name: str, width: int) -> dict[str, tuple[int, ...]]:
        shapes = _projection(f"{name}.gate", width, self.dim, self.mlp_bias) if self.mlp == "gated" else {}
        shapes |= _projection(f"{name}.up", width, self.dim, self.mlp_bias)
        return shapes | _projection(f"{name}.down", self.dim, width, self.mlp_bias)

    def _expert_shapes(self) -> dict[str, tuple[int, ...]]:
        shapes = _projection("mlp.router", self.num_experts, self.dim, self.router_bias)
        if self.choice_bias:
            shapes["mlp.router.choice_bias"] = (self.num_experts,)
        one = self._mlp_shapes("mlp", self.mlp_dim)
        shapes |= {name: (self.num_experts, *shape) for name, shape in one.items()}
        if self.shared_mlp_dim:
            shapes |= self._mlp_shapes("mlp.shared", self.shared_mlp_dim)
        return shapes | ({"mlp.shared_gate.weight": (1, self.dim)} if self.shared_gate else {})

    def norm_shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensors of one norm over the residual stream."""
        return dict.fromkeys(("weight", "bias") if self.norm_bias else ("weight",), (self.dim,))

    def is_minus_one(self, name: str) -> bool:
        """Whether the tensor of this name is a gain stored as its distance from one."""
        return self.norm == "rms_plus_one" and "norm" in name

    def num_params(self) -> int:
        """Parameters of one layer."""
        return sum(math.prod(shape) for shape in self.tensor_shapes().values())

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def identity(self) -> dict[str, Any]:
        """The fields that differ from their defaults: a new field does not change old digests."""
        values = self.to_dict()
        return {f.name: values[f.name] for f in fields(self) if f.default is MISSING or values[f.name] != f.default}


def _projection(name: str, rows: int, columns: int, bias: bool) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (rows, columns)} | ({f"{name}.bias": (rows,)} if bias else {})
