"""What a block is, as fields. Behaviour never depends on a model's name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor

from lmgraft.errors import BlockError

FinalNorm = Literal["unit", "pretrained", "none"]
"""The LLM's final norm after the block: with gain one (as published), its own gain, or absent."""

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}


@dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """Shape and behaviour of one pre-norm layer with RMSNorm and a gated MLP.

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
    norm_eps: float = 1e-5
    """Added to the mean square inside RMSNorm."""
    activation: str = "silu"
    """Name in `ACTIVATIONS`."""
    attention_bias: bool = False
    """Whether query, key, value and output projections have biases."""
    mlp_bias: bool = False
    """Whether the MLP's projections have biases."""

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

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Canonical tensor names of one layer and their shapes, in the order data flows."""
        wide, narrow = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {
            "attention_norm.weight": (self.dim,),
            "attention.q.weight": (wide, self.dim),
            "attention.k.weight": (narrow, self.dim),
            "attention.v.weight": (narrow, self.dim),
            "attention.o.weight": (self.dim, wide),
            "mlp_norm.weight": (self.dim,),
            "mlp.gate.weight": (self.mlp_dim, self.dim),
            "mlp.up.weight": (self.mlp_dim, self.dim),
            "mlp.down.weight": (self.dim, self.mlp_dim),
        }
        biased = {"attention.": self.attention_bias, "mlp.": self.mlp_bias}
        for name, shape in list(shapes.items()):
            if any(name.startswith(part) and has for part, has in biased.items()):
                shapes[name.replace(".weight", ".bias")] = shape[:1]
        return shapes

    def num_params(self) -> int:
        """Parameters of one layer."""
        total = 0
        for shape in self.tensor_shapes().values():
            size = 1
            for axis in shape:
                size *= axis
            total += size
        return total

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


FINAL_NORM_TENSOR = "final_norm.weight"
"""Canonical name of the LLM's final norm gain, which lies outside its layers."""
