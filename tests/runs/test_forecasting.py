"""Forecasts: Argoverse's published rule and its own functions, the losses by hand, what is predicted and drawn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lmgraft.backbones.scene_parts import Forecast, ForecastWithNodes, Nodes
from lmgraft.contracts.metric import by_name
from lmgraft.data.motion.scenes import AGENT_TYPES, Scenes
from lmgraft.data.motion.toy_scenes import ToyScenes
from lmgraft.errors import RecipeError
from lmgraft.registry import METRICS, PICTURES
from lmgraft.tasks.forecasting import Forecasting, errors

DATA = ToyScenes(batch_size=4)
STEPS = DATA.framing.future


def task(**options: Any) -> Forecasting:
    return Forecasting(nn.Identity(), DATA, None, None, **options)  # type: ignore[arg-type]


def drawn(batch: int, modes: int, seed: int = 0) -> tuple[Forecast, Scenes]:
    draw = torch.Generator().manual_seed(seed)
    scenes = DATA.example(batch)._replace(future=torch.randn(batch, STEPS, 2, generator=draw).cumsum(1))
    off = 2 * torch.randn(batch, modes, STEPS, 2, generator=draw)
    logits = torch.randn(batch, modes, generator=draw)
    return Forecast(scenes.future[:, None] + off, logits), scenes


def published(trajectories: Tensor, logits: Tensor, future: Tensor, k: int) -> dict[str, float]:
    """Argoverse's rule, of one target: of the k most probable guesses the one of the least final error counts."""
    beliefs = [math.exp(float(x)) for x in logits]
    beliefs = [b / sum(beliefs) for b in beliefs]
    guesses = sorted(range(len(beliefs)), key=lambda m: -beliefs[m])[:k]
    off = {m: [math.dist(p, q) for p, q in zip(trajectories[m], future, strict=True)] for m in guesses}
    best = min(guesses, key=lambda m: off[m][-1])
    fde = off[best][-1]
    ade = sum(off[best]) / len(off[best])
    return {"minfde": fde, "minade": ade, "mr": float(fde > 2.0), "brier_minfde": fde + (1 - beliefs[best]) ** 2}


@pytest.mark.parametrize(("modes", "k"), [(6, 6), (6, 1), (8, 6), (3, 6), (1, 1)])
def test_the_published_rule(modes: int, k: int) -> None:
    out, scenes = drawn(12, modes, seed=modes)
    out.logits[3:6] = 0.0  # equally probable: the first ones count
    values = errors(*out, scenes.future, k)
    for item in range(12):
        wanted = published(out.trajectories[item], out.logits[item], scenes.future[item], k)
        assert {name: float(column[item]) for name, column in values.items()} == pytest.approx(wanted, abs=1e-5)
    assert 0 < values["mr"].mean() < 1


def test_a_miss_is_more_than_two_metres() -> None:
    future = torch.zeros(3, STEPS, 2)
    ends = torch.tensor([2.0, 2.001, 0.0])
    trajectories = torch.zeros(3, 1, STEPS, 2)
    trajectories[:, 0, -1, 0] = ends
    assert errors(trajectories, torch.zeros(3, 1), future, 6)["mr"].tolist() == [0, 1, 0]


def test_argoverse_s_own_functions() -> None:
    metrics = pytest.importorskip("av2.datasets.motion_forecasting.eval.metrics")
    for seed in range(20):
        out, scenes = drawn(1, 6, seed)
        guesses, truth = out.trajectories[0].double().numpy(), scenes.future[0].double().numpy()
        beliefs = out.logits[0].double().softmax(0).numpy()
        fde, ade = metrics.compute_fde(guesses, truth), metrics.compute_ade(guesses, truth)
        missed = metrics.compute_is_missed_prediction(guesses, truth, 2.0)
        brier = metrics.compute_brier_fde(guesses, truth, beliefs)
        best = int(np.argmin(fde))
        wanted = {"minfde": fde[best], "minade": ade[best], "mr": float(missed[best]), "brier_minfde": brier[best]}
        values = {name: float(column) for name, column in errors(*out, scenes.future, 6).items()}
        assert values == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("confidence", ["kl", "cross_entropy"])
def test_the_winner_takes_all(confidence: str) -> None:
    out, scenes = drawn(3, 4)
    wanted = 0.0
    for item in range(3):
        ends = [math.dist(path[-1], scenes.future[item, -1]) for path in out.trajectories[item]]
        best = int(np.argmin(ends))
        apart = (out.trajectories[item, best] - scenes.future[item]).abs().flatten().tolist()
        huber = sum(0.5 * d * d if d < 1 else d - 0.5 for d in apart) / len(apart)
        believed = out.logits[item].double().softmax(0).tolist()
        near = [math.exp(-end) for end in ends]
        target = [n / sum(near) for n in near]
        if confidence == "cross_entropy":
            target = [float(m == best) for m in range(4)]
        divergence = sum(t * (math.log(t) - math.log(b)) for t, b in zip(target, believed, strict=True) if t)
        wanted += (huber + 0.5 * divergence) / 3
    loss = task(confidence=confidence, confidence_weight=0.5).loss(out, scenes)
    assert float(loss) == pytest.approx(wanted, rel=1e-4)


def test_only_the_winner_and_the_beliefs_are_taught() -> None:
    out, scenes = drawn(1, 3)
    trajectories, logits = out.trajectories.requires_grad_(), out.logits.requires_grad_()
    task().loss(Forecast(trajectories, logits), scenes).backward()
    best = int((trajectories[0, :, -1] - scenes.future[0, -1]).norm(dim=1).argmin())
    assert [m for m in range(3) if trajectories.grad[0, m].any()] == [best]
    assert logits.grad.abs().min() > 0


def test_node_completion_counts_hidden_nodes_alone() -> None:
    out, scenes = drawn(2, 3)
    completed, wanted = torch.zeros(2, 4, 5), torch.full((2, 4, 5), 7.0)
    hidden = torch.zeros(2, 4, dtype=torch.bool)
    hidden[0, 1] = True
    wanted[0, 1] = 3.0
    plain = float(task().loss(out, scenes))
    with_nodes = task(node_weight=2.0).loss(ForecastWithNodes(*out, Nodes(completed, wanted, hidden)), scenes)
    assert float(with_nodes) == pytest.approx(plain + 2 * 2.5)
    nothing = Nodes(completed, wanted, torch.zeros_like(hidden))
    assert float(task().loss(ForecastWithNodes(*out, nothing), scenes)) == pytest.approx(plain)


def test_metrics_are_rows_and_columns() -> None:
    of_task = by_name(Forecasting.metrics(), "Forecasting")
    assert next(iter(of_task)) == "minfde6"
    assert all(METRICS.load(name) == metric for name, metric in of_task.items())
    assert not any(metric.higher_is_better for metric in of_task.values())
    out, scenes = drawn(5, 6)
    columns = task().score(out, scenes)
    assert set(of_task) == {name for name in columns if not name.startswith("by_")}
    assert torch.equal(columns["by_agent_type"], scenes.agent_types[:, 0].int())
    assert DATA.categories()["agent_type"] == AGENT_TYPES
    assert torch.equal(task().targets(scenes), scenes.future[:, -1])


def test_predictions_begin_with_the_most_probable() -> None:
    out, scenes = drawn(2, 6)
    predicted = task().predict(out, scenes)
    first = int(out.logits[1].argmax())
    assert predicted[1]["probabilities"] == sorted(predicted[1]["probabilities"], reverse=True)
    assert np.allclose(predicted[1]["trajectories"][0], out.trajectories[1, first].numpy(), atol=1e-3)
    assert predicted[1]["ends"][0] == predicted[1]["trajectories"][0][-1]


@pytest.mark.parametrize("options", [{"confidence": "nll"}, {"confidence_weight": -1}, {"node_weight": -0.1}])
def test_options_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=next(iter(options))):
        task(**options)


@pytest.mark.parametrize("target_is_a_token", [False, True])
def test_a_scene_is_drawn_from_above(target_is_a_token: bool) -> None:
    pytest.importorskip("matplotlib")
    out, scenes = drawn(2, 6)
    if target_is_a_token:
        scenes.future[1] = torch.nan  # as in an official test set
    shown = type(task().shown(scenes))(*(x[1] for x in task().shown(scenes)))
    agents, lanes = len(shown.agents), len(shown.lanes)
    tokens = torch.linspace(0, 1, agents + lanes - (not target_is_a_token))
    predicted = {"llm": task().predict(out, scenes)[1]}
    truth = torch.zeros(agents, dtype=torch.bool)
    truth[1] = True
    maps = {"llm": {"W2": tokens, "block's attention": tokens}, "plain": {"W2": tokens}}
    figure = PICTURES.load(DATA.things)(shown, maps, None, None, truth, predicted)
    assert [ax.get_title(loc="left") for ax in figure.axes[:3]] == ["forecast", "W2", "block's\nattention"]
    assert [text.get_text() for text in figure.axes[0].texts] == [f"{p:.0%}" for p in predicted["llm"]["probabilities"]]
    (drawn_lanes,) = figure.axes[1].collections
    there = [n for n in range(lanes) if shown.lane_valid[n].any()]
    assert len(drawn_lanes.get_segments()) == len(there)
    last = drawn_lanes.get_colors()[len(there) - 1]
    import matplotlib

    value = float(tokens[len(tokens) - lanes + there[-1]])
    assert np.allclose(last[:3], matplotlib.colormaps["viridis"](value)[:3], atol=0.01)
