"""The planner's counts are those of real runs; it never chooses a form that a trait makes inexact."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import PLANS, TRAITS, by_plans, counted, draw, make_mapper, problem

from lmgraft.block import BlockConfig
from lmgraft.graft.forms.cost import operations, seconds
from lmgraft.graft.forms.plan import choose, exact_plans
from lmgraft.graft.forms.problem import LayerPlan, Problem
from lmgraft.graft.forms.run import dense
from tiny import long_but, random_block, relative_error

GRADIENTS = {
    "none": {},
    "training": {"x_grad": True, "mapper_grad": True},
    "fixed encoder": {"mapper_grad": True},
    "saliency": {"x_grad": True},
    "fine-tuned block": {"x_grad": True, "mapper_grad": True, "block_grad": True},
}


@pytest.mark.parametrize("gradients", GRADIENTS)
@pytest.mark.parametrize("trait", long_but(TRAITS, "llama", "opt", "gemma2"))
def test_counts_are_those_of_a_real_run(trait: str, gradients: str) -> None:
    block, flags = random_block(**TRAITS[trait]), GRADIENTS[gradients]
    block.requires_grad_(flags.get("block_grad", False))
    mapper = make_mapper(12, 32, torch.float32, bias=trait == "biases")
    mapper.requires_grad_(flags.get("mapper_grad", False))
    for reads in ((1, 2, 5), None) if gradients == "training" else (0,):
        x = draw(3, 7, 12, dtype=torch.float32).requires_grad_(flags.get("x_grad", False))
        posed = problem(block, mapper, x, reads, **flags)
        for plan in exact_plans(posed):
            expected = sum(op.multiply_adds for op in operations(plan, posed))
            assert counted(block, mapper, x, reads, plan) == expected, (reads, plan)


LINEAR = {"formed", "folded"}


@settings(max_examples=200, deadline=None)
@given(
    trait=st.sampled_from(sorted(TRAITS)),
    form=st.sampled_from(["auto", "reads", "folded", "absorbed"]),
    batch=st.integers(1, 512),
    tokens=st.integers(1, 2000),
    all_read=st.booleans(),
    narrow=st.none() | st.integers(1, 2000),
    scale=st.sampled_from([1, 8, 100]),
    flags=st.sampled_from(list(GRADIENTS.values())),
    folds_ready=st.booleans(),
    device=st.sampled_from(["cpu", "cuda", "mps"]),
)
def test_what_is_inexact_is_never_chosen(
    trait: str, form: str, batch: int, tokens: int, all_read: bool, narrow: int | None, scale: int, **rest: Any
) -> None:
    """Keys and values behind a norm, of their own or of a latent, or a bound are no linear image of the tokens."""
    config = random_block(**TRAITS[trait]).config
    config = BlockConfig(**(vars(config) | {"dim": 32 * scale, "head_dim": 10 * scale, "mlp_dim": 40 * scale}))
    flags = rest.pop("flags")
    posed = Problem(
        config=config, batch=batch, tokens=tokens, reads=tokens if all_read else 1, narrow=narrow, **rest, **flags
    )
    plan = choose(posed, form)
    if config.qk_norm != "none" or config.clip_qkv is not None or config.kv_rank:
        assert plan.key in LINEAR
    if config.clip_qkv is not None or config.value_norm or config.kv_rank:
        assert plan.value in LINEAR
    if narrow is None:
        assert plan.space == "wide"
    allowed = list(exact_plans(posed))
    assert plan in allowed
    if form == "auto":
        assert seconds(plan, posed) == min(seconds(p, posed) for p in allowed)


@pytest.mark.parametrize("side", ["key", "value"])
@pytest.mark.parametrize("trait", ["qwen3", "command r", "olmo2", "olmo", "dbrx", "gemma4"])
def test_what_is_not_chosen_would_be_wrong(trait: str, side: str) -> None:
    """The rule above is not caution: the plans it leaves out give other numbers."""
    block = random_block(dtype=torch.float64, **TRAITS[trait])
    mapper, x = make_mapper(12, 32, torch.float64), draw(3, 7, 12)
    left_out = [
        p for p in PLANS if p not in list(exact_plans(problem(block, mapper, x))) and getattr(p, side) not in LINEAR
    ]
    if side == "value" and block.config.clip_qkv is None and not block.config.value_norm:
        assert all(p.key not in LINEAR for p in left_out)
        return
    assert left_out
    expected = dense(mapper, block, x, None, 0)[0]
    for plan in left_out:
        assert relative_error(by_plans(mapper, block, x, None, 0, [plan])[0], expected) > 1e-3


def test_the_law() -> None:
    """What stays of a 7B block is the read token's own cost, about 170 M multiply-adds an image."""
    config = BlockConfig(dim=4096, num_heads=32, num_kv_heads=32, head_dim=128, mlp_dim=11008)
    posed = Problem(config=config, batch=32, tokens=197, reads=1, narrow=384, folds_ready=True)
    plan = choose(posed)
    each = sum(op.multiply_adds for op in operations(plan, posed)) / 32
    assert plan == LayerPlan("narrow", "folded", "absorbed_fold", "absorbed_fold")
    assert 160e6 < each < 200e6
    whole = sum(op.multiply_adds for op in operations(LayerPlan(), Problem(**(vars(posed) | {"reads": 197})))) / 32
    assert whole > 200 * each


def test_many_images_fold_and_few_do_not() -> None:
    """In training a fold is made anew at each step: it pays from about 100 read tokens on."""
    config = BlockConfig(dim=4096, num_heads=32, num_kv_heads=32, head_dim=128, mlp_dim=11008)

    def keys(batch: int) -> str:
        posed = Problem(config=config, batch=batch, tokens=197, reads=1, narrow=384, x_grad=True, mapper_grad=True)
        return choose(posed).key

    assert keys(32) == "absorbed"
    assert keys(512) == "absorbed_fold"


def test_longer_and_wider_never_costs_less() -> None:
    base = Problem(config=random_block().config, batch=4, tokens=50, reads=1, narrow=16, x_grad=True, mapper_grad=True)
    for plan in PLANS:
        costs = [
            seconds(plan, Problem(**(vars(base) | more))) for more in ({}, {"tokens": 100}, {"tokens": 100, "reads": 9})
        ]
        assert costs == sorted(costs)
