"""The recipes of traffic scenes: the paper's settings, what the models count, steps of them, and short runs of both."""

from __future__ import annotations

import copy
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from lasting import assert_same_run, interrupt
from test_motion_data import XML, write_csv

import lmgraft
from lmgraft.cli.main import main
from lmgraft.data.motion.toy_scenes import ToyScenes
from lmgraft.recipes import list_recipes, load_recipe, read_result, train_run
from lmgraft.recipes.build import build_model, build_task
from lmgraft.recipes.flops import flops_of
from lmgraft.recipes.recipe import Recipe
from lmgraft.registry import FACTORIES
from lmgraft.report.explore.view import view_html
from lmgraft.report.pictures.scenes import draw_scene
from lmgraft.studies.analyze.look import Opened, _scores, look, predictions, shown
from lmgraft.studies.explore import Choice, open_explorer
from lmgraft.training.optim import make_optimizer, parameter_groups
from lmgraft.training.schedule import make_schedule
from tiny import random_block

PAPER = [name for name in list_recipes() if name.startswith("motion/") and "argoverse" in name]
FORMS = ("auto", "dense")
COMPLETION = 2 * 128 + 128 + (128 * 128 + 128 + 2 * 128) + (128 * 128 + 128)  # identity, and what it reads


@cache
def loaded(name: str) -> Recipe:
    """Read only."""
    return load_recipe(name, ["--data.root", "nowhere"])


def model_of(recipe: Recipe) -> Any:
    arguments = recipe.data.model_arguments() | recipe.backbone.kwargs
    return FACTORIES.find(recipe.backbone.factory)(recipe.backbone.name, arguments)


def count_of(recipe: Recipe) -> int:
    """By hand for 30 steps (tests/test_vectornet.py, tests/test_mmtransformer.py), and what more of them add."""
    further = recipe.data.framing.future - 30
    by_hand = {"vectornet": 100_014 + COMPLETION, "mmtransformer": 1_868_157}[recipe.backbone.name]
    return by_hand + further * {"vectornet": 6 * 2 * 65, "mmtransformer": 2 * 129}[recipe.backbone.name]


@pytest.mark.parametrize("name", PAPER)
def test_the_paper_s_settings(name: str) -> None:
    recipe = loaded(name)
    optim, vectornet = recipe.optim, recipe.backbone.name == "vectornet"
    assert (optim.optimizer, optim.lr, recipe.data.batch_size, optim.warmup) == ("adamw", 5e-4, 32, 0)
    assert (recipe.train.epochs, optim.schedule) == ((60, "step") if vectornet else (32, "drops"))
    first = "argoverse1" in name
    assert (recipe.data.framing.history, recipe.data.framing.future) == ((20, 30) if first else (50, 60))
    assert (recipe.arm == "llm") == name.endswith("_llama")
    factor = make_schedule(
        torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))]), 10 * recipe.train.epochs, optim,
        epochs=recipe.train.epochs,
    ).lr_lambdas[0]  # fmt: skip
    if vectornet:
        assert [factor(0), factor(300), factor(600)] == pytest.approx([1, 0.5, 0], abs=0.002)
    else:
        rates = [factor(10 * epoch) for epoch in (0, 19, 20, 24, 28, 31)]
        assert rates == pytest.approx([1, 1, 0.25, 0.25**2, 0.25**3, 0.25**3])


@pytest.mark.parametrize("name", PAPER)
def test_paper_sizes_on_the_meta_device(name: str) -> None:
    recipe = loaded(name)
    block = random_block(dim=4096, head_dim=8, mlp_dim=8)
    with torch.device("meta"):
        model = model_of(recipe)
        assert sum(p.numel() for p in model.parameters()) == count_of(recipe)
        lmgraft.graft(model, block)
    trained = sum(p.numel() for group in parameter_groups(model, recipe.optim) for p in group["params"])
    assert trained == count_of(recipe) + 2 * 4096 * 128


@pytest.mark.long
@pytest.mark.parametrize("name", PAPER)
def test_paper_sizes_make_a_step(name: str) -> None:
    """Two scenes at full size, the paper's optimiser; a small block in the place of LLaMA's."""
    recipe = loaded(name)
    model = lmgraft.graft(model_of(recipe), random_block(dim=64, head_dim=16, mlp_dim=64)).train()
    optimizer = make_optimizer(model, recipe.optim)
    before = {name: p.clone() for name, p in model.named_parameters() if p.requires_grad}
    task, batch = recipe.task(model), recipe.data.example(2)
    torch.manual_seed(0)
    task.loss(model(*task.inputs(batch)), batch).backward()
    optimizer.step()
    unmoved = [name for name, p in model.named_parameters() if p.requires_grad and torch.equal(p, before[name])]
    assert unmoved == []


SMALL = ["vectornet_argoverse1_llama", "mmtransformer_argoverse1_llama"]


@pytest.mark.parametrize("name", SMALL)
def test_what_stands_out_of_agents_and_lanes(name: str, llama_folder: Path) -> None:
    """Every second scene of the example is padded; each target interacts with the second agent."""
    recipe = load_recipe(f"motion/{name}_debug", ["--llm", str(llama_folder)])
    run = Opened("llm", recipe, build_task(recipe), Path())
    batch = recipe.data.example(4)
    seen = look(run, batch, layers=True)
    agents, lanes = batch.agents.shape[1], batch.lanes.shape[1]
    gone = torch.cat([~batch.agent_valid[:, 1:].any(-1), ~batch.lane_valid.any(-1)], 1)
    assert seen.truth is not None
    assert seen.truth.shape == (4, agents - 1 + lanes)
    assert torch.equal(seen.truth, (torch.arange(agents - 1 + lanes) == 0) & batch.truth[:, 1:2])
    assert seen.unknown is not None
    assert torch.equal(seen.unknown, gone)
    assert seen.floor is not None
    assert not (seen.floor[gone] == 1).any()
    scores = _scores(run, seen)
    assert scores["score/mapper_out/magnitude/pointing"].isfinite().all()
    assert all(maps.isfinite().all() for maps in seen.maps.values())
    assert ("block", "attention") in seen.maps
    picture = shown(run, batch, 1)
    assert torch.equal(picture.future, batch.future[1])
    predicted = {"llm": predictions(run, seen.noted.output, batch)[1]}
    figure = draw_scene(
        picture, {"llm": {"W2": seen.maps["mapper_out", "magnitude"][1]}}, None, None, batch.truth[1], predicted
    )
    assert len(figure.axes) == 2


@pytest.mark.long
@pytest.mark.parametrize("name", SMALL)
def test_operations_are_counted(name: str) -> None:
    recipe = load_recipe(f"motion/{name}_debug", ["--arm", "plain"])
    model = build_model(recipe)
    plain = flops_of(model, recipe)
    counts = {form: flops_of(lmgraft.graft(copy.deepcopy(model), random_block(), form=form), recipe) for form in FORMS}
    assert plain.train < counts["auto"].train < counts["dense"].train
    assert plain.evaluation < counts["auto"].evaluation < counts["dense"].evaluation


def test_scenes_are_counted_as_large_as_they_are() -> None:
    data = ToyScenes(train_size=8, test_size=4, batch_size=4)
    assert torch.equal(data.typical(4).agents, data.example(4).agents)  # nothing is set up
    data.setup()
    batch = data.typical(4)
    assert batch.index.tolist() == [0, 4, 8, 12]
    assert batch.lanes.shape == data.still("train").batch([0, 4, 8, 12]).lanes.shape != data.example(4).lanes.shape


@pytest.mark.slow
def test_scenes_of_ones_own_are_trained_on_resumed_and_predicted(
    tmp_path: Path, llama_folder: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("LMGRAFT_CACHE", str(tmp_path / "cache"))
    for number in range(8):
        write_csv(tmp_path / f"scenes/{number}.csv", first=300.0 + number)
    write_csv(tmp_path / "new.csv", steps=20)
    (tmp_path / "scenes/map_files").mkdir()
    city = tmp_path / "scenes/map_files/pruned_argoverse_MIA_1_vector_map.xml"
    city.write_text(XML)
    data = {"class_path": "lmgraft.data.motion.scene_files.SceneFiles", "root": str(tmp_path / "scenes")}
    data |= {"test_size": "2", "val_size": "2", "batch_size": "2"}
    given = ["--llm", str(llama_folder), "--train.accelerator", "cpu"]
    given += [text for key, value in data.items() for text in (f"--data.{key}", value)]
    recipe = load_recipe("motion/vectornet_argoverse1_llama_debug", given)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_run(recipe, whole, progress="none")
    interrupt(recipe, parts, 3)
    train_run(load_recipe("motion/vectornet_argoverse1_llama_debug", given), parts, resume=True, progress="none")
    assert_same_run(parts, whole)
    said = tmp_path / "said.jsonl"
    assert main(["predict", str(parts), str(tmp_path / "new.csv"), str(city), "--out", str(said)]) == 0
    (line,) = (json.loads(text) for text in said.read_text().splitlines())
    assert (line["track"], line["origin"], line["heading"]) == ("0000-ag-1", [319.0, 1000.0], 0.0)
    assert torch.tensor(line["trajectories"]).shape == (6, 30, 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_debug_variant_trains_and_is_held_against_baselines(
    name: str, tmp_path: Path, llama_folder: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.setenv("LMGRAFT_CACHE", str(tmp_path / "cache"))
    run = tmp_path / "run"
    given = ["--llm", str(llama_folder), "--train.accelerator", "cpu"]
    assert main(["train", f"motion/{name}_debug", "--out", str(run), *given]) == 0
    result = read_result(run)
    assert (result.items, len(result.metrics)) == (16, 8)
    assert set(result.by["agent_type"]) <= {"vehicle", "bus"}
    suite = ["--suite", "motion-baselines", "--out", str(tmp_path / "floor"), "--train.accelerator", "cpu"]
    assert main(["evaluate", str(run), *suite]) == 0
    assert "constant velocity" in capsys.readouterr().out
    cells = json.loads((run / "robustness.json").read_text())["cells"]
    reached = {key.rpartition("/")[2]: cell["metrics"] for key, cell in cells.items()}
    assert reached["clean"]["minfde6"] == pytest.approx(result.metrics["minfde6"])
    still = reached["constant_velocity"]
    assert still["minfde6"] == pytest.approx(still["minfde1"])
    assert still["brier_minfde6"] == pytest.approx(still["minfde6"])
    assert reached["nearest_neighbours"]["minfde6"] < reached["nearest_neighbours"]["minfde1"]
    explorer = open_explorer([run], ["--train.accelerator", "cpu"])
    assert explorer.things == "scenes"
    view = explorer.view(explorer.item(1), explorer.labels, Choice(stage="block attention"))
    page = view_html(view, explorer.things, explorer.stages)
    assert "data:image/png" in page
    assert "trajectories [[[" in page
    assert len(page) < 400_000
