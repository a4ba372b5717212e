"""Every form gives the dense reference's numbers and gradients, whatever traits a block has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import PLANS, TOLERANCE, TRAITS, assert_same, by_plans, draw, exact, make_mapper
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lmgraft.contracts import Reads
from lmgraft.graft.forms.plan import exact_plans
from lmgraft.graft.forms.problem import LayerPlan, Problem
from lmgraft.graft.forms.run import dense
from tiny import random_block


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("trait", TRAITS)
def test_traits(trait: str, dtype: torch.dtype) -> None:
    block = random_block(dtype=dtype, **TRAITS[trait])
    mapper, x = make_mapper(12, 32, dtype), draw(3, 7, 12, dtype=dtype)
    mask = torch.tensor([[False] * 5 + [True] * 2, [False] * 7, [True] * 6 + [False]])
    for plan in exact(block, mapper, x):
        assert_same(block, mapper, x, [plan], mask, reads=(0, 6))


@pytest.mark.parametrize("plan", PLANS, ids=str)
class TestEachPlan:
    def test_trained_block(self, plan: LayerPlan) -> None:
        """The fine-tuned control: gradients of every weight of the block."""
        block = random_block(dtype=torch.float64, bias=True, norm="layer", norm_bias=True).requires_grad_(True)
        assert_same(block, make_mapper(12, 32, torch.float64), draw(2, 5, 12), [plan], reads=1)

    def test_mapper_bias(self, plan: LayerPlan) -> None:
        block = random_block(dtype=torch.float64, norm="layer", norm_bias=True, bias=True)
        assert_same(block, make_mapper(12, 32, torch.float64, bias=True), draw(2, 5, 12), [plan], reads=-1)

    @pytest.mark.parametrize(
        "reads", [None, 0, -1, slice(1, 4), (4, 0, 0), torch.tensor([2]), torch.tensor([[0, 3], [4, 1]])], ids=str
    )
    def test_reads(self, plan: LayerPlan, reads: Reads) -> None:
        assert_same(
            random_block(dtype=torch.float64), make_mapper(12, 32, torch.float64), draw(2, 5, 12), [plan], None, reads
        )

    @pytest.mark.parametrize("shape", [(1, 1), (1, 6), (4, 1), (2, 33)], ids=str)
    def test_shapes(self, plan: LayerPlan, shape: tuple[int, int]) -> None:
        assert_same(random_block(dtype=torch.float64), make_mapper(12, 32, torch.float64), draw(*shape, 12), [plan])

    @pytest.mark.parametrize("visible", [1, 0])
    def test_padding(self, plan: LayerPlan, visible: int) -> None:
        """All but one token padded; and all of them, in one sample of two."""
        mask = torch.zeros(2, 5, dtype=torch.bool)
        mask[0, visible:] = True
        block = random_block(dtype=torch.float64, bias=True)
        assert_same(block, make_mapper(12, 32, torch.float64), draw(2, 5, 12), [plan], mask, (0, 3))

    @pytest.mark.parametrize("final_norm", ["unit", "pretrained", "none"])
    @pytest.mark.parametrize("layers", [2, 3])
    def test_stacks(self, plan: LayerPlan, layers: int, final_norm: str) -> None:
        """First layer by `plan`, the last by every plan of the wide space."""
        block = random_block(dtype=torch.float64, layers=layers, final_norm=final_norm)
        mapper, x = make_mapper(12, 32, torch.float64), draw(2, 5, 12)
        for last in exact_plans(Problem(config=block.config, batch=2, tokens=5, reads=1, narrow=None)):
            assert last.space == "wide"
            assert_same(block, mapper, x, [plan, *[LayerPlan()] * (layers - 2), last], reads=2)

    def test_input_not_contiguous(self, plan: LayerPlan) -> None:
        x = draw(12, 5, 2).permute(2, 1, 0)
        assert not x.is_contiguous()
        assert_same(random_block(dtype=torch.float64), make_mapper(12, 32, torch.float64), x, [plan])


@pytest.mark.parametrize("plan", [plan for plan in PLANS if plan.space == "narrow"], ids=str)
def test_nothing_wide_for_all_tokens(plan: LayerPlan) -> None:
    """In narrow space no tensor of T x D numbers is made for a sample, forward or backward."""
    block, mapper = random_block(head_dim=4, num_heads=2, num_kv_heads=1), make_mapper(12, 32, torch.float32)
    sizes: list[int] = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            sizes.extend(t.numel() for t in tree_leaves(out) if isinstance(t, Tensor))
            return out

    x = draw(2, 101, 12, dtype=torch.float32).requires_grad_()
    with Sizes():
        by_plans(mapper, block, x, None, 0, [plan])[0].sum().backward()
    assert len(sizes) > 20
    assert max(sizes) == x.numel()


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    trait=st.sampled_from(sorted(TRAITS)),
    batch=st.integers(1, 4),
    tokens=st.integers(1, 9),
    width=st.integers(1, 40),
    heads=st.sampled_from([(1, 1), (6, 3), (5, 1), (3, 3)]),
    head_dim=st.integers(2, 13),
    dim=st.integers(2, 45),
)
def test_drawn_shapes(
    data: st.DataObject,
    trait: str,
    batch: int,
    tokens: int,
    width: int,
    heads: tuple[int, int],
    head_dim: int,
    dim: int,
) -> None:
    shape = {"num_heads": heads[0], "num_kv_heads": heads[1], "head_dim": head_dim, "dim": dim, "mlp_dim": 9}
    block = random_block(dtype=torch.float64, **(TRAITS[trait] | shape))
    mapper, x = make_mapper(width, dim, torch.float64), draw(batch, tokens, width)
    plan = data.draw(st.sampled_from(exact(block, mapper, x)))
    mask = torch.tensor(
        data.draw(st.lists(st.lists(st.booleans(), min_size=tokens, max_size=tokens), min_size=batch, max_size=batch))
    )
    reads = tuple(data.draw(st.lists(st.integers(0, tokens - 1), min_size=1, max_size=4)))
    expected, found = dense(mapper, block, x, mask, reads), by_plans(mapper, block, x, mask, reads, [plan])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
