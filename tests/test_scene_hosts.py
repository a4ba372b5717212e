"""What holds of every encoder of scenes: padding and order do not matter, nothing is ever NaN, and all that is done to
hosts is done to these."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lmgraft
from lmgraft.analysis.observe import observe
from lmgraft.backbones.motion_baselines import ConstantVelocity, NearestNeighbours
from lmgraft.contracts import take_tokens
from lmgraft.graft.hosts import find_host
from lmgraft.registry import FACTORIES
from tiny import long_but, random_block, randomise_, relative_error
from tiny_scenes import FUTURE, HISTORY, SIZES, one, padded, scenes, shuffled

MMT = {"embed_dim": 16, "depth": 1}
HOSTS: dict[str, tuple[str, dict[str, Any]]] = {
    "vectornet": ("vectornet", {"hidden": 8}),
    "vectornet, completing": ("vectornet", {"hidden": 8, "node_completion": 0.3, "global_layers": 2}),
    "mmtransformer": ("mmtransformer", MMT),
    "mmtransformer, proposals": ("mmtransformer", MMT | {"read": "proposals"}),
}
every = pytest.mark.parametrize("name", HOSTS)


def make(name: str, **options: Any) -> Any:
    factory, kwargs = HOSTS[name]
    torch.manual_seed(1)
    return randomise_(FACTORIES.load(factory)(factory, {**SIZES, **kwargs, **options}), seed=5).eval()


def differs(a: Any, b: Any) -> float:
    return max(relative_error(x, y) for x, y in zip(a, b, strict=True))


@every
@pytest.mark.parametrize("grafted", [False, True])
def test_padding_and_order_never_change_a_forecast(name: str, grafted: bool) -> None:
    model = make(name)
    if grafted:
        torch.manual_seed(2)
        lmgraft.graft(model, random_block())
    with torch.no_grad():
        for seed in range(3):
            seen = scenes(batch=3, agents=2 + seed, lanes=3 + seed, seed=seed)
            out = model(*seen)
            assert differs(model(*padded(seen, 2, seed)), out) < 1e-5
            assert differs(model(*shuffled(seen, seed)), out) < 1e-5
            for item in range(3):
                assert differs(model(*one(seen, item)), [x[item : item + 1] for x in out]) < 1e-5


@every
def test_nothing_is_ever_nan(name: str) -> None:
    """A target that is seen once, nobody else and no lane, with padding and without."""
    model = lmgraft.graft(make(name), random_block()).train()
    agents, valid, types, *_ = scenes(batch=2, agents=2)
    valid = valid & (torch.arange(HISTORY) == HISTORY - 1) & (torch.arange(2) == 0)[:, None]
    for lanes in (0, 2):
        nothing = torch.zeros(2, lanes, 4, 2), torch.zeros(2, lanes, 4, dtype=torch.bool)
        out = model(agents * valid[..., None], valid, types, *nothing, torch.zeros(2, lanes, 3, dtype=torch.long))
        loss = out.trajectories.square().mean() + out.logits.square().mean()
        loss.backward()
        assert loss.isfinite()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@every
def test_a_folded_graft_is_the_dense_one_and_goes_out_again(name: str) -> None:
    model, seen = make(name), scenes()
    plain = model(*seen)
    grafts = {}
    for form in ("dense", "auto"):
        torch.manual_seed(3)
        grafts[form] = lmgraft.graft(copy.deepcopy(model), random_block(dim=48, mlp_dim=24), form=form)
    out = {form: grafted(*seen) for form, grafted in grafts.items()}
    assert differs(out["auto"], out["dense"]) < 1e-5
    assert differs(out["dense"], plain) > 1e-2
    assert differs(lmgraft.ungraft(grafts["auto"])(*seen), plain) == 0


@every
def test_the_block_is_computed_for_what_is_read_alone(name: str) -> None:
    model, seen = lmgraft.graft(make(name), random_block()), scenes()
    host, shapes = find_host(model), []
    model.graft.register_forward_hook(lambda _, args, out: shapes.append((args[0].shape, out.shape)))
    model(*seen)
    (((batch, tokens, _), (_, read, _)),) = shapes
    prefix = host.layout.num_prefix_tokens
    assert (batch, tokens) == (3, 4 + 5 + (prefix if prefix > 1 else 0))
    assert read == prefix == len(range(6)[host.reads(model, seen, {})] if prefix > 1 else [0])


@every
def test_what_the_host_says(name: str) -> None:
    model, seen = make(name), scenes()
    host = find_host(model)
    seen_tokens = observe(model, *seen)
    prefix, (agents, valid, _, lanes, lane_valid, _) = host.layout.num_prefix_tokens, seen
    places = host.layout.places(model, seen)
    assert places.shape == (3, seen_tokens.at["encoder"].tokens.shape[1] + prefix, 2)
    truth = torch.zeros(3, 4, dtype=torch.bool)
    truth[0, 2] = truth[1, 1] = True
    shares = host.layout.shares(model, seen, truth)
    agents_at = places.shape[1] - 9
    assert torch.equal(places[0, agents_at : agents_at + 4], agents[0, :, -1])
    assert torch.allclose(places[0, -5], lanes[0, 0][lane_valid[0, 0]].mean(0))
    gone = torch.cat([~valid.any(-1), ~lane_valid.any(-1)], 1)
    assert torch.equal(places[:, agents_at:].isnan().any(-1), gone)
    assert torch.equal(seen_tokens.padded[:, -8:], gone[:, 1:])
    known = shares[0, agents_at:]
    assert known.nan_to_num(-1).tolist() == [-1, 0, 1, 0, 0, 0, 0, 0, 0]
    if host.head_from_tokens is not None:
        caught: list[Tensor] = []
        at = model.get_submodule(host.layers[-1])
        at.register_forward_hook(lambda *call: caught.append(host.output.take(call[2])))
        out = model(*seen)
        assert differs(host.head_from_tokens(model, caught[0]), out) == 0
        assert differs(host.head_from_tokens(model, take_tokens(caught[0], host.reads(model, seen, {}))), out) == 0


@every
@pytest.mark.parametrize("at", ["head", "middle"])
def test_other_places(name: str, at: str) -> None:
    model, seen = make(name), scenes()
    plain = model(*seen)
    lmgraft.graft(model, random_block(), at=at)
    assert differs(model(*seen), plain) > 1e-3
    assert differs(model(*padded(seen, 1, 2)), model(*seen)) < 1e-5


@every
def test_saved_and_loaded(name: str, tmp_path: Path, llama_folder: Path) -> None:
    factory, kwargs = HOSTS[name]
    spec = {"factory": factory, "name": factory, "kwargs": {**SIZES, **kwargs}}
    model, seen = lmgraft.graft(make(name), llama_folder, host_spec=spec), scenes()
    lmgraft.save_pretrained(model, tmp_path / "model")
    assert differs(lmgraft.load_pretrained(tmp_path / "model").eval()(*seen), model(*seen)) == 0


@pytest.mark.parametrize("name", long_but(HOSTS, "vectornet, completing"))
def test_exported_to_onnx(name: str, tmp_path: Path) -> None:
    """Any number of agents and lanes, none too."""
    onnxruntime = pytest.importorskip("onnxruntime")
    from lmgraft.graft.export import export_onnx

    model = lmgraft.graft(make(name), random_block())
    report = export_onnx(model, scenes(batch=2), tmp_path / "scene.onnx")
    assert report.inputs[0] == ("batch", "agents", HISTORY, 2)
    assert report.inputs[5] == ("batch", "lanes", 3)
    session = onnxruntime.InferenceSession(tmp_path / "scene.onnx", providers=["CPUExecutionProvider"])
    many = scenes(batch=5)
    for seen in (scenes(1, 9, 12, seed=3), many, one(many, 0), one(many, 4)):
        given = {value.name: x.numpy() for value, x in zip(session.get_inputs(), seen, strict=True)}
        assert differs([torch.from_numpy(x) for x in session.run(None, given)], model(*seen)) < 1e-4


def test_constant_velocity() -> None:
    agents = torch.zeros(2, 3, 6, 2)
    agents[0, 0] = torch.arange(-5, 1)[:, None] * torch.tensor([2.0, -1.0])
    agents[1, 0] = torch.tensor([[9.0, 9.0], [9, 9], [9, 9], [-3, 0], [-1, 0], [0, 0]])
    valid = torch.ones(2, 3, 6, dtype=torch.bool)
    valid[1, 0, :3] = False
    out = ConstantVelocity(FUTURE, steps=3)(agents, valid)
    steps = torch.arange(1, FUTURE + 1)[:, None]
    assert torch.equal(out.trajectories[0, 0], steps * torch.tensor([2.0, -1.0]))
    assert torch.equal(out.trajectories[1, 0], steps * torch.tensor([1.5, 0.0]))
    valid[1] = False
    assert not ConstantVelocity(FUTURE)(agents, valid).trajectories[1].any()


def test_nearest_neighbours() -> None:
    draw = torch.Generator().manual_seed(0)
    known = torch.randn(7, HISTORY, 2, generator=draw)
    valid = torch.rand(7, HISTORY, generator=draw) < 0.7
    valid[:, -1] = True
    futures = torch.randn(7, FUTURE, 2, generator=draw)
    agents, agent_valid, *others = scenes()
    out = NearestNeighbours(known, valid, futures, count=3)(agents, agent_valid, *others)
    for item in range(3):
        apart = []
        for n in range(7):
            both = valid[n] & agent_valid[item, 0]
            apart.append((agents[item, 0, both] - known[n, both]).square().sum(1).mean())
        order = torch.stack(apart).argsort()[:3]
        assert torch.equal(out.trajectories[item], futures[order])
        assert torch.allclose(out.logits[item], -torch.stack(apart)[order], atol=1e-5)
    assert NearestNeighbours(known, valid, futures, count=9)(agents, agent_valid).logits.shape == (3, 7)
