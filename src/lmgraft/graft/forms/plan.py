"""Which form computes a layer: of all exact plans, the one that takes the least time by its counts.

All plans give the same numbers; see `problem.py` for what they consist of.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

from lmgraft.block.config import BlockConfig
from lmgraft.graft.forms.cost import seconds
from lmgraft.graft.forms.problem import LayerPlan, Problem, Side


@lru_cache(maxsize=1024)
def choose(problem: Problem, form: str = "auto") -> LayerPlan:
    """The quickest exact plan.

    Args:
        problem: The layer and its shapes.
        form: "auto"; or the plans to choose from: "reads" forms every key and value from the
            wide input, "folded" folds both, "absorbed" absorbs one or both. Where no such plan is
            exact, all that are.
    """
    plans = list(exact_plans(problem))
    candidates = [plan for plan in plans if _of_form(plan, form)]
    return min(candidates or plans, key=lambda plan: seconds(plan, problem))


def layer_problems(whole: Problem, layers: int) -> list[Problem]:
    """One problem for each of `layers` layers: the first is mapped to, the last is read from."""
    flows = whole.x_grad or whole.mapper_grad or whole.block_grad or whole.norm_grad or whole.lora_grad
    problems = []
    for index in range(layers):
        problem = whole
        if index > 0:
            problem = replace(
                problem, narrow=None, mapper_bias=False, mapper_grad=False, folds_ready=False, x_grad=flows
            )
        if index < layers - 1 and problem.config.branches != "mlp":
            problem = replace(problem, reads=whole.tokens, mean_early=False)
        problems.append(problem)
    return problems


@lru_cache(maxsize=1024)
def layer_plans(whole: Problem, layers: int, form: str) -> tuple[LayerPlan, ...]:
    """The quickest exact plan for each layer of a block; `whole` as in `layer_problems`, `form` as in `choose`."""
    return tuple(choose(one, form) for one in layer_problems(whole, layers))


def plans_for_tracing(
    config: BlockConfig, layers: int, width: int, form: str, *, read_all: bool, grad: bool, ready: bool
) -> tuple[LayerPlan, ...]:
    """As `layer_plans`, for a trace, whose sizes may be symbols: made for 32 samples of 197 tokens.

    Args:
        config: Of the block.
        layers: How many it has.
        width: V, of the tokens.
        form: See `choose`.
        read_all: Whether all tokens are read, or one.
        grad: Whether gradients flow.
        ready: Whether folds are constants.
    """
    whole = Problem(
        config=config,
        batch=32,
        tokens=197,
        reads=197 if read_all else 1,
        narrow=width,
        x_grad=grad,
        mapper_grad=grad,
        folds_ready=ready,
    )
    return layer_plans(whole, layers, form)


def exact_plans(problem: Problem) -> Iterator[LayerPlan]:
    """Every plan that gives the reference's numbers for this block.

    A norm on keys, values or their latent and a bound on keys and values are not linear: those are formed or folded.
    """
    config = problem.config
    if config.branches == "mlp":  # there is nothing to choose
        yield LayerPlan()
        return
    linear = config.clip_qkv is None and not config.kv_rank
    linear_key = linear and config.qk_norm == "none"
    linear_value = linear and not config.value_norm
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
