"""Compiled, the planned forms give what they give in eager mode: whole graphs, gradients too.

`test_graft_reads.py` looks at what is read inside a trace; here the block is wide enough for
every narrow form.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lmgraft
from lmgraft.graft.layer import baked
from tiny import images, long_but, make_vit, needs_torch, random_block, relative_error

pytestmark = needs_torch("2.6")

WIDE = {"dim": 96, "mlp_dim": 128}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    # Traits of the block, of the host, and of the graft.
    "token": ({}, {}, {}),
    "avg": ({}, {"global_pool": "avg"}, {}),
    "stack": ({"layers": 2}, {}, {"residual": "in"}),
    "layer_norm": ({"norm": "layer", "norm_bias": True, "bias": True}, {}, {"residual": "out"}),
    "nonlinear": ({"qk_norm": "per_head", "clip_qkv": 1.0, "logit_softcap": 5.0}, {}, {}),
    "distilled": ({}, {"name": "deit_tiny_distilled_patch16_224"}, {}),
    "read_token": ({}, {"global_pool": "avg"}, {"read_token": True}),
    "middle": ({}, {"depth": 2}, {"at": "middle"}),
    "stored_in_16_bits": ({"dtype": torch.bfloat16}, {}, {}),
}


def make(case: str) -> nn.Module:
    block, host, options = CASES[case]
    return lmgraft.graft(make_vit(**{"depth": 1, **host}), random_block(**(WIDE | block)), **options)


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def results(model: nn.Module, call: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Output and every gradient, of the images too."""
    x = images(3).requires_grad_()
    out = call(x)
    generator = torch.Generator().manual_seed(2)
    (out * torch.randn(out.shape, generator=generator)).sum().backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return {"out": out.detach(), "images": x.grad, **found}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        if tensor.norm() > 1e-6:  # a bias that a softmax or a norm takes out again has noise for a gradient
            assert relative_error(found[name], tensor) <= 1e-5, name


@pytest.mark.parametrize("case", long_but(CASES, "token"))
class TestWholeGraph:
    def test_training(self, case: str) -> None:
        model = make(case).train()
        expected = results(model, model)
        assert "graft.mapper_in.weight" in expected
        assert_same(results(model, torch.compile(model, backend="aot_eager", fullgraph=True)), expected)

    def test_evaluation_and_baked(self, case: str) -> None:
        model = make(case)
        with torch.no_grad():
            expected = model(images(3))
            compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
            assert relative_error(compiled(images(3)), expected) <= 1e-5
            with baked(model):
                assert relative_error(compiled(images(3)), expected) <= 1e-5
            assert relative_error(compiled(images(3)), expected) <= 1e-5


def narrow_and_folded(model: nn.Module) -> bool:
    with torch.no_grad():
        (plan, *_) = model.graft.plan(torch.zeros(3, 17, 48), 0)
    return plan.space == "narrow" and bool(plan.folds())


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.long
def test_gradients_of_a_baked_model(frozen: bool) -> None:
    """All of them, W1's too: where that is trained, constants would swallow a part of its gradient."""
    model = make("layer_norm")
    model.graft.mapper_in.weight.requires_grad_(not frozen)
    expected = results(model, model)
    with baked(model):
        assert narrow_and_folded(model)
        assert_same(results(model, model), expected)
        assert_same(results(model, torch.compile(model, backend="aot_eager", fullgraph=True)), expected)


@pytest.mark.long
def test_what_was_baked_is_not_used_outside() -> None:
    """A compiled model follows its mapper after `baked` has ended."""
    model = make("token")
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        with baked(model):
            compiled(images())
        model.graft.mapper_in.weight.mul_(-1.5)
        assert relative_error(compiled(images()), model(images())) <= 1e-5
        with baked(model):
            assert relative_error(compiled(images()), model(images())) <= 1e-5


@pytest.mark.long
def test_other_batch_sizes() -> None:
    """The second size makes the batch a symbol; plans and folds must not mind."""
    model = make("layer_norm")
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for batch in (2, 3, 5):
        assert relative_error(compiled(images(batch)), model(images(batch))) <= 1e-5


@pytest.mark.long
def test_inductor() -> None:
    if shutil.which("g++") is None:
        pytest.skip("NOT TESTED: code generated by inductor, since this machine has no g++")
    model = make("layer_norm").train()
    expected = results(model, model)
    assert_same(results(model, torch.compile(model, fullgraph=True)), expected)
