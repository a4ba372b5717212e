"""The video recipes: VideoMAE's and the paper's settings, what the models count, and steps of them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from video_trees import pictures_of

import lmgraft
from lmgraft.cli.main import main
from lmgraft.recipes import list_recipes, load_recipe, read_result
from lmgraft.recipes.build import build_task
from lmgraft.recipes.recipe import Recipe
from lmgraft.registry import FACTORIES
from lmgraft.training.optim import parameter_groups
from lmgraft.training.schedule import make_schedule
from tiny import long_but, random_block

SSV2 = [name for name in list_recipes() if "_ssv2" in name]
GIVEN = ["--backbone.kwargs.pretrained", "false", "--data.root", "nowhere"]


@cache
def loaded(name: str) -> Recipe:
    """Read only."""
    return load_recipe(name, GIVEN)


PLAIN = {"small": 21_946_926, "base": 86_361_006}
"""VideoMAE's encoder and head of 174 classes."""


@pytest.mark.parametrize("name", SSV2)
def test_videomae_s_settings(name: str) -> None:
    recipe, small = loaded(name), "_small_" in name
    data, augment, optim = recipe.data, recipe.data.settings.augment, recipe.optim
    assert (data.settings.frames, data.settings.img_size, data.settings.views, data.settings.choose) == (
        16, 224, (2, 3), "last",
    )  # fmt: skip
    assert (augment.auto_augment, augment.hflip, augment.copies) == ("rand-m7-n4-mstd0.5-inc1", 0, 2)
    assert (augment.scale, augment.re_prob, augment.re_mode) == ((0.08, 1.0), 0.25, "pixel")
    mixing = {"mixup": 0.8, "cutmix": 1.0, "mixup_prob": 1.0, "switch_prob": 0.5, "mixup_mode": "batch"}
    assert recipe.task_options == mixing | {"label_smoothing": 0.1, "views": "probabilities"}
    assert recipe.backbone.kwargs["drop_path_rate"] == 0.1
    batch = 24 if small else 12
    assert data.batch_size == batch
    at = optim.for_batch(batch)
    assert at.lr == pytest.approx(9.375e-5 if small else 2.34375e-5)
    assert at.min_lr == pytest.approx(1e-6 * batch / 256)
    assert (optim.layer_decay, recipe.train.epochs) == ((0.7, 40) if small else (0.75, 30))
    assert (optim.weight_decay, optim.warmup_epochs, recipe.train.clip_grad) == (0.05, 5, None)


def test_warm_up_is_from_zero() -> None:
    config = loaded("video/videomae_small_ssv2").optim.for_batch(256)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=config.lr)
    factor = make_schedule(optimizer, 400, config, epochs=40).lr_lambdas[0]
    assert (factor(0), factor(49)) == (0, 1)
    assert factor(25) == pytest.approx(25 / 49)
    assert factor(399) == pytest.approx(1e-3, rel=0.05)


def test_both_layers_are_there() -> None:
    layers = {name: loaded(name).graft.layer for name in SSV2 if "llama" in name}
    assert layers == {
        f"video/videomae_{size}_ssv2_llama{word}": layer
        for size in ("small", "base")
        for word, layer in (("", -1), ("_layer15", 15))
    }
    assert {loaded(name).arm for name in SSV2} == {"plain", "llm", "mlp", "random_trained", "random_frozen"}


@pytest.mark.parametrize("name", SSV2)
def test_paper_sizes_on_the_meta_device(name: str) -> None:
    """LLaMA's block is 4096 wide: two mappers without biases beside the encoder, and nothing else is trained."""
    recipe = loaded(name)
    plain = PLAIN["small" if "_small_" in name else "base"]
    block = random_block(dim=4096, head_dim=8, mlp_dim=8)
    with torch.device("meta"):
        arguments = recipe.data.model_arguments() | recipe.backbone.kwargs
        model = FACTORIES.find(recipe.backbone.factory)(recipe.backbone.name, arguments)
        assert sum(p.numel() for p in model.parameters()) == plain
        lmgraft.graft(model, block)
    trained = sum(p.numel() for group in parameter_groups(model, recipe.optim) for p in group["params"])
    assert trained == plain + 2 * 4096 * model.embed_dim


@pytest.mark.long
@pytest.mark.parametrize("name", SSV2)
def test_paper_sizes_make_a_step(name: str, llama_folder: Path) -> None:
    """Two clips of one video at full size, the paper's optimiser; a small block in the place of LLaMA's."""
    layer = ["--layer", "-1"] if loaded(name).arm != "plain" else []
    recipe = load_recipe(name, [*GIVEN, "--llm", str(llama_folder), *layer, "--data.batch_size", "2"])
    task = build_task(recipe)
    optimizer = task._optimizer(task.model)
    before = [p.clone() for p in task.model.parameters() if p.requires_grad]
    batch = task.mixed(recipe.data.example(2))
    loss = task.loss(task.outputs(batch), batch)
    loss.backward()
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    optimizer.step()
    assert torch.isfinite(loss)
    assert all(not torch.equal(p, q) for p, q in zip(filter(_trained, task.model.parameters()), before, strict=True))


_SSV2_DEBUG = "video/videomae_small_ssv2_llama_debug"


def _trained(parameter: torch.Tensor) -> bool:
    return parameter.requires_grad


@pytest.mark.slow
@pytest.mark.parametrize("name", long_but([_SSV2_DEBUG, "video/frames_debug"], _SSV2_DEBUG))
def test_a_debug_variant_trains(name: str, tmp_path: Path, llama_folder: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("LMGRAFT_CACHE", str(tmp_path / "cache"))
    pictures_of(tmp_path, monkeypatch)
    given = ["--llm", str(llama_folder), "--train.accelerator", "cpu", "--train.epochs", "2"]
    assert main(["train", name, "--out", str(tmp_path / "run"), *given]) == 0
    result = read_result(tmp_path / "run")
    assert (result.items, len(result.by["class"])) == (22, 11)
