"""VectorNet: its parameters counted by hand, a plain reference, node completion, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear

import lmgraft
from lmgraft.backbones.mmtransformer import MMTransformer
from lmgraft.backbones.motion_baselines import ConstantVelocity
from lmgraft.backbones.scene_parts import AGENT_TYPES, LANE_ATTRIBUTES, ForecastWithNodes
from lmgraft.backbones.vectornet import VectorNet, create
from lmgraft.data.motion import scenes as contract
from lmgraft.errors import HostError
from tiny import random_block, randomise_, relative_error
from tiny_scenes import FUTURE, HISTORY, POINTS, SIZES, Seen, scenes


def tiny(**options: object) -> VectorNet:
    return randomise_(create("vectornet", {**SIZES, "hidden": 6, **options}), seed=5).eval()


def test_parameters_by_hand() -> None:
    """Width 64 as published; a vector is two ends, a time, 6 types and 3 + 4 + 3 values of a lane's attributes."""
    with torch.device("meta"):
        model = VectorNet(20, 30)
    unit = 64 + 2 * 64  # bias and norm
    subgraph = (21 * 64 + unit) + 2 * (128 * 64 + unit)
    attention = 3 * (128 * 128 + 128)
    head = (128 * 64 + unit) + (64 * 360 + 360) + (64 * 6 + 6)
    assert sum(p.numel() for p in model.parameters()) == subgraph + attention + head == 100_014


def test_types_and_attributes_are_the_data_s() -> None:
    assert len(contract.AGENT_TYPES) == AGENT_TYPES
    assert tuple(map(len, contract.LANE_ATTRIBUTES.values())) == LANE_ATTRIBUTES


def one_hot(number: Tensor, count: int) -> list[float]:
    return [float(int(number) == i) for i in range(count)]


def reference(model: VectorNet, seen: Seen, item: int) -> tuple[Tensor, Tensor]:
    """Trajectories and logits of one scene, vector by vector and token by token."""
    agents, valid, types, lanes, lane_valid, attributes = (x[item] for x in seen)
    w = model.state_dict()
    polylines: list[list[Tensor]] = []
    for a in range(len(agents)):
        kind, rows = one_hot(types[a], 6), []
        for s in range(HISTORY - 1):
            if valid[a, s] and valid[a, s + 1]:
                time = (s + 1 - (HISTORY - 1)) / (HISTORY - 1)
                rows.append(torch.tensor([*agents[a, s], *agents[a, s + 1], time, *kind, *[0.0] * 10]))
        polylines.append(rows)
    for n in range(len(lanes)):
        known = [v for i, count in enumerate((3, 4, 3)) for v in one_hot(attributes[n, i], count)]
        rows = [
            torch.tensor([*lanes[n, p], *lanes[n, p + 1], *[0.0] * 7, *known])
            for p in range(POINTS - 1)
            if lane_valid[n, p] and lane_valid[n, p + 1]
        ]
        polylines.append(rows)
    tokens = []
    for rows in (rows for rows in polylines if rows):
        for i in range(3):
            name = f"subgraph.layers.{i}"
            hidden = [
                layer_norm(linear(row, w[f"{name}.0.weight"], w[f"{name}.0.bias"]), (6,), w[f"{name}.1.weight"],
                           w[f"{name}.1.bias"]).relu()
                for row in rows
            ]  # fmt: skip
            most = torch.stack(hidden).max(0).values
            rows = [torch.cat([h, most]) for h in hidden]
        whole = torch.stack(rows).max(0).values
        tokens.append(whole / whole.norm())
    through = {name: [linear(t, w[f"global_graph.layers.0.{name}.weight"], w[f"global_graph.layers.0.{name}.bias"])
                      for t in tokens] for name in "qkv"}  # fmt: skip
    weights = torch.stack([through["q"][0] @ k for k in through["k"]]).softmax(0)
    target = sum(share * v for share, v in zip(weights, through["v"], strict=True))
    h = linear(target, w["decoder.0.weight"], w["decoder.0.bias"])
    h = layer_norm(h, (6,), w["decoder.1.weight"], w["decoder.1.bias"]).relu()
    steps = linear(h, w["steps.weight"], w["steps.bias"]).reshape(6, FUTURE, 2)
    walked = torch.stack([steps[:, : t + 1].sum(1) for t in range(FUTURE)], 1)
    return walked, linear(h, w["scores.weight"], w["scores.bias"])


def test_a_plain_reference() -> None:
    model, seen = tiny(), scenes()
    out = model(*seen)
    for item in range(3):
        trajectories, logits = reference(model, seen, item)
        assert relative_error(out.trajectories[item], trajectories) < 1e-5
        assert relative_error(out.logits[item], logits) < 1e-5


@pytest.mark.parametrize(
    "make",
    [
        tiny,
        lambda **options: randomise_(MMTransformer(**SIZES, embed_dim=8, **options), seed=5).eval(),
        lambda **options: randomise_(MMTransformer(**SIZES, embed_dim=8, read="proposals", **options), seed=5).eval(),
    ],
    ids=["vectornet", "vehicle", "proposals"],
)
def test_forecasts_that_start_from_the_velocity(make: Callable[..., Any]) -> None:
    seen = scenes()
    plain, out = make()(*seen), make(from_velocity=2)(*seen)
    goes_on = ConstantVelocity(FUTURE, steps=2)(*seen).trajectories - seen[0][:, :1, -1:]
    assert relative_error(out.trajectories, plain.trajectories + goes_on) < 1e-5
    assert torch.equal(out.logits, plain.logits)


def test_places_in_other_units() -> None:
    agents, valid, types, lanes, lane_valid, attributes = seen = scenes()
    plain = tiny()(agents / 4, valid, types, lanes / 4, lane_valid, attributes)
    out = tiny(coordinate_scale=4.0)(*seen)
    assert torch.equal(out.trajectories, plain.trajectories)
    assert torch.equal(out.logits, plain.logits)


def test_node_completion_hides_tokens_and_reads_them_before_the_block() -> None:
    model, seen = tiny(node_completion=0.5, global_layers=2, residual=True).train(), scenes()
    _, padded, starts = model.polylines(seen)
    first = seen[0][0, 0, :-1].amin(0)
    assert torch.equal(starts[0, 0], first)
    torch.manual_seed(3)
    plain = model(*seen)
    assert isinstance(plain, ForecastWithNodes)
    hidden = plain.nodes.hidden
    assert hidden.any()
    assert not (hidden & padded).any()
    assert not hidden[:, 0].any()
    lmgraft.graft(model, random_block())
    torch.manual_seed(3)
    grafted = model(*seen)
    assert torch.equal(grafted.nodes.completed, plain.nodes.completed)
    assert not torch.equal(grafted.trajectories, plain.trajectories)
    (grafted.nodes.completed[hidden] - grafted.nodes.wanted[hidden]).square().sum().backward()
    assert model.graft.mapper_in.weight.grad is None
    assert model.global_graph.layers[0].q.weight.grad.abs().sum() > 0
    assert not hasattr(model.eval()(*seen), "nodes")


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("vectornet2", {}, "is vectornet"),
        ("vectornet", {"hiden": 3}, "refused its arguments"),
        ("vectornet", {"num_modes": 0}, "at least one"),
        ("vectornet", {"node_completion": 1.0}, "node_completion"),
        ("vectornet", {"from_velocity": SIZES["history"]}, "from_velocity"),
        ("vectornet", {"coordinate_scale": 0.0}, "coordinate_scale"),
        ("vectornet", {"pretrained": True}, "no released weights"),
    ],
)
def test_what_cannot_be_is_refused(name: str, options: dict[str, object], words: str) -> None:
    with pytest.raises(HostError, match=words):
        create(name, {**SIZES, **options})


def test_scenes_of_another_history_are_refused() -> None:
    agents, *others = scenes()
    with pytest.raises(HostError, match=r"agents \(3, 4, 4, 2\).*"):
        tiny()(agents[:, :, 1:], *others)
    valid, types, *lanes = others
    with pytest.raises(HostError, match="the target first"):
        tiny()(agents[:, :0], valid[:, :0], types[:, :0], *lanes)
