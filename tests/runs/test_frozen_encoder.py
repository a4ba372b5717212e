"""Frozen encoders: stored tokens train the same model as images do, and only what is behind them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from image_trees import write_folder

import lmgraft
from lmgraft.data.base import UnreadableItemWarning
from lmgraft.errors import DataError, RecipeError
from lmgraft.graft import find_graft
from lmgraft.recipes import build_model, evaluate_run, load_trained, train_run
from lmgraft.recipes.recipe import parse_recipe
from lmgraft.training.features import OnTokens, encode, encoder_digest, freeze_encoder

CACHED = ("--features.cached", "true", "--features.dtype", "float32", "--data.pad", "0", "--data.flip", "false")
STILL = ("--task.mixup", "0", "--task.cutmix", "0", "--backbone.kwargs.drop_path_rate", "0")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("LMGRAFT_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("arm", ["plain", "llm", "mlp"])
@pytest.mark.parametrize("pool", ["token", "avg"])
def test_tokens_then_the_rest_is_the_model(make_recipe, arm, pool):
    recipe = make_recipe("--arm", arm, "--backbone.kwargs.global_pool", pool)
    model = build_model(recipe).eval()
    images = torch.randn(3, 1, 28, 28)
    with torch.no_grad():
        assert torch.equal(OnTokens(model)(encode(model, images)), model(images))


@pytest.mark.parametrize("name", ["test_convnext", "test_vit3", "test_resnet"])
def test_other_hosts_too(name, llama_folder):
    model = lmgraft.graft(timm.create_model(name, num_classes=5).eval(), str(llama_folder))
    images = torch.randn(2, 3, 64, 64) if name != "test_vit3" else torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        expected = model(images)
        found = OnTokens(model)(encode(model, images))
    assert (found - expected).norm() / expected.norm() < 1e-6


def test_only_graft_and_classifier_are_trained(make_recipe):
    model = freeze_encoder(build_model(make_recipe()))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"graft.mapper_in.weight", "graft.mapper_out.weight", "head.weight", "head.bias"}


def test_a_run_on_tokens_is_the_run_on_images_with_a_frozen_encoder(make_recipe, tmp_path):
    recipe = make_recipe(*CACHED, *STILL)
    result = train_run(recipe, tmp_path / "tokens")
    before = build_model(recipe)
    _, after = load_trained(tmp_path / "tokens")
    assert encoder_digest(after) == encoder_digest(before)
    assert not torch.equal(after.head.weight, before.head.weight)
    assert not torch.equal(after.graft.mapper_in.weight, before.graft.mapper_in.weight)

    # The same steps through the encoder each time, written out.
    model, data = freeze_encoder(build_model(recipe)), make_recipe(*CACHED, *STILL).data
    data.seed = recipe.seed
    data.setup()
    task = recipe.task(model, None, None)
    steps = result.steps
    optimizer, schedule = _optimiser(recipe, model, steps)
    for epoch in range(recipe.train.epochs):
        sampler = data.loader("train").batch_sampler
        sampler.epoch = epoch
        for draws in sampler:
            images, labels, *_ = data.split("train").__getitems__(draws)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(task(images), labels).backward()
            optimizer.step()
            schedule.step()
    last = torch.load(tmp_path / "tokens" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    for name in ("head.weight", "graft.mapper_in.weight", "graft.mapper_out.weight"):
        expected = model.state_dict()[name]
        assert (last[f"model.model.{name}"] - expected).norm() / expected.norm() < 1e-5


def _optimiser(recipe, model, steps):
    from lmgraft.training.optim import make_optimizer
    from lmgraft.training.schedule import make_schedule

    optimizer = make_optimizer(model, recipe.optim)
    return optimizer, make_schedule(optimizer, steps, recipe.optim, epochs=recipe.train.epochs)


def test_arms_share_tokens_and_a_run_is_evaluated_and_loaded(make_recipe, tmp_path):
    first = train_run(make_recipe(*CACHED, *STILL), tmp_path / "llm")
    train_run(make_recipe(*CACHED, *STILL, "--arm", "plain"), tmp_path / "plain")
    costs = [json.loads((tmp_path / arm / "run.json").read_text())["features"] for arm in ("llm", "plain")]
    assert [cost["computed"] for cost in costs] == [180, 0]
    assert costs[0]["folders"] == costs[1]["folders"]
    assert replace(evaluate_run(tmp_path / "llm")[0], seconds=0) == replace(first, seconds=0)
    model = lmgraft.load_pretrained(tmp_path / "llm" / "model")
    _, trained = load_trained(tmp_path / "llm")
    images = torch.randn(2, 1, 28, 28)
    with torch.no_grad():
        assert torch.equal(model(images), trained(images))
    assert find_graft(model) is not None


def test_other_seeds_share_tokens_only_of_the_same_encoder(make_recipe, tmp_path):
    for seed in ("3", "4"):
        train_run(make_recipe(*CACHED, *STILL, "--seed", seed, "--train.epochs", "1"), tmp_path / seed)
    folders = [json.loads((tmp_path / seed / "run.json").read_text())["features"]["folders"] for seed in ("3", "4")]
    assert not set(folders[0]) & set(folders[1])  # an encoder from scratch differs by seed


def test_views_are_drawn_and_taken_in_turn(make_recipe, tmp_path):
    recipe = make_recipe(*CACHED[:4], *STILL, "--features.views", "2", "--data.flip", "true")
    train_run(recipe, tmp_path / "run")
    cost = json.loads((tmp_path / "run" / "run.json").read_text())["features"]
    assert len(cost["folders"]) == 4
    images = recipe.data.split("train")
    assert len(images.views) == 2
    assert not (images.views[0] == images.views[1]).all()


FILES = """
seed: 3
arm: plain
backbone: {{name: test_vit, kwargs: {{img_size: 32}}}}
data:
  class_path: lmgraft.data.image.image_files.ImageFiles
  init_args: {{root: {root}, img_size: 32, val_size: 3, batch_size: 6, eval_batch_size: 4, num_workers: 0}}
task: {{class_path: lmgraft.tasks.classification.Classification, init_args: {{mixup: 0, cutmix: 0}}}}
train: {{epochs: 1, accelerator: cpu}}
features: {{cached: true}}
"""


def test_unreadable_images_are_replaced_named_and_counted_with_and_without_the_cache(tmp_path):
    root = write_folder(tmp_path / "photos", {"train": 8, "val": 2})
    recipe = parse_recipe(FILES.format(root=root), [])
    recipe.data.setup()
    bad = recipe.data.split("train").table.place(int(recipe.data.split("train").indices[4]))
    Path(bad).write_bytes(Path(bad).read_bytes()[:300])
    results = []
    for name in ("first", "again"):
        recipe = parse_recipe(FILES.format(root=root), [])
        with pytest.warns(UnreadableItemWarning, match="next readable one is shown instead") as caught:
            results.append(train_run(recipe, tmp_path / name, progress="none"))
        assert len(caught) == 1
        assert [fault.file for fault in recipe.data.faults] == [bad]
        train = recipe.data.split("train")
        assert train.indices[4] == train.indices[5]
        assert torch.equal(train.batch([4])[0], train.batch([5])[0])
    costs = [json.loads((tmp_path / name / "run.json").read_text())["features"] for name in ("first", "again")]
    assert [cost["computed"] for cost in costs] == [30, 0]
    with pytest.raises(DataError, match=r"data\.max_corrupt is 0"):
        train_run(parse_recipe(FILES.format(root=root), ["--data.max_corrupt", "0"]), tmp_path / "strict")


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (("--optim.layer_decay", "0.7"), "layer_decay"),
        (("--graft.at", "head"), "tail"),
        (("--features.views", "0"), "views"),
    ],
)
def test_what_cannot_be_is_said(make_recipe, tmp_path, overrides, part):
    with pytest.raises(RecipeError, match=part):
        train_run(make_recipe(*CACHED, *overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()
