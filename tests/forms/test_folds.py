"""Kept folds are never stale and never saved; the graft by every form equals the dense one."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracle import FORMS, SHAPE, assert_fresh, dense_twin, grafted, is_kept, plan_of
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrizations

import lmgraft
from lmgraft.errors import HostError
from lmgraft.graft.forms.problem import LayerPlan
from lmgraft.graft.layer import GraftLayer, baked
from tiny import calls_of, images, make_vit, random_block, relative_error


@pytest.fixture
def model() -> nn.Module:
    """A model whose folds are kept and used."""
    made = grafted()
    with torch.no_grad():
        made(images())
    assert is_kept(made)
    return made


class TestForms:
    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("residual", ["none", "out", "in", "gated"])
    @pytest.mark.parametrize("layers", [1, 2])
    @pytest.mark.parametrize("pool", ["token", "avg"])
    def test_equal_the_dense_one(self, form: str, residual: str, layers: int, pool: str) -> None:
        model = grafted(
            form, {"layers": layers, "dtype": torch.float64}, {"global_pool": pool}, residual=residual
        ).double()
        if model.graft.gate is not None:
            model.graft.gate.data.fill_(0.7)
        twin, x = dense_twin(model), images(dtype=torch.float64)
        model(x).square().sum().backward()
        twin(x).square().sum().backward()
        for (name, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
            if ours.requires_grad:
                assert relative_error(ours.grad, theirs.grad) < 1e-10, name
        with torch.no_grad():
            assert relative_error(model(x), twin(x)) < 1e-10

    def test_a_form_is_what_it_says(self) -> None:
        plans = {form: plan_of(grafted(form)) for form in FORMS}
        assert plans["reads"] == LayerPlan()
        assert (plans["folded"].key, plans["folded"].value) == ("folded", "folded")
        assert plans["absorbed"].key.startswith("absorbed")
        assert plans["auto"].space == "narrow"

    @pytest.mark.parametrize("at", ["head", "middle", 0])
    def test_where_layers_follow(self, at: Any) -> None:
        model = grafted(at=at)
        assert_fresh(model)
        assert is_kept(model)

    def test_more_than_one_read_token(self) -> None:
        torch.manual_seed(3)
        model = make_vit("deit_tiny_distilled_patch16_224")
        assert_fresh(lmgraft.graft(model, random_block(**SHAPE)).eval())

    def test_registers(self) -> None:
        model = grafted(vit={"reg_tokens": 4})
        assert_fresh(model)
        rows = calls_of(model.graft.block.layers[0].mlp)
        model(images())
        assert [out.shape[1] for _, out in rows] == [1]


class TestKept:
    def test_used_again(self, model: nn.Module) -> None:
        kept = model.graft.compute.fold_cache._kept
        with torch.no_grad():
            model(images())
        assert model.graft.compute.fold_cache._kept is kept

    def test_equal_those_of_the_first_call(self, model: nn.Module) -> None:
        assert_fresh(model)

    def test_not_while_gradient_flows(self) -> None:
        model = grafted()
        model(images()).sum().backward()
        assert not is_kept(model)
        assert model.graft.mapper_in.weight.grad.norm() > 0

    def test_not_in_training(self) -> None:
        """W1 changes at every step: folds would be made for one call each."""
        model = grafted().train()
        with torch.no_grad():
            model(images())
        assert not is_kept(model)

    def test_in_training_of_a_head(self) -> None:
        model = grafted().requires_grad_(False)
        model.head.requires_grad_(True)
        model.train()(images()).sum().backward()
        assert is_kept(model)

    def test_in_eval_mode_with_gradients(self, model: nn.Module) -> None:
        """Eval mode does not turn gradients off: W1 must get its whole gradient."""
        twin = dense_twin(model)
        for each in (model, twin):
            each(images()).square().sum().backward()
        assert relative_error(model.graft.mapper_in.weight.grad, twin.graft.mapper_in.weight.grad) < 1e-5

    def test_with_gradients_to_the_image_only(self) -> None:
        """Saliency: nothing in the folds is trained, so they are kept, and the image's gradient is right."""
        model = grafted().requires_grad_(False)
        twin, x, y = dense_twin(model), images().requires_grad_(), images().requires_grad_()
        model(x).square().sum().backward()
        twin(y).square().sum().backward()
        assert is_kept(model)
        assert relative_error(x.grad, y.grad) < 1e-5

    def test_not_of_a_trained_block(self) -> None:
        model = grafted()
        model.graft.block.requires_grad_(True)
        assert_fresh(model)
        assert not is_kept(model)

    def test_not_in_a_state_dict(self, model: nn.Module, tmp_path: Any) -> None:
        plain = grafted()
        assert model.state_dict().keys() == plain.state_dict().keys()
        assert [n for n, _ in model.named_buffers()] == [n for n, _ in plain.named_buffers()]
        for made, folder in ((model, "kept"), (plain, "plain")):
            lmgraft.save_pretrained(made, tmp_path / folder)
        sizes = [(tmp_path / folder / "model.safetensors").stat().st_size for folder in ("kept", "plain")]
        assert sizes[0] == sizes[1]

    def test_not_in_copies(self, model: nn.Module) -> None:
        for clone in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301 - our own bytes
            assert not is_kept(clone)
            clone.graft.mapper_in.weight.data.mul_(-0.5)
            assert_fresh(clone)
        assert_fresh(model)


def write_data(model: nn.Module) -> None:
    model.graft.mapper_in.weight.data.mul_(0.9)


def write_one_number(model: nn.Module) -> None:
    model.graft.mapper_in.weight.data[7, 3] += 1.0


def replace_data(model: nn.Module) -> None:
    model.graft.mapper_in.weight.data = model.graft.mapper_in.weight.data * 0.9


def replace_parameter(model: nn.Module) -> None:
    model.graft.mapper_in.weight = nn.Parameter(model.graft.mapper_in.weight.detach() * 0.9)


def optimiser_step(model: nn.Module) -> None:
    model(images()).square().sum().backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()


def ema_swap(model: nn.Module) -> None:
    average = copy.deepcopy(model)
    write_data(average)
    for ours, theirs in zip(model.parameters(), average.parameters(), strict=True):
        ours.data, theirs.data = theirs.data, ours.data


def load_state(model: nn.Module) -> None:
    model.load_state_dict({n: t * 0.9 for n, t in model.state_dict().items()})


def load_assigned(model: nn.Module) -> None:
    model.load_state_dict({n: t * 0.9 for n, t in model.state_dict().items()}, assign=True)


def write_under_no_grad(model: nn.Module) -> None:
    with torch.no_grad():
        model.graft.mapper_in.weight.add_(0.1)


def write_a_gain(model: nn.Module) -> None:
    model.graft.block.layers[0].attention_norm.weight.data[5] += 3.0


def write_the_block(model: nn.Module) -> None:
    for p in model.graft.block.parameters():
        p.data.mul_(0.8)


def other_block(model: nn.Module) -> None:
    block = random_block(**SHAPE)
    for p in block.parameters():
        p.data.mul_(0.8)
    model.graft.block = block


def to_float64(model: nn.Module) -> None:
    model.double()
    model.graft.mapper_in.weight.data.mul_(0.9)
    model.float()


def change_while_training(model: nn.Module) -> None:
    model.train()
    write_data(model)
    model.eval()


CHANGES: list[Callable[[nn.Module], None]] = [
    write_data,
    write_one_number,
    replace_data,
    replace_parameter,
    optimiser_step,
    ema_swap,
    load_state,
    load_assigned,
    write_under_no_grad,
    write_a_gain,
    write_the_block,
    other_block,
    to_float64,
    change_while_training,
]


class TestNeverStale:
    @pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
    def test_after(self, model: nn.Module, change: Callable[[nn.Module], None]) -> None:
        with torch.no_grad():
            before = model(images())
        change(model)
        assert_fresh(model)
        with torch.no_grad():
            assert relative_error(model(images()), before) > 1e-4

    def test_a_switch_of_mode_drops_them(self, model: nn.Module) -> None:
        model.eval()
        assert is_kept(model)
        model.train()
        assert not is_kept(model)

    def test_moved(self, model: nn.Module) -> None:
        model.double()
        assert not is_kept(model)
        with torch.no_grad():
            assert model(images(dtype=torch.float64)).dtype == torch.float64

    def test_the_mapper_can_change_its_kind(self, model: nn.Module) -> None:
        parametrizations.weight_norm(model.graft.mapper_in)
        assert plan_of(model) == LayerPlan()
        assert_fresh(model)


class TestInferenceMode:
    def test_folds_made_inside_serve_outside(self) -> None:
        model = grafted()
        with torch.inference_mode():
            inside = model(images())
        assert is_kept(model)
        assert not any(f.weight.is_inference() for f in model.graft.compute.fold_cache._kept.folds.projections.values())
        model.requires_grad_(False)
        x = images().requires_grad_()
        model(x).sum().backward()  # an inference tensor in the graph would raise here
        assert torch.equal(inside, model(images()))

    def test_inference_weights_are_never_kept(self) -> None:
        with torch.inference_mode():
            model = grafted()
            first = model(images())
            assert not is_kept(model)
            model.graft.mapper_in.weight.mul_(0.5)
            assert relative_error(model(images()), dense_twin(model)(images())) < 1e-5
            assert relative_error(model(images()), first) > 1e-4

    def test_functional_transforms(self, model: nn.Module) -> None:
        """Per-sample gradients and mapped parameters see their own W1, not the kept one."""
        named = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
        scaled = {n: torch.stack([p, 0.5 * p]) for n, p in named.items()}
        x = images()

        def predict(parameters: dict[str, Tensor]) -> Tensor:
            out: Tensor = torch.func.functional_call(model, parameters, (x,))
            return out

        with sdpa_kernel(SDPBackend.MATH):  # the others have no rule for vmap
            found = torch.func.vmap(predict)(scaled)
        for i in range(2):
            expected = predict({n: p[i] for n, p in scaled.items()})
            assert relative_error(found[i], expected) < 1e-5
        gradient = torch.func.grad(lambda p: predict(p).square().sum())(named)
        model(x).square().sum().backward()
        assert relative_error(gradient["graft.mapper_in.weight"], model.graft.mapper_in.weight.grad) < 1e-4


def test_two_threads_and_a_changing_mapper() -> None:
    """Each prediction is that of one of the two mappers, never of a mixture."""
    model = grafted()
    first, second = model.graft.mapper_in, copy.deepcopy(model.graft.mapper_in)
    second.weight.data.mul_(-0.7)
    x, expected = images(), []
    with torch.no_grad():
        for mapper in (first, second):
            model.graft.mapper_in = mapper
            expected.append(model(x))
    wrong: list[Tensor] = []
    done = threading.Event()

    def predict() -> None:
        with torch.no_grad():
            while not done.is_set():
                out = model(x)
                if min(relative_error(out, e) for e in expected) > 1e-4:
                    wrong.append(out)

    threads = [threading.Thread(target=predict) for _ in range(2)]
    for thread in threads:
        thread.start()
    with torch.no_grad():
        mine = [model(x) for _ in range(30)]
    done.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert all(torch.equal(out, mine[0]) for out in mine)


class TestWatchers:
    @pytest.mark.parametrize("path", ["mapper_in", "block", "block.layers.0", "block.layers.0.attention.k"])
    def test_a_hook_still_sees_every_token(self, model: nn.Module, path: str) -> None:
        seen = calls_of(model.graft.get_submodule(path))
        with torch.no_grad():
            model(images())
        assert [x.shape[1] for x, _ in seen] == [17]
        assert_fresh(model)

    def test_modules_that_run_anyway_may_be_watched(self, model: nn.Module) -> None:
        seen = calls_of(model.graft.block.layers[0].mlp)
        assert plan_of(model).space == "narrow"
        with torch.no_grad():
            model(images())
        assert [x.shape[1] for x, _ in seen] == [1]

    def test_a_mapper_that_is_not_linear(self, model: nn.Module) -> None:
        model.graft.mapper_in = nn.Sequential(model.graft.mapper_in, nn.GELU())
        assert plan_of(model) == LayerPlan()
        assert_fresh(model)

    def test_a_mapper_with_a_bias(self, model: nn.Module) -> None:
        mapper = nn.Linear(48, 160)
        mapper.weight.data.copy_(model.graft.mapper_in.weight)
        model.graft.mapper_in = mapper
        assert plan_of(model).space == "narrow"
        assert_fresh(model)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("form", ["auto", "folded", "absorbed"])
def test_recomputed_in_backward(form: str, reentrant: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Activation checkpointing of the encoder, and of the graft behind its last layer."""
    model, x = grafted(form, {"dtype": torch.float64}).double().train(), images(dtype=torch.float64)
    model(x).square().sum().backward()
    expected = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    if reentrant:
        monkeypatch.setattr("timm.models._manipulate.use_reentrant_ckpt", lambda: True)
    model.set_grad_checkpointing()
    seen = calls_of(model.graft.block.layers[0].mlp)
    model(x.requires_grad_()).square().sum().backward()
    assert len(seen) == 2
    for name, grad in expected.items():
        assert relative_error(model.get_parameter(name).grad, grad) < 1e-10, name


class TestBaked:
    def test_constants_inside(self, model: nn.Module) -> None:
        with torch.no_grad():
            expected = model(images())
            with baked(model):
                assert torch.equal(model(images()), expected)
                assert isinstance(model.graft, GraftLayer)
                assert model.graft.compute.baked is not None
        assert model.graft.compute.baked is None

    def test_dropped_after_an_error(self, model: nn.Module) -> None:
        with pytest.raises(HostError), baked(model):
            raise HostError("stop")
        assert model.graft.compute.baked is None
