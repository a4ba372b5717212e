"""Autocast, 16-bit models and 16-bit storage: the fast form is as exact as the dense one."""

from __future__ import annotations

import copy

import pytest
import torch
from oracle import PLANS, TRAITS, by_plans, draw, exact, make_mapper, results
from torch import Tensor

import lmgraft
from lmgraft.block import products
from lmgraft.graft.forms import affine
from lmgraft.graft.forms.problem import LayerPlan
from lmgraft.graft.forms.run import dense
from tiny import images, make_vit, random_block, relative_error

HALVES = [torch.bfloat16, torch.float16]
FORWARD_AD = pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")  # torch's own decompositions


def assert_no_worse(found: dict[str, Tensor], reference: dict[str, Tensor], truth: dict[str, Tensor]) -> None:
    for name, true in truth.items():
        ours, theirs = relative_error(found[name], true), relative_error(reference[name], true)
        assert ours <= 2 * theirs, (name, ours, theirs)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("trait", ["llama", "opt", "gemma2", "olmo2"])
def test_autocast(plan: LayerPlan, trait: str, dtype: torch.dtype) -> None:
    """Both forms against float64: the fast one's error is at most twice the dense one's."""
    block, wide = (random_block(dtype=d, dim=96, **TRAITS[trait]) for d in (torch.float32, torch.float64))
    mapper, x = make_mapper(24, 96, torch.float32), draw(4, 33, 24, dtype=torch.float32)
    if plan not in exact(block, mapper, x):
        return
    rest = (None, (0, 5))
    truth = results(dense, copy.deepcopy(mapper).double(), wide, x.double(), *rest)
    with torch.autocast("cpu", dtype=dtype):
        reference = results(dense, mapper, block, x, *rest)
        found = results(by_plans, mapper, block, x, *rest, [plan])
    assert found["out"].dtype == reference["out"].dtype
    assert_no_worse(found, reference, truth)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_half_model(plan: LayerPlan, dtype: torch.dtype) -> None:
    block = random_block(dim=96).to(dtype)
    mapper, x = make_mapper(24, 96, torch.float32).to(dtype), draw(4, 33, 24, dtype=torch.float32).to(dtype)
    truth = results(dense, copy.deepcopy(mapper).double(), copy.deepcopy(block).double(), x.double(), None, 0)
    reference = results(dense, mapper, block, x, None, 0)
    found = results(by_plans, mapper, block, x, None, 0, [plan])
    assert found["out"].dtype == dtype
    assert_no_worse(found, reference, truth)


class TestNormScales:
    @pytest.mark.parametrize("dtype", HALVES)
    def test_are_float32_under_autocast(self, dtype: torch.dtype) -> None:
        mapper, x = make_mapper(24, 96, torch.float32), draw(2, 5, 24, dtype=torch.float32)
        norm = random_block(dim=96).layers[0].attention_norm
        map_ = affine.affine(mapper, norm)
        plain = affine.narrow_tokens(x, mapper, map_)
        with torch.autocast("cpu", dtype=dtype):
            cast = affine.affine(mapper, norm)
            assert torch.equal(cast.gram, map_.gram)
            assert torch.equal(affine.narrow_tokens(x, mapper, cast), plain)

    def test_never_rounded_to_tf32(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where products of float32 may be rounded they are made in float64."""
        mapper, x = make_mapper(24, 96, torch.float32), draw(2, 5, 24, dtype=torch.float32)
        norm = random_block(dim=96).layers[0].attention_norm
        seen: list[torch.dtype] = []
        matmul = Tensor.__matmul__
        monkeypatch.setattr(Tensor, "__matmul__", lambda a, b: seen.append(a.dtype) or matmul(a, b))
        before = torch.get_float32_matmul_precision()
        try:
            for precision, expected in (("highest", torch.float32), ("high", torch.float64), ("medium", torch.float64)):
                torch.set_float32_matmul_precision(precision)
                seen.clear()
                affine.narrow_tokens(x, mapper, affine.affine(mapper, norm))
                assert seen == [expected] * 2
        finally:
            torch.set_float32_matmul_precision(before)

    def test_a_token_the_mapper_annihilates(self) -> None:
        """x^T G x may come out a little below zero: the norm is then that of the epsilon."""
        mapper = make_mapper(24, 96, torch.float32)
        with torch.no_grad():
            mapper.weight[:, 0] = 0
        x = torch.zeros(1, 2, 24)
        x[0, :, 0] = 1e4
        map_ = affine.affine(mapper, random_block(dim=96).layers[0].attention_norm)
        assert torch.isfinite(affine.narrow_tokens(x, mapper, map_)).all()


class TestNarrowStorage:
    """Weights in 16 bits, computing in 32: widened piece by piece."""

    @pytest.fixture(autouse=True)
    def small_pieces(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(products, "_PIECE", {"cpu": 100, "cuda": 100})

    @pytest.mark.parametrize("trait", ["llama", "opt", "olmo2", "olmo"])
    @pytest.mark.parametrize("dtype", HALVES)
    def test_equals_widened_weights(self, trait: str, dtype: torch.dtype) -> None:
        narrow = random_block(**TRAITS[trait]).to(dtype)
        wide = copy.deepcopy(narrow).float()
        mapper, x = make_mapper(12, 32, torch.float32), draw(3, 7, 12, dtype=torch.float32)
        for plan in exact(narrow, mapper, x):
            found = results(by_plans, mapper, narrow, x, None, (0, 2), [plan])
            expected = results(by_plans, mapper, wide, x, None, (0, 2), [plan])
            assert max(relative_error(found[n], expected[n]) for n in expected) < 1e-5

    @pytest.mark.parametrize("transposed", [True, False])
    def test_gradients(self, transposed: bool) -> None:
        weight = draw(3, 7, 11).bfloat16()
        x = draw(3, 5, 11 if transposed else 7).requires_grad_()
        assert products._is_narrow(x, weight)
        assert torch.autograd.gradcheck(lambda x: products.grouped(x, weight, transposed=transposed), (x,))
        assert torch.autograd.gradgradcheck(lambda x: products.grouped(x, weight, transposed=transposed), (x,))

    def test_no_widened_copy_is_kept(self) -> None:
        """What autograd saves of a 16-bit block is the block's own tensors."""
        block = random_block().to(torch.bfloat16)
        own = {p.data_ptr() for p in block.parameters()}
        saved: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
            x = draw(1, 1, 32, dtype=torch.float32).requires_grad_()
            block(x)
        matrices = [t for t in saved if t.numel() > 200]
        assert len(matrices) == 7
        assert {t.data_ptr() for t in matrices} <= own

    @FORWARD_AD
    def test_forward_mode(self) -> None:
        weight, x = draw(1, 7, 11).bfloat16(), draw(1, 5, 11)
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
            out = torch.autograd.forward_ad.unpack_dual(products.grouped(dual, weight, transposed=True))
        assert relative_error(out.tangent, torch.ones_like(x) @ weight.double().transpose(1, 2)) < 1e-12

    def test_a_trained_block_is_widened_at_once(self) -> None:
        block = random_block().to(torch.bfloat16).requires_grad_(True)
        block(draw(1, 3, 32, dtype=torch.float32)).sum().backward()
        assert all(p.grad is not None for p in block.parameters())


class TestFewRows:
    """Few rows times a large matrix: another order of the product, the same numbers and gradients."""

    @pytest.fixture(autouse=True)
    def every_size(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(products, "_LARGE", 0)

    @pytest.mark.parametrize("rows", [(1,), (2,), (31,), (32,), (2, 40), (256,), (257,), (0,), (3, 0)])
    @pytest.mark.parametrize("bias", [False, True])
    def test_equals_torch(self, rows: tuple[int, ...], bias: bool) -> None:
        weight, shift = draw(6, 11), draw(6, seed=4) if bias else None
        x, y = draw(*rows, 11).requires_grad_(), draw(*rows, 11).requires_grad_()
        found, expected = products.linear(x, weight, shift), torch.nn.functional.linear(y, weight, shift)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        found.square().sum().backward()
        expected.square().sum().backward()
        torch.testing.assert_close(x.grad, y.grad, rtol=1e-12, atol=1e-12)

    @FORWARD_AD
    def test_every_derivative(self) -> None:
        weight, x = draw(6, 11), draw(5, 11).requires_grad_()
        assert torch.autograd.gradcheck(lambda x: products.linear(x, weight), (x,), check_forward_ad=True)
        assert torch.autograd.gradgradcheck(lambda x: products.linear(x, weight), (x,))

    def test_under_transforms(self) -> None:
        weight, x = draw(6, 11), draw(4, 5, 11)
        found = torch.func.vmap(lambda one: products.linear(one, weight))(x)
        torch.testing.assert_close(found, x @ weight.T)
        gradient = torch.func.grad(lambda x: products.linear(x, weight).square().sum())(x)
        torch.testing.assert_close(gradient, 2 * x @ weight.T @ weight)

    def test_a_block(self) -> None:
        block, wide = random_block(), random_block().double()
        x = draw(4, 6, 32, dtype=torch.float32)
        assert relative_error(block(x), wide(x.double())) < 1e-5


@pytest.mark.parametrize("dtype", HALVES)
def test_a_classifier_under_autocast(dtype: torch.dtype) -> None:
    model = lmgraft.graft(make_vit(), random_block())
    with torch.autocast("cpu", dtype=dtype):
        loss = model(images()).float().square().sum()
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)
    model.half() if dtype == torch.float16 else model.bfloat16()
    assert model.eval()(images(dtype=dtype)).dtype == dtype


def test_frozen_weights_in_another_type_than_the_host() -> None:
    """The block in 16 bits, the host in float64."""
    model = lmgraft.graft(make_vit().double(), random_block().to(torch.bfloat16))
    narrow = lmgraft.graft(make_vit().double(), random_block().to(torch.bfloat16).to(torch.float64), form="dense")
    narrow.load_state_dict(model.state_dict())
    assert relative_error(model(images(dtype=torch.float64)), narrow(images(dtype=torch.float64))) < 1e-10
