"""Which form computes a layer: chosen by counted multiply-adds and bytes moved.

    space   wide: the normed input (B, T, D) is formed. narrow: never; see `affine.py`
    query   projected: W_q u of the read tokens. folded: (W_q A) y
    key     formed: W_k u. folded: (W_k A) y. absorbed, absorbed_fold: never formed; see `attend.py`
    value   likewise

All forms give the same numbers. `operations` lists the matrix products of a plan one by one,
with what their backward passes cost; `choose` takes the plan whose products take the least
time on the device. Arithmetic on integers: no tensors in here.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

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
    mapper_bias: bool = False
    x_grad: bool = False
    """Whether gradient flows to the layer's input."""
    mapper_grad: bool = False
    block_grad: bool = False
    folds_ready: bool = False
    """Folds lie in the cache: they cost nothing."""
    itemsize: int = 4
    device: str = "cpu"


@dataclass(frozen=True)
class Operation:
    """A product (m, k) x (k, n), `count` times, and the gradients it passes on."""

    name: str
    count: int
    m: int
    k: int
    n: int
    gradients: int
    """Factors that gradient flows to: one product each in the backward pass."""

    @property
    def multiply_adds(self) -> int:
        return self.count * self.m * self.k * self.n * (1 + self.gradients)

    def bytes_moved(self, itemsize: int) -> int:
        """Every operand once for each product."""
        one = self.m * self.k + self.k * self.n + self.m * self.n
        return self.count * one * itemsize * (1 + self.gradients)


@dataclass(frozen=True)
class Machine:
    """How fast a device multiplies and moves; only the ratio matters to the choice."""

    multiply_adds: float
    """Per second, float32."""
    bytes: float
    """Per second, as small products reach it: below the memory's own rate."""
    launch: float
    """Seconds for each product besides."""


MACHINES = {
    # Fitted to products of 1 to 1,024 rows with a 4096 x 11008 matrix on 2 cores with AVX-512.
    "cpu": Machine(multiply_adds=90e9, bytes=12e9, launch=5e-6),
    # From data sheets of 2020 to 2024, not measured here: 16-bit products, HBM.
    "cuda": Machine(multiply_adds=150e12, bytes=1.5e12, launch=5e-6),
}


def seconds(plan: LayerPlan, problem: Problem) -> float:
    """What the products of `plan` are expected to take."""
    machine = MACHINES.get(problem.device, MACHINES["cuda"])
    return sum(
        op.multiply_adds / machine.multiply_adds
        + op.bytes_moved(problem.itemsize) / machine.bytes
        + (1 + op.gradients) * machine.launch
        for op in operations(plan, problem)
    )


@lru_cache(maxsize=1024)
def choose(problem: Problem, form: str = "auto") -> LayerPlan:
    """The quickest exact plan.

    Args:
        problem: The layer and its shapes.
        form: "auto"; or the plans to choose from: "reads" forms every key and value from the
            wide input, "folded" folds them, "absorbed" absorbs them, each where that is exact.
    """
    candidates = [p for p in exact_plans(problem) if _of_form(p, form)]
    return min(candidates or [LayerPlan()], key=lambda plan: seconds(plan, problem))


def exact_plans(problem: Problem) -> Iterator[LayerPlan]:
    """Every plan that gives the reference's numbers for this block.

    A norm on keys and a bound on keys and values are not linear: those are formed or folded.
    """
    config = problem.config
    linear_key = config.qk_norm == "none" and config.clip_qkv is None
    linear_value = config.clip_qkv is None
    sides: dict[str, tuple[list[Side], list[Side]]] = {
        "wide": (["formed"], ["absorbed"]),
        "narrow": (["folded"], ["absorbed", "absorbed_fold"]),
    }
    for space in ("wide",) if problem.narrow is None else ("wide", "narrow"):
        formed, absorbed = sides[space]
        keys = formed + (absorbed if linear_key else [])
        values = formed + (absorbed if linear_value else [])
        for key, value in itertools.product(keys, values):
            yield LayerPlan(space, "projected", key, value)  # type: ignore[arg-type]
            if space == "narrow":
                yield LayerPlan("narrow", "folded", key, value)


def _of_form(plan: LayerPlan, form: str) -> bool:
    if form == "reads":
        return plan == LayerPlan()
    if form == "folded":
        return plan.space == "narrow" and plan.key == plan.value == "folded"
    if form == "absorbed":
        return "absorbed" in plan.key or "absorbed" in plan.value
    return True


def operations(plan: LayerPlan, problem: Problem) -> list[Operation]:
    """The matrix products of a layer, mapper included where it is the layer's own input."""
    return _Count(plan, problem).operations


class _Count:
    """Walks the layer as `run.py` does; each step notes its product and whether gradient flows on."""

    def __init__(self, plan: LayerPlan, problem: Problem) -> None:
        self.operations: list[Operation] = []
        self.plan, self.problem = plan, problem
        config = problem.config
        self.has_norm = config.norm_place in ("pre", "sandwich")
        self.has_shift = self.has_norm and config.norm_bias
        self.outputs = config.num_heads * config.head_dim
        self.width = problem.narrow if plan.space == "narrow" and problem.narrow else config.dim
        self.keys = config.num_kv_heads * config.head_dim
        self.rows, self.all_rows = problem.batch * problem.reads, problem.batch * problem.tokens
        self.block = problem.block_grad
        self.norm = self.block and self.has_norm
        h_grad = self.inputs()
        self.folded = {name: self.fold(name) for name in plan.folds()}
        mixed = self.attention(h_grad or self.norm)
        self.rest(h_grad, mixed)

    def product(self, name: str, m: int, k: int, n: int, left: bool, right: bool, count: int = 1) -> bool:
        self.operations.append(Operation(name, count, m, k, n, left + right))
        return left or right

    def inputs(self) -> bool:
        """Mapper and norm scales. Sets what y and the affine map pass on; returns what h does."""
        p = self.problem
        self.y = p.x_grad or self.norm
        self.matrix = False
        if p.narrow is None:
            return p.x_grad
        wide = self.plan.space == "wide"
        mapped = self.product(
            "mapper_in",
            self.all_rows if wide else self.rows,
            p.narrow - p.mapper_bias,
            p.config.dim,
            p.x_grad,
            p.mapper_grad,
        )
        if wide:
            self.y = mapped or self.norm
            return mapped
        self.y, self.matrix = p.x_grad, p.mapper_grad or self.norm
        if self.has_norm:
            if not p.folds_ready:
                self.product("gram", p.narrow, p.config.dim, p.narrow, p.mapper_grad, p.mapper_grad)
            self.y = self.product("norms", self.all_rows, p.narrow, p.narrow, p.x_grad, p.mapper_grad)
        return mapped

    def fold(self, name: str) -> bool:
        if self.problem.folds_ready:
            return False
        out = self.outputs if name == "q" else self.keys
        left = self.matrix or (self.block and self.has_shift)
        return self.product(f"fold_{name}", self.width + self.has_shift, self.problem.config.dim, out, left, self.block)

    def attention(self, u_grad: bool) -> bool:
        p, plan = self.problem, self.plan
        heads, tokens, reads, width = p.config.num_heads, p.tokens, p.reads, p.config.head_dim
        if plan.query == "folded":
            query = self.product("q", self.rows, self.width, self.outputs, self.y, self.folded["q"])
        else:
            query = self.product("q", self.rows, p.config.dim, self.outputs, u_grad, self.block)
        if plan.key in ("formed", "folded"):
            key = self.form("k", plan.key)
            weights = self.product("scores", reads, width, tokens, query, key, p.batch * heads)
        else:
            absorbed = self.absorb("k", plan.key, query)
            weights = self.product("scores", heads * reads, self.width, tokens, absorbed, self.y, p.batch)
        if plan.value in ("formed", "folded"):
            value = self.form("v", plan.value)
            context = self.product("mix", reads, tokens, width, weights, value, p.batch * heads)
        else:
            mean = self.product("mix", heads * reads, tokens, self.width, weights, self.y, p.batch)
            context = self.absorb("v", plan.value, mean)
        return self.product("o", self.rows, self.outputs, p.config.dim, context, self.block)

    def form(self, name: str, side: Side) -> bool:
        weight = self.folded[name] if side == "folded" else self.block
        return self.product(name, self.all_rows, self.width, self.keys, self.y, weight)

    def absorb(self, name: str, side: Side, flows: bool) -> bool:
        """q^T W (A) for keys, (A) mean then W for values: the same products in the other order."""
        config = self.problem.config
        scored = self.rows * config.num_heads
        through_map = self.plan.space == "narrow" and side == "absorbed"
        inner = config.dim if through_map else self.width
        weight = self.folded[name] if side == "absorbed_fold" else self.block
        m, groups = scored // config.num_kv_heads, config.num_kv_heads
        if name == "k":
            flows = self.product("absorb_k", m, config.head_dim, inner, flows, weight, groups)
            return self.product("map_k", scored, inner, self.width, flows, self.matrix) if through_map else flows
        if through_map:
            flows = self.product("map_v", scored, self.width, inner, flows, self.matrix)
        return self.product("absorb_v", m, inner, config.head_dim, flows, weight, groups)

    def rest(self, h_grad: bool, mixed: bool) -> None:
        config = self.problem.config
        flows = h_grad or self.block or (config.parallel == "none" and mixed)
        for name in ("gate", "up") if config.mlp == "gated" else ("up",):
            self.product(name, self.rows, config.dim, config.mlp_dim, flows, self.block)
        self.product("down", self.rows, config.mlp_dim, config.dim, flows, self.block)
