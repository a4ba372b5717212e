"""What a block is, as fields. Behaviour never depends on a model's name."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, fields
from functools import partial
from typing import Any, Literal, get_args

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

RouterShares = Literal["chosen", "all"]
"""What a token's shares of its experts add up to 1 over: those chosen (Mixtral), or all (OLMoE)."""

Order = Literal["none", "causal"]
"""Whether a layer reads its tokens in order: "none" of nearly all, "causal" of one that is recurrent by nature."""

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
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
    parallel: Parallel = "none"
    residual_scale: float = 1.0
    """What a branch is multiplied by before it is added."""
    residual_after_norm: bool = False
    """The branch is added to the normed input instead of the input (BLOOM, where so configured)."""
    branches: Branches = "both"
    num_experts: int = 0
    """E, MLPs of which each token takes some; 0 for one MLP that every token takes."""
    experts_per_token: int = 0
    router_shares: RouterShares = "chosen"

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
        choices = {
            "norm": NormKind,
            "norm_place": NormPlace,
            "qk_norm": QkNorm,
            "parallel": Parallel,
            "branches": Branches,
            "router_shares": RouterShares,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in get_args(allowed):
                raise BlockError(f"BlockConfig.{name}={getattr(self, name)!r} is not one of {get_args(allowed)}")
        for name in ("norm_bias", "qkv_bias", "output_bias", "mlp_bias", "residual_after_norm"):
            if not isinstance(getattr(self, name), bool):
                raise BlockError(f"BlockConfig.{name} must be true or false, got {getattr(self, name)!r}")
        if (self.num_experts or self.experts_per_token) and not 0 < self.experts_per_token <= self.num_experts:
            raise BlockError(f"{self.experts_per_token} of {self.num_experts} experts a token cannot be")
        if self.num_experts and (self.mlp != "gated" or self.mlp_bias):
            raise BlockError("experts are gated MLPs without biases")
        if self.norm_place != "pre" and (self.parallel != "none" or self.residual_after_norm):
            raise BlockError(f"norm_place={self.norm_place!r} with a parallel or after-norm residual is not defined")

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Canonical tensor names of one layer and their shapes, in the order data flows."""
        wide, narrow = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        attends, has_mlp = self.branches != "mlp", self.branches != "attention"
        on_stream = self.norm_place == "post_residual"  # norms of the sum, not of a branch
        after_norm = self.residual_after_norm and self.parallel == "none"
        shapes: dict[str, tuple[int, ...]] = {}

        def norm(name: str) -> None:
            shapes.update({f"{name}.{part}": shape for part, shape in self.norm_shapes().items()})

        def projection(name: str, rows: int, columns: int, bias: bool) -> None:
            shapes[f"{name}.weight"] = (rows, columns)
            if bias:
                shapes[f"{name}.bias"] = (rows,)

        if self.norm_place in ("pre", "sandwich") and (attends or after_norm or self.parallel == "shared_norm"):
            norm("attention_norm")
        if attends:
            projection("attention.q", wide, self.dim, self.qkv_bias)
            projection("attention.k", narrow, self.dim, self.qkv_bias)
            projection("attention.v", narrow, self.dim, self.qkv_bias)
        qk = {
            "per_head": ((self.head_dim,), (self.head_dim,)),
            "per_own_head": ((self.num_heads, self.head_dim), (self.num_kv_heads, self.head_dim)),
            "full_width": ((wide,), (narrow,)),
        }
        if attends and self.qk_norm != "none":
            shapes["attention.q_norm.weight"], shapes["attention.k_norm.weight"] = qk[self.qk_norm]
        if attends:
            projection("attention.o", self.dim, wide, self.output_bias)
        if self.norm_place != "pre" and (attends or on_stream):
            norm("attention_post_norm")
        own_norm = self.norm_place == "sandwich" or (self.norm_place == "pre" and self.parallel != "shared_norm")
        if own_norm and (has_mlp or after_norm):
            norm("mlp_norm")
        if has_mlp and self.num_experts:
            wide_in = (self.num_experts, self.mlp_dim, self.dim)
            shapes["mlp.router.weight"] = (self.num_experts, self.dim)
            shapes |= {"mlp.gate.weight": wide_in, "mlp.up.weight": wide_in}
            shapes["mlp.down.weight"] = (self.num_experts, self.dim, self.mlp_dim)
        elif has_mlp and self.mlp == "gated":
            projection("mlp.gate", self.mlp_dim, self.dim, self.mlp_bias)
        if has_mlp and not self.num_experts:
            projection("mlp.up", self.mlp_dim, self.dim, self.mlp_bias)
            projection("mlp.down", self.dim, self.mlp_dim, self.mlp_bias)
        if self.norm_place != "pre" and (has_mlp or on_stream):
            norm("mlp_post_norm")
        return shapes

    def norm_shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensors of one norm over the residual stream."""
        return dict.fromkeys(("weight", "bias") if self.norm_bias else ("weight",), (self.dim,))

    def is_minus_one(self, name: str) -> bool:
        """Whether the tensor of this name is a gain stored as its distance from one."""
        return self.norm == "rms_plus_one" and "norm" in name

    @property
    def mlp_width(self) -> int:
        """Width inside the MLP that a token takes: F, or F of each expert that it is routed to."""
        return self.mlp_dim * max(1, self.experts_per_token)

    def num_params(self) -> int:
        """Parameters of one layer."""
        return sum(math.prod(shape) for shape in self.tensor_shapes().values())

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def identity(self) -> dict[str, Any]:
        """The fields that differ from their defaults: a new field does not change old digests."""
        values = self.to_dict()
        return {f.name: values[f.name] for f in fields(self) if f.default is MISSING or values[f.name] != f.default}
