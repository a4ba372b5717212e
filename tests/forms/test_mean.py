"""Where only a mean over tokens is read, what is linear is computed for the mean alone: the same numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracle import TRAITS, assert_fresh, by_plans, draw, grafted, make_mapper, problem
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import lmgraft
from lmgraft.contracts import MeanOf
from lmgraft.graft.forms.cost import operations
from lmgraft.graft.forms.plan import exact_plans
from lmgraft.graft.forms.run import dense, mean_comes_early
from tiny import calls_of, images, long_but, make_vit, random_block, relative_error

READS = (1, 3, 4)
EARLY = [t for t in TRAITS if mean_comes_early(random_block(final_norm="none", **TRAITS[t]))]


@pytest.mark.parametrize("final_norm", ["unit", "pretrained", "none"])
@pytest.mark.parametrize("trait", TRAITS)
def test_equals_the_mean_of_all(trait: str, final_norm: str) -> None:
    block = random_block(dtype=torch.float64, final_norm=final_norm, **TRAITS[trait])
    mapper, x = make_mapper(12, 32, torch.float64), draw(3, 7, 12).requires_grad_()
    expected = [t.mean(1, keepdim=True) for t in dense(mapper, block, x, None, READS)]
    gradient = torch.autograd.grad(sum(t.square().sum() for t in expected), [x, mapper.weight])
    for plan in exact_plans(problem(block, mapper, x)):
        found = by_plans(mapper, block, x, None, READS, [plan], mean=True)
        assert all(relative_error(a, b) < 1e-10 for a, b in zip(found, expected, strict=True))
        grads = torch.autograd.grad(sum(t.square().sum() for t in found), [x, mapper.weight])
        assert all(relative_error(a, b) < 1e-10 for a, b in zip(grads, gradient, strict=True))


def test_not_before_a_norm() -> None:
    assert {"llama", "phi", "bloom"} <= set(EARLY)
    assert not {"gemma2", "olmo2", "opt 350"} & set(EARLY)
    assert not mean_comes_early(random_block())


@pytest.mark.parametrize("trait", long_but(EARLY, "llama", "phi", "bloom"))
def test_counts_are_those_of_a_real_run(trait: str) -> None:
    block, mapper = random_block(final_norm="none", **TRAITS[trait]), make_mapper(12, 32, torch.float32)
    x = draw(3, 7, 12, dtype=torch.float32).requires_grad_()
    posed = problem(block, mapper, x, READS, x_grad=True, mapper_grad=True, mean_early=True)
    whole = problem(block, mapper, x, READS, x_grad=True, mapper_grad=True)
    for plan in exact_plans(posed):
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            out = by_plans(mapper, block, x, None, READS, [plan], mean=True)[0]
            out.backward(torch.ones_like(out))
        expected = sum(op.multiply_adds for op in operations(plan, posed))
        assert counter.get_total_flops() == 2 * expected
        assert expected < sum(op.multiply_adds for op in operations(plan, whole))


class TestClassifier:
    @pytest.mark.parametrize("final_norm", ["unit", "none"])
    @pytest.mark.parametrize("residual", ["none", "out", "in", "gated"])
    @pytest.mark.parametrize("layers", [1, 2])
    def test_average_pooling(self, final_norm: str, residual: Any, layers: int) -> None:
        model = grafted(
            block={"final_norm": final_norm, "layers": layers}, vit={"global_pool": "avg"}, residual=residual
        )
        if model.graft.gate is not None:
            model.graft.gate.data.fill_(0.6)
        assert_fresh(model)

    def test_one_mean_is_mapped_back(self) -> None:
        model = grafted(vit={"global_pool": "avg"})
        seen = calls_of(model.graft.mapper_out)
        model(images())
        model.forward_features(images())
        assert [x.shape[1] for x, _ in seen] == [1, 17]

    def test_every_token_of_features(self) -> None:
        model = grafted(vit={"global_pool": "avg"})
        features = model.forward_features(images())
        assert features.std(dim=1).min() > 0
        assert relative_error(model.forward_head(features), model(images())) < 1e-5

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({"global_pool": "avg"}, MeanOf(slice(1, None))),
            ({"global_pool": "avg", "reg_tokens": 2}, MeanOf(slice(3, None))),
            ({"global_pool": "avg", "pool_include_prefix": True}, MeanOf(slice(0, None))),
            ({"global_pool": "avg", "fc_norm": False}, None),
            ({"global_pool": "avgmax"}, None),
            ({"global_pool": "max"}, None),
            ({"global_pool": "map"}, None),
            ({"global_pool": "token", "reg_tokens": 2}, 0),
        ],
        ids=str,
    )
    def test_what_each_head_reads(self, options: dict[str, Any], expected: Any) -> None:
        model = lmgraft.graft(make_vit(**options), random_block(dim=160)).eval()
        assert model.graft.host.reads(model, (), {}) == expected
        assert_fresh(model)

    def test_pooling_changed_afterwards(self) -> None:
        model = grafted(vit={"global_pool": "avg"})
        model.reset_classifier(5, "max")
        assert model.graft.host.reads(model, (), {}) is None
        nn.init.normal_(model.head.weight)
        assert_fresh(model)

    @pytest.mark.long
    def test_compiled(self) -> None:
        model = grafted(vit={"global_pool": "avg"}, block={"final_norm": "none"})
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert relative_error(compiled(images()), model(images())) < 1e-5
