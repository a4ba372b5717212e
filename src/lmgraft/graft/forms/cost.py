"""What a plan costs: its matrix products one by one, with what their backward passes take.

The counts are those of `torch.utils.flop_counter` on a real run. Arithmetic on integers: no
tensors in here.
"""

from __future__ import annotations

from dataclasses import dataclass

from lmgraft.graft.forms.problem import LayerPlan, Problem, Side


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


_INTO = ("gate", "up")
"""The projections into a gated MLP."""


def seconds(plan: LayerPlan, problem: Problem) -> float:
    """What the products of `plan` are expected to take."""
    machine = MACHINES.get(problem.device, MACHINES["cuda"])
    return sum(
        op.multiply_adds / machine.multiply_adds
        + op.bytes_moved(problem.itemsize) / machine.bytes
        + (1 + op.gradients) * machine.launch
        for op in operations(plan, problem)
    )


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
        self.latent = config.kv_rank > 0
        self.outputs = config.num_heads * config.head_dim
        self.width = problem.narrow if plan.space == "narrow" and problem.narrow else config.dim
        self.queries = config.q_rank or self.outputs
        self.keys = config.num_kv_heads * config.head_dim
        if self.latent:
            self.keys = config.kv_rank + config.shared_key_dim
        self.rows, self.all_rows = problem.batch * problem.reads, problem.batch * problem.tokens
        self.last_rows = problem.batch if problem.mean_early else self.rows
        self.block, self.norms = problem.block_grad, problem.block_grad or problem.norm_grad
        self.norm = self.norms and self.has_norm
        self.qk_norm = self.norms and config.qk_norm != "none"
        if config.branches == "mlp":  # no tokens are mixed: those that are not read do not exist
            self.all_rows = self.last_rows = self.rows
        h_grad = self.inputs()
        self.folded = {name: self.fold(name) for name in plan.folds()}
        mixed = config.branches != "mlp" and self.attention(h_grad or self.norm)
        if config.branches != "attention":
            self.rest(h_grad, mixed)

    def product(self, name: str, m: int, k: int, n: int, left: bool, right: bool, count: int = 1) -> bool:
        self.operations.append(Operation(name, count, m, k, n, left + right))
        return left or right

    def project(self, name: str, m: int, k: int, n: int, left: bool) -> bool:
        """A product with a projection of the block, its low-rank part with it."""
        flows = self.product(name, m, k, n, left, self.block)
        if name.removeprefix("fold_") not in self.problem.lora:
            return flows
        rank, trained = self.problem.lora_rank, self.problem.lora_grad
        low = self.product(f"{name}_a", m, k, rank, left, trained)
        return self.product(f"{name}_b", m, rank, n, low, trained) or flows

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
        if name == "v" and self.latent:  # values lie in what keys are made of
            return False
        out = self.queries if name == "q" else self.keys
        left = self.matrix or (self.norms and self.has_shift)
        return self.project(f"fold_{name}", self.width + self.has_shift, self.problem.config.dim, out, left)

    def attention(self, u_grad: bool) -> bool:
        p, plan = self.problem, self.plan
        heads, tokens, reads, width = p.config.num_heads, p.tokens, p.reads, p.config.head_dim
        if plan.query == "folded":
            query = self.product("q", self.rows, self.width, self.queries, self.y, self.folded["q"])
        else:
            query = self.project("q", self.rows, p.config.dim, self.queries, u_grad)
        if self.latent:
            return self.attend_to_latents(query)
        query = query or self.qk_norm
        if plan.key in ("formed", "folded"):
            key = self.form("k", plan.key) or self.qk_norm
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
        if p.config.query_gate:
            context = self.project("q_gate", self.rows, p.config.dim, self.outputs, u_grad) or context
        rows = self.rows if p.config.parallel == "none" else self.last_rows
        return self.project("o", rows, self.outputs, p.config.dim, context)

    def attend_to_latents(self, query: bool) -> bool:
        """See `block/latent.py`: one key/value head as wide as a latent and the shared part of a key."""
        p, c = self.problem, self.problem.config
        rank, own, scored = c.kv_rank, c.head_dim - c.shared_key_dim, p.reads * c.num_heads
        if c.q_rank:
            query = self.project("q_up", self.rows, c.q_rank, self.outputs, query or self.norms)
        latent = self.form("k", self.plan.key) or self.norms
        query = self.by_head("k_up", own, rank, query) or query
        weights = self.product("scores", scored, self.keys, p.tokens, query, latent, p.batch)
        mean = self.product("mix", scored, p.tokens, rank, weights, latent, p.batch)
        context = self.by_head("v_up", rank, c.value_dim, mean)
        rows = self.rows if c.parallel == "none" else self.last_rows
        return self.project("o", rows, c.num_heads * c.value_dim, c.dim, context)

    def by_head(self, name: str, k: int, n: int, flows: bool) -> bool:
        """A product with each head's part of a projection, its low-rank part with it."""
        p, heads = self.problem, self.problem.config.num_heads
        out = self.product(name, self.rows, k, n, flows, self.block, heads)
        if name not in p.lora:
            return out
        each, all_heads = (heads, self.rows), (1, self.rows * heads)
        up, down = ((each, k, p.lora_rank), (all_heads, p.lora_rank, n))
        if name == "v_up":
            up, down = ((all_heads, k, p.lora_rank), (each, p.lora_rank, n))
        low = flows
        for part, ((count, rows), inner, outer) in (("b", up), ("a", down)):
            low = self.product(f"{name}_{part}", rows, inner, outer, low, p.lora_grad, count)
        return low or out

    def form(self, name: str, side: Side) -> bool:
        if side == "folded":
            return self.product(name, self.all_rows, self.width, self.keys, self.y, self.folded[name])
        return self.project(name, self.all_rows, self.width, self.keys, self.y)

    def absorb(self, name: str, side: Side, flows: bool) -> bool:
        """q^T W (A) for keys, (A) mean then W for values: the same products in the other order."""
        config = self.problem.config
        scored = self.rows * config.num_heads
        through_map = self.plan.space == "narrow" and side == "absorbed"
        inner = config.dim if through_map else self.width
        if name == "k":
            flows = self.grouped(name, side, config.head_dim, inner, flows)
            return self.product("map_k", scored, inner, self.width, flows, self.matrix) if through_map else flows
        if through_map:
            flows = self.product("map_v", scored, self.width, inner, flows, self.matrix)
        return self.grouped(name, side, inner, config.head_dim, flows)

    def grouped(self, name: str, side: Side, k: int, n: int, flows: bool) -> bool:
        """A product with the rows of each key/value head, its low-rank part with it."""
        p, groups = self.problem, self.problem.config.num_kv_heads
        scored = self.rows * p.config.num_heads
        weight = self.folded[name] if side == "absorbed_fold" else self.block
        out = self.product(f"absorb_{name}", scored // groups, k, n, flows, weight, groups)
        if side == "absorbed_fold" or name not in p.lora:
            return out
        if name == "k":
            low = self.product("absorb_k_b", scored // groups, k, p.lora_rank, flows, p.lora_grad, groups)
            return self.product("absorb_k_a", scored, p.lora_rank, n, low, p.lora_grad) or out
        low = self.product("absorb_v_a", scored, k, p.lora_rank, flows, p.lora_grad)
        return self.product("absorb_v_b", scored // groups, p.lora_rank, n, low, p.lora_grad, groups) or out

    def rest(self, h_grad: bool, mixed: bool) -> None:
        config = self.problem.config
        flows = h_grad or self.norms or (config.parallel == "none" and mixed)
        if not config.num_experts:
            self.mlp(flows, config.mlp_dim, self.last_rows)
            return
        self.project("router", self.rows, config.dim, config.num_experts, flows)
        width = config.mlp_dim * config.experts_per_token
        inner = [self.product(f"experts_{name}", self.rows, config.dim, width, flows, self.block) for name in _INTO]
        self.product("experts_down", self.rows, width, config.dim, any(inner), self.block)
        if config.shared_mlp_dim:
            self.mlp(flows, config.shared_mlp_dim, self.rows)
        if config.shared_gate:
            self.project("shared_gate", self.rows, config.dim, 1, flows)

    def mlp(self, flows: bool, width: int, last_rows: int) -> None:
        config = self.problem.config
        names = _INTO if config.mlp == "gated" else ("up",)
        inner = [self.project(name, self.rows, config.dim, width, flows) for name in names]
        self.project("down", last_rows, width, config.dim, any(inner))
