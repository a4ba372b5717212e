"""The planner's counts are those of real runs; it never chooses a form that a trait makes inexact."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_forms import PLANS, TRAITS, by_plans, draw, make_mapper, problem
from tiny import random_block
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lmgraft.block import BlockConfig
from lmgraft.graft.forms.plan import LayerPlan, Problem, choose, exact_plans, operations, seconds


def counted(block: Any, mapper: Any, x: torch.Tensor, reads: Any, plan: LayerPlan) -> int:
    """Multiply-adds of forward and backward pass of a real run."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        out = by_plans(mapper, block, x, None, reads, [plan])[0]
        if out.requires_grad:
            out.backward(torch.ones_like(out))
    total = counter.get_total_flops()
    assert total % 2 == 0
    return total // 2


GRADIENTS = {
    "none": {},
    "training": {"x_grad": True, "mapper_grad": True},
    "fixed encoder": {"mapper_grad": True},
    "saliency": {"x_grad": True},
    "fine-tuned block": {"x_grad": True, "mapper_grad": True, "block_grad": True},
}


@pytest.mark.parametrize("gradients", GRADIENTS)
@pytest.mark.parametrize("trait", TRAITS)
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
