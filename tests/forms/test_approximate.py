"""The approximate mode is only where it may be, measures its own error, and leaves no trace."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import SOME_TRAITS, TRAITS
from torch import Tensor, nn

import lmgraft
import padded_host
from lmgraft.block import FrozenBlock, rounded
from lmgraft.errors import ApproximationError, HostError
from lmgraft.graft import find_graft
from tiny import calls_of, images, make_vit, random_block, randomise_, relative_error

X = images(6)
MODES = ("int8", "16bit")
TOLERANCE = {"int8": 0.1, "16bit": 0.03}


def grafted(block: FrozenBlock | None = None, pool: str = "token", **options: Any) -> nn.Module:
    model = lmgraft.graft(make_vit(global_pool=pool), random_block(bias=True) if block is None else block, **options)
    randomise_(nn.ModuleList([model.graft.mapper_in, model.graft.mapper_out]), seed=6)
    return model.eval()


@torch.no_grad()
def run(model: nn.Module) -> Tensor:
    return model(X)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Products this small take longer to share out than to compute, much longer on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model() -> nn.Module:
    return grafted(pool="avg")


@torch.no_grad()
def test_several_inputs_with_padding(mode: str) -> None:
    model = lmgraft.graft(padded_host.PaddedEncoder(), random_block(bias=True)).eval()
    items = padded_host.PaddedData().example(6)
    inputs = (items.points, items.padded, items.context)
    wanted = model(*inputs)
    report = lmgraft.approximate(model, inputs, mode, repeats=1)
    assert report.samples == 6
    assert 0 < report.output_error == pytest.approx(relative_error(model(*inputs), wanted), rel=1e-4)


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_reported_errors_are_the_errors(mode: str, pool: str) -> None:
    model = grafted(pool=pool)
    seen = calls_of(model.graft)
    wanted = run(model)
    with lmgraft.reading_all_tokens(model):
        run(model)
    report = lmgraft.approximate(model, X, mode)
    del seen[2:]
    found = run(model)
    with lmgraft.reading_all_tokens(model):
        run(model)
    (read, everything, near_read, near_everything) = (out for _, out in seen)
    assert report.output_error == pytest.approx(relative_error(found, wanted), rel=1e-4)
    assert report.graft_error == pytest.approx(relative_error(near_read, read), rel=1e-4)
    assert report.graft_error_all_tokens == pytest.approx(relative_error(near_everything, everything), rel=1e-4)
    assert pool == "avg" or read.shape[1] == 1
    assert everything.shape[1] == 17
    assert report.changed == float((found.argmax(1) != wanted.argmax(1)).double().mean())
    assert 1e-5 < report.graft_error < TOLERANCE[mode]
    assert (report.samples, report.mode, report.device) == (6, mode, "cpu")
    assert report.memory > 0
    assert report.seconds_exact > 0 < report.seconds_approximate
    assert report.speedup_range[0] <= report.speedup <= report.speedup_range[1]
    assert json.loads(json.dumps(report.to_dict()))["mode"] == mode
    assert mode in str(report)
    assert len(str(report).splitlines()) == 5


@pytest.mark.parametrize("trait", SOME_TRAITS)
@pytest.mark.parametrize("layers", [1, 2])
def test_every_kind_of_layer(trait: str, layers: int, mode: str) -> None:
    traits = dict(TRAITS[trait])
    if "attention_scales" in traits:
        traits["attention_scales"] *= layers
    for pool in ("token", "avg"):
        model = grafted(random_block(layers=layers, **traits), pool)
        report = lmgraft.approximate(model, X, mode, repeats=1)
        assert 1e-5 < report.graft_error < TOLERANCE[mode]


@pytest.mark.parametrize("form", ["dense", "reads", "folded", "absorbed"])
@pytest.mark.parametrize("residual", ["none", "in", "out"])
def test_every_form_and_wiring(form: Any, residual: Any, mode: str) -> None:
    report = lmgraft.approximate(grafted(form=form, residual=residual), X, mode, repeats=1)
    assert 1e-6 < report.graft_error < TOLERANCE[mode]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_storage_of_another_width(dtype: torch.dtype, mode: str) -> None:
    report = lmgraft.approximate(grafted(random_block(dtype=dtype)), X, mode, repeats=1)
    assert 0 < report.graft_error < TOLERANCE[mode]
    shared = mode == "16bit" and dtype == torch.bfloat16
    assert (report.memory == 0) == shared


def test_exact_restores_every_bit(model: nn.Module, mode: str) -> None:
    before = run(model)
    lmgraft.approximate(model, X, mode)
    assert not torch.equal(run(model), before)
    assert lmgraft.exact(model) is model
    assert torch.equal(run(model), before)


def test_training_is_exact(model: nn.Module, mode: str) -> None:
    twin = copy.deepcopy(model)
    lmgraft.approximate(model, X, mode)
    for training in (True, False):
        gradients = []
        for each in (model, twin):
            each.train(training).zero_grad()
            out = each(X)
            out.square().sum().backward()
            gradients.append([out, *(p.grad for p in each.parameters() if p.grad is not None)])
        assert len(gradients[0]) > 10
        assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert not torch.equal(run(model), run(twin))
    assert torch.equal(run(model.train()), run(twin.train()))


def test_without_gradients_no_grad_is_not_needed(model: nn.Module) -> None:
    lmgraft.approximate(model, X)
    with torch.inference_mode():
        wanted = model(X)
    model.requires_grad_(False)
    assert torch.equal(model(X), wanted)
    assert not torch.equal(model(X.clone().requires_grad_()).detach(), wanted)


def test_made_under_inference_mode(model: nn.Module, mode: str) -> None:
    with torch.inference_mode():
        lmgraft.approximate(model, X, mode)
        wanted = model(X)
    assert torch.equal(run(model), wanted)
    model(X).sum().backward()


def test_copies_and_files_are_exact(model: nn.Module, mode: str, tmp_path: Path) -> None:
    before, state = run(model), {n: t.clone() for n, t in model.state_dict().items()}
    names = [n for n, _ in model.named_parameters()]
    modules = [n for n, _ in model.named_modules()]
    lmgraft.approximate(model, X, mode)
    assert [n for n, _ in model.named_parameters()] == names
    assert [n for n, _ in model.named_modules()] == modules
    now = model.state_dict()
    assert now.keys() == state.keys()
    assert all(torch.equal(now[n], state[n]) for n in state)
    assert torch.equal(run(copy.deepcopy(model)), before)
    assert torch.equal(run(pickle.loads(pickle.dumps(model))), before)  # noqa: S301
    lmgraft.save_pretrained(model, tmp_path)
    loaded = lmgraft.load_pretrained(tmp_path, make_vit(global_pool="avg"), model.graft.block)
    assert torch.equal(run(loaded), before)
    assert not torch.equal(run(model), before)


def test_storage_is_shared(model: nn.Module) -> None:
    lmgraft.approximate(model, X)
    twin = model.graft.compute.approximation._twin.block
    assert [p.data_ptr() for p in twin.parameters()] == [p.data_ptr() for p in model.graft.block.parameters()]


def test_moving_nowhere_keeps_it_and_casting_drops_it(model: nn.Module, mode: str) -> None:
    before = run(model)
    lmgraft.approximate(model, X, mode)
    near = run(model)
    assert torch.equal(run(model.to("cpu").float()), near)
    wide = copy.deepcopy(lmgraft.exact(model)).double()
    lmgraft.approximate(model, X, mode)
    model.double()
    with torch.no_grad():
        assert torch.equal(model(X.double()), wide(X.double()))
    assert model.graft.compute.approximation.mode is None
    torch.testing.assert_close(run(model.float()), before)


CHANGES = {
    "in place": lambda p: p.mul_(1.5),
    "unseen by autograd": lambda p: p.data.mul_(1.5),
    "replaced data": lambda p: setattr(p, "data", p.data * 1.5),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["attention.o.weight", "mlp.down.weight", "mlp.up.bias", "attention_norm.weight"])
def test_never_stale(model: nn.Module, mode: str, change: str, name: str) -> None:
    lmgraft.approximate(model, X, mode)
    run(model)
    with torch.no_grad():
        CHANGES[change](model.graft.block.layers[0].get_parameter(name))
    assert torch.equal(run(model), run(copy.deepcopy(model)))
    assert model.graft.compute.approximation.mode is None


def test_mappers_may_change(model: nn.Module) -> None:
    lmgraft.approximate(model, X)
    with torch.no_grad():
        model.graft.mapper_in.weight.mul_(-1)
        model.graft.mapper_out.weight.mul_(-1)
    near, exact = run(model), run(copy.deepcopy(model))
    assert 1e-6 < relative_error(near, exact) < 0.1


def test_loading_a_state_drops_it(model: nn.Module) -> None:
    before = run(model)
    lmgraft.approximate(model, X)
    model.load_state_dict(model.state_dict())
    assert torch.equal(run(model), before)


def test_watched_modules_are_called_exactly(model: nn.Module) -> None:
    before = run(model)
    lmgraft.approximate(model, X)
    seen = calls_of(model.graft.block.layers[0].mlp)
    assert torch.equal(run(model), before)
    assert len(seen) == 1
    with pytest.raises(ApproximationError, match="hooks"):
        lmgraft.approximate(model, X)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_transforms_and_traces_are_exact(model: nn.Module) -> None:
    before = run(model)
    lmgraft.approximate(model, X)
    with torch.no_grad():
        torch.testing.assert_close(torch.vmap(lambda x: model(x[None])[0])(X), before)
        compiled = torch.compile(copy.copy(model), backend="eager")
        torch.testing.assert_close(compiled(X), before)


def test_modes_of_modules_stay(model: nn.Module) -> None:
    model.train()
    model.blocks[1].eval()
    modes = [m.training for m in model.modules()]
    lmgraft.approximate(model, (X,))
    lmgraft.approximate(model, {"x": X})
    assert [m.training for m in model.modules()] == modes


def test_mistakes(model: nn.Module) -> None:
    with pytest.raises(HostError, match="not grafted"):
        lmgraft.approximate(make_vit(), X)
    with pytest.raises(HostError, match="not grafted"):
        lmgraft.exact(make_vit())
    with pytest.raises(ApproximationError, match="'int7' is not known"):
        lmgraft.approximate(model, X, "int7")


def test_numbers_that_are_not_finite(model: nn.Module) -> None:
    bad = X.clone()
    bad[1, 0, 0, 0] = float("nan")
    with pytest.raises(ApproximationError, match="not finite"):
        lmgraft.approximate(model, bad)
    assert find_graft(model).compute.approximation.mode is None
    lmgraft.approximate(model, X)
    with torch.no_grad():
        assert model(bad).isnan().any(1).tolist() == [False, True] + [False] * 4


@pytest.fixture
def forgetful() -> Iterator[None]:
    rounded.activation_levels.cache_clear()
    yield
    rounded.activation_levels.cache_clear()


@pytest.mark.usefixtures("forgetful")
def test_a_machine_without_int8(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any) -> Any:
        raise RuntimeError("could not create a primitive descriptor\nmore")

    monkeypatch.setattr(rounded, "pack", missing)
    with pytest.raises(ApproximationError, match=r"could not create a primitive descriptor\)(.|\n)*16bit"):
        lmgraft.approximate(model, X)
    assert torch.equal(run(model), run(copy.deepcopy(model)))
    assert lmgraft.approximate(model, X, "16bit").mode == "16bit"


@pytest.mark.usefixtures("forgetful")
def test_a_machine_whose_sums_overflow(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of two products that stop at 32767, as instructions before VNNI make them."""
    fine, levels = lmgraft.approximate(model, X, "int8"), rounded.activation_levels()
    rounded.activation_levels.cache_clear()
    honest = torch.ops.onednn.qlinear_pointwise
    overflowing = 0

    def narrow(x: Tensor, x_scale: float, zero: int, packed: Tensor, scale: Tensor, *rest: Any) -> Tensor:
        nonlocal overflowing
        weight = honest(torch.eye(x.shape[1]).to(torch.uint8), 1.0, 0, packed, torch.ones_like(scale), *rest)
        pairs = x.float().unsqueeze(-1) * weight
        pairs = nn.functional.pad(pairs, (0, 0, 0, x.shape[1] % 2)).unflatten(1, (-1, 2)).sum(2)
        overflowing += int((pairs.abs() > 32767).sum())
        return (pairs.clamp(-32768, 32767).sum(1) - zero * weight.sum(0)) * scale

    monkeypatch.setattr(torch.ops.onednn, "qlinear_pointwise", narrow)
    assert rounded.activation_levels() == 63
    assert overflowing
    overflowing = 0
    coarse = lmgraft.approximate(model, X, "int8", repeats=1)
    assert not overflowing
    assert coarse.graft_error < TOLERANCE["int8"]
    assert (fine.graft_error < coarse.graft_error) == (levels > 63)  # this machine's own sums may overflow too


def test_a_sample_does_not_depend_on_its_neighbours(model: nn.Module) -> None:
    lmgraft.approximate(model, X, "int8")
    with torch.no_grad():
        torch.testing.assert_close(model(torch.cat([X, 100 * X]))[:6], model(X), rtol=1e-4, atol=1e-5)


def test_a_block_that_is_trained(model: nn.Module, mode: str) -> None:
    """The fine-tuned control: approximate until the next step of its optimiser."""
    model.graft.block.requires_grad_(True)
    lmgraft.approximate(model, X, mode)
    assert not torch.equal(run(model), run(copy.deepcopy(model)))
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    model(X).square().sum().backward()
    optimiser.step()
    assert torch.equal(run(model), run(copy.deepcopy(model)))


@pytest.mark.parametrize("shape", [(4,), (2, 3, 4), (0, 4), (1, 0, 4)])
def test_rounded_projections_on_their_own(shape: tuple[int, ...]) -> None:
    shape = (*shape[:-1], 32) if len(shape) > 1 else (1, 32)
    block = random_block(bias=True)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    for mode in MODES:
        near, exact = rounded.round_block(block, mode).layers[0].mlp.up, block.layers[0].mlp.up
        out = near(x)
        assert out.shape == exact(x).shape
        if out.numel():
            assert relative_error(out, exact(x)) < 0.02
    zero = rounded.round_block(block, "int8").layers[0].mlp.up(torch.zeros(3, 32))
    assert torch.equal(zero, block.layers[0].mlp.up(torch.zeros(3, 32)))
