"""The recipes of questions about rooms: the paper's settings, its size, a step of it, short runs of the small one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lasting import assert_same_run, interrupt

import lmgraft
from lmgraft import records
from lmgraft.backbones.scene_qa.vote_net import Proposals
from lmgraft.cli.main import main
from lmgraft.recipes import list_recipes, load_recipe, read_result, train_run
from lmgraft.recipes.build import build_task, set_up_data
from lmgraft.recipes.recipe import Recipe
from lmgraft.registry import FACTORIES
from lmgraft.report.explore.view import view_html
from lmgraft.studies.analyze.gallery import exhibits
from lmgraft.studies.analyze.look import Opened
from lmgraft.studies.explore import Choice, open_explorer
from lmgraft.tasks.scene_questions import ANSWER_LOSS
from lmgraft.training.checkpoints import read_checkpoint
from lmgraft.training.optim import make_optimizer
from lmgraft.training.schedule import make_schedule
from tiny import random_block
from tiny_rooms import rooms

PAPER = [name for name in list_recipes() if name.startswith("rooms/") and "furnished" not in name]
OF_DATA = {"num_words": 3000, "num_answers": 706, "mean_sizes": [[1.0] * 3] * 18, "num_features": 4}


def model_of(recipe: Recipe) -> Any:
    arguments = OF_DATA | recipe.backbone.kwargs | {"pretrained": False}
    return FACTORIES.find(recipe.backbone.factory)(recipe.backbone.name, arguments)


@pytest.mark.parametrize("name", PAPER)
def test_the_paper_s_settings(name: str) -> None:
    recipe = load_recipe(name, ["--data.root", "nowhere"])
    optim, train = recipe.optim, recipe.train
    assert (optim.optimizer, recipe.data.batch_size, train.epochs, train.clip_value) == ("adamw", 32, 30, 1.0)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    factor = make_schedule(optimizer, 300, optim, epochs=30).lr_lambdas[0]
    assert [factor(10 * epoch) for epoch in (0, 9, 10, 15, 20, 29)] == pytest.approx([1, 1, 0.1, 1e-2, 1e-3, 1e-3])
    assert (recipe.arm == "llm") == name.endswith("_llama")
    block = random_block(dim=4096, head_dim=8, mlp_dim=8)
    with torch.device("meta"):
        model = model_of(recipe)
        aux = 1024 * 768 + 768 + 768 * 7 + 7 if "sqa3d" in name else 0
        counted = 75_484_425 + aux  # tests/test_scene_qa.py
        assert sum(p.numel() for p in model.parameters()) == counted
        lmgraft.graft(model, block)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == counted - 3000 * 300 + 2 * 4096 * 768


@pytest.mark.long
def test_the_paper_s_size_makes_a_step() -> None:
    """Two rooms of 4,096 points, the paper's optimiser; a small block in the place of LLaMA's."""
    recipe = load_recipe("rooms/sqa3d_llama", ["--data.root", "nowhere"])
    model = lmgraft.graft(model_of(recipe), random_block(dim=64, head_dim=16, mlp_dim=64)).train()
    optimizer = make_optimizer(model, recipe.optim)
    before = {name: p.clone() for name, p in model.named_parameters() if p.requires_grad}
    fields = rooms(batch=2)
    points = torch.randn(2, 4096, 7) + fields["points"][:, :1]
    out = model(points, fields["situation"], fields["question"])
    made = [part for part in out.proposals if part.is_floating_point() and part.requires_grad]
    (out.answers.square().sum() + out.pose.square().sum() + sum(part.square().sum() for part in made)).backward()
    optimizer.step()
    assert [name for name, p in model.named_parameters() if p.requires_grad and torch.equal(p, before[name])] == []


@pytest.mark.parametrize("name", ["furnished_rooms", "furnished_objects"])
def test_every_map_of_an_item_is_over_the_tokens_that_are_drawn(
    name: str, llama_folder: Path, monkeypatch: Any
) -> None:
    """Rooms of a batch have different numbers of objects, and one by itself has no other's padding."""
    if name == "furnished_rooms":
        monkeypatch.setattr(Proposals, "is_object", property(lambda one: one.centres[..., 0] > 0))
    recipe = load_recipe(f"rooms/{name}_debug", ["--llm", str(llama_folder)])
    set_up_data(recipe)
    run = Opened("llm", recipe, build_task(recipe).eval(), Path())
    samples = [0, 4, 8, 12]
    objects = [int(run.model.propose(run.items.batch([n]).points).is_object.sum()) for n in samples]  # type: ignore[operator]
    assert len(set(objects)) > 1
    chosen = [("random", sample, sample, None) for sample in samples]
    for exhibit, count in zip(exhibits([run], chosen, ANSWER_LOSS, size=4, say=lambda _: None), objects, strict=True):  # type: ignore[arg-type]
        (maps,), (places,) = exhibit.maps.values(), exhibit.places.values()
        assert "needed" in maps
        assert {len(values) for values in maps.values()} == {len(places)} == {max(objects)}
        assert not maps["needed"][count:].any()


@pytest.mark.slow
def test_a_debug_variant_trains_goes_on_is_frozen_and_looked_at(
    tmp_path: Path, llama_folder: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.setenv("LMGRAFT_CACHE", str(tmp_path / "cache"))
    given = ["--llm", str(llama_folder), "--train.accelerator", "cpu"]
    whole, parts, frozen = (tmp_path / name for name in ("whole", "parts", "frozen"))
    assert main(["train", "rooms/furnished_rooms_debug", "--out", str(whole), *given]) == 0
    result = read_result(whole)
    assert set(result.metrics) == {"em1", "em10", "answer_loss", "map25", "map50"}
    assert "question_type" in result.by
    detector = ["--backbone.kwargs.pretrained.detector", str(whole / "checkpoints/best.ckpt")]
    again = [*given, *detector]
    assert main(["train", "rooms/furnished_rooms_frozen_debug", "--out", str(frozen), *again]) == 0
    kept, learnt = (read_checkpoint(run / "checkpoints/best.ckpt")["state_dict"] for run in (whole, frozen))
    of_detector = [name for name in kept if name.startswith("model.detector.")]
    assert all(torch.equal(kept[name], learnt[name]) for name in of_detector)
    assert len(of_detector) > 20
    recipe = load_recipe("rooms/furnished_rooms_frozen_debug", again)
    interrupt(recipe, parts, 2)
    train_run(load_recipe("rooms/furnished_rooms_frozen_debug", again), parts, resume=True, progress="none")
    assert_same_run(parts, frozen)
    explorer = open_explorer([frozen], ["--train.accelerator", "cpu"])
    assert explorer.things == "room questions"
    view = explorer.view(explorer.item(1), explorer.labels, Choice())
    assert "data:image/png" in view_html(view, explorer.things, explorer.stages)
    (whole / "checkpoints/best.ckpt").unlink()  # neither an evaluation nor a look needs what a run began with
    cpu = ["--train.accelerator", "cpu"]
    assert main(["evaluate", str(frozen), "--suite", "room-grounding", "--out", str(tmp_path / "less"), *cpu]) == 0
    assert "another question's room" in capsys.readouterr().out
    looked = ["analyze", str(frozen), "--limit", "8", "--causal", "2", "--coherence", "2", "--gallery", "1"]
    assert main([*looked, "--out", str(tmp_path / "looked"), *cpu]) == 0
    analysis = records.read_json(tmp_path / "looked/analysis.json")
    assert any("not looked at as it was before training" in note for note in analysis["notes"])
    assert {one["score"] for one in analysis["found"] if one["stage"] == "mapper_out"} >= {"share", "best_iou"}
    assert (tmp_path / "looked/report.html").read_text().count("<img") >= 2
    assert main(["export", str(frozen), "--out", str(tmp_path / "model.onnx")]) == 2
    assert "SceneQA is not exported" in capsys.readouterr().err
