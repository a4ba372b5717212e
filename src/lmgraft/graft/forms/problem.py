"""What the planner is asked, and what it answers.

    space   wide: the normed input (B, T, D) is formed. narrow: never; see `affine.py`
    query   projected: W_q u of the read tokens. folded: (W_q A) y
    key     formed: W_k u. folded: (W_k A) y. absorbed, absorbed_fold: never formed; see `attend.py`
    value   likewise

Plain data: no tensors in here.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal, get_args

from lmgraft.block.config import BlockConfig

Space = Literal["wide", "narrow"]
Side = Literal["formed", "folded", "absorbed", "absorbed_fold"]


@dataclass(frozen=True)
class LayerPlan:
    """How one layer is computed. The default is the readable one: all keys and values formed."""

    space: Space = "wide"
    query: Literal["projected", "folded"] = "projected"
    key: Side = "formed"
    value: Side = "formed"

    def folds(self) -> tuple[str, ...]:
        """Which of "qkv" need a fold."""
        sides = {"q": self.query, "k": self.key, "v": self.value}
        return tuple(name for name, how in sides.items() if how in ("folded", "absorbed_fold"))

    def __str__(self) -> str:
        return f"{self.space}: q {self.query}, k {self.key}, v {self.value}"


PLANS = tuple(
    LayerPlan(*sides)  # type: ignore[arg-type]
    for sides in itertools.product(get_args(Space), ("projected", "folded"), get_args(Side), get_args(Side))
)
"""Every plan there is, exact for a block or not."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One layer to be computed, as far as its cost depends on it."""

    config: BlockConfig
    batch: int
    tokens: int
    reads: int
    """Tokens read of each sample; `tokens` for all."""
    narrow: int | None
    """C where the layer's input is a linear image of C-wide tokens; None elsewhere in a stack."""
    mean_early: bool = False
    """Only the mean over the read tokens is wanted, and all that follows the MLP is linear."""
    mapper_bias: bool = False
    x_grad: bool = False
    """Whether gradient flows to the layer's input."""
    mapper_grad: bool = False
    block_grad: bool = False
    """Whether gradient is wanted of every tensor of the block."""
    norm_grad: bool = False
    """Whether it is wanted of the norms alone."""
    lora: tuple[str, ...] = ()
    """Projections with a low-rank part: of q, k, v, o, gate, up, down."""
    lora_rank: int = 0
    lora_grad: bool = False
    """Whether gradient is wanted of the low-rank parts."""
    folds_ready: bool = False
    """Folds lie in the cache: they cost nothing."""
    itemsize: int = 4
    device: str = "cpu"
