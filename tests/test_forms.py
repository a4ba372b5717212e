"""Every form gives the dense reference's numbers and gradients, whatever traits a block has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lmgraft.block import FrozenBlock
from lmgraft.contracts import Reads, count_tokens
from lmgraft.graft.forms.plan import exact_plans
from lmgraft.graft.forms.problem import LayerPlan, Problem
from lmgraft.graft.forms.run import dense, make_folds, planned
from tiny import random_block, relative_error

TRAITS: dict[str, dict[str, Any]] = {
    "llama": {},
    "one head each": {"num_kv_heads": 4},
    "one for all": {"num_kv_heads": 1},
    "wide heads": {"head_dim": 24},
    "biases": {"qkv_bias": True, "output_bias": True, "mlp_bias": True},
    "opt": {"norm": "layer", "norm_bias": True, "mlp": "plain", "activation": "relu", "qkv_bias": True},
    "olmo": {"norm": "layer", "clip_qkv": 0.4},
    "dbrx": {"norm": "layer", "clip_qkv": 0.4, "norm_bias": True, "qkv_bias": True},
    "gemma": {"norm": "rms_plus_one", "activation": "gelu_tanh"},
    "gemma2": {"norm": "rms_plus_one", "norm_place": "sandwich", "logit_softcap": 0.7},
    "gemma3": {"norm": "rms_plus_one", "norm_place": "sandwich", "qk_norm": "per_head"},
    "softcap and shifts": {"logit_softcap": 0.5, "norm": "layer", "norm_bias": True, "qkv_bias": True},
    "qwen3": {"qk_norm": "per_head"},
    "command r": {"norm": "layer", "qk_norm": "per_own_head", "parallel": "shared_norm"},
    "olmo2": {"norm_place": "post_branch", "qk_norm": "full_width"},
    "opt 350": {"norm": "layer", "norm_bias": True, "norm_place": "post_residual", "qkv_bias": True},
    "neox": {"norm": "layer", "norm_bias": True, "parallel": "own_norm", "qkv_bias": True},
    "phi": {"norm": "layer", "norm_bias": True, "parallel": "shared_norm", "mlp": "plain", "activation": "gelu"},
    "bloom": {"norm": "layer", "norm_bias": True, "residual_after_norm": True, "qkv_bias": True},
    "granite": {"residual_scale": 0.3, "attention_scales": (0.11,)},
}
PLANS = list(exact_plans(Problem(config=random_block().config, batch=1, tokens=1, reads=1, narrow=12)))
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def draw(*shape: int, seed: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def problem(block: FrozenBlock, mapper: nn.Linear, x: Tensor, reads: Reads = 0, **more: Any) -> Problem:
    bias = mapper.bias is not None
    return Problem(
        config=block.config,
        batch=x.shape[0],
        tokens=x.shape[1],
        reads=count_tokens(x.shape[1], reads),
        narrow=x.shape[2] + bias,
        mapper_bias=bias,
        **more,
    )


def make_mapper(width: int, dim: int, dtype: torch.dtype, bias: bool = False) -> nn.Linear:
    mapper = nn.Linear(width, dim, bias=bias, dtype=dtype)
    with torch.no_grad():
        mapper.weight.copy_(draw(dim, width, seed=8) * width**-0.5)
        if bias:
            mapper.bias.copy_(draw(dim, seed=9))
    return mapper


def by_plans(
    mapper: nn.Linear,
    block: FrozenBlock,
    x: Tensor,
    mask: Tensor | None,
    reads: Reads,
    plans: list[LayerPlan],
    mean: bool = False,
) -> tuple[Tensor, Tensor]:
    folds = make_folds(mapper, block.layers[0], frozenset(plans[0].folds())) if plans[0].space == "narrow" else None
    return planned(mapper, block, x, mask, reads, plans, folds, mean)


def results(
    compute: Callable[..., tuple[Tensor, Tensor]], mapper: nn.Linear, block: FrozenBlock, x: Tensor, *rest: Any
) -> dict[str, Tensor]:
    """Outputs, and gradients of a random functional of both, by name."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    leaves = {"x": x, **{f"W1 {n}": p for n, p in mapper.named_parameters()}}
    leaves |= {n: p for n, p in block.named_parameters() if p.requires_grad}
    out, h = compute(mapper, block, x, *rest)
    loss = (out * draw(*out.shape, seed=1).to(out.dtype)).sum() + (h * draw(*h.shape, seed=2).to(h.dtype)).sum()
    grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    found = {f"grad {n}": g for n, g in zip(leaves, grads, strict=True) if g is not None}
    return {"out": out, "h": h, **found}


def assert_same(
    block: FrozenBlock,
    mapper: nn.Linear,
    x: Tensor,
    plans: list[LayerPlan],
    mask: Tensor | None = None,
    reads: Reads = 0,
) -> None:
    expected = results(dense, mapper, block, x, mask, reads)
    found = results(by_plans, mapper, block, x, mask, reads, plans)
    scale = max(float(t.detach().double().norm()) for n, t in expected.items() if n.startswith("grad"))
    # A gradient that is zero but for rounding, as of a key bias, which softmax ignores: both forms say nothing.
    named = {n for n, t in expected.items() if float(t.detach().double().norm()) > 1e-9 * scale}
    assert found.keys() >= named
    assert {"out", "h", "grad x", "grad W1 weight"} <= named | {n for n in expected if x.shape[1] == 1}
    errors = {n: relative_error(found[n], expected[n]) for n in named}
    worst = max(errors, key=errors.__getitem__)
    assert errors[worst] <= TOLERANCE[x.dtype], (worst, errors[worst], plans)


def exact(block: FrozenBlock, mapper: nn.Linear, x: Tensor) -> list[LayerPlan]:
    return list(exact_plans(problem(block, mapper, x)))


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
