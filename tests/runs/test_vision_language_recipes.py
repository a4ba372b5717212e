"""The recipes of questions and captions: METER's and the paper's settings, what the models count, and steps of them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml

import lmgraft
from lmgraft.cli.main import main
from lmgraft.recipes import list_recipes, load_recipe, read_result
from lmgraft.recipes.recipe import Recipe
from lmgraft.registry import FACTORIES
from lmgraft.training.config import OptimConfig
from lmgraft.training.optim import make_optimizer, parameter_groups
from lmgraft.training.schedule import make_schedule
from tiny import random_block

METER = [name for name in list_recipes() if "/meter_" in name]
CLIP = 2_359_296 + 768 + 2 * 1_536 + 11 * 7_087_872  # patches, class token, two norms, 11 blocks
ROBERTA = (50_265 + 514 + 1) * 768 + 1_536 + 12 * 7_087_872
FUSION = 2 * 590_592 + 2 * 768 + 12 * (2 * (4 * 590_592 + 1_536) + 4_723_968) + 2 * 590_592
ANSWERS = 1_536 * 1_536 + 1_536 + 2 * 1_536 + 1_536 * 3_129 + 3_129
RANK, MATCH = 1_536 + 1, 2 * 1_536 + 2


def counted(recipe: Recipe) -> int:
    """CLIP ViT-B/32 without its last block, roberta-base, METER's fusion, and a head of 3,129 answers or of pairs."""
    side = recipe.data.settings.img_size
    head = RANK + MATCH if "head" in recipe.backbone.kwargs else ANSWERS
    return CLIP + ((side // 32) ** 2 + 1) * 768 + ROBERTA + FUSION + head


def names_of(word: str) -> list[str]:
    return [name for name in METER if word in name]


@cache
def loaded(name: str) -> Recipe:
    """Read only."""
    return load_recipe(name, ["--data.root", "nowhere"])


def model_of(recipe: Recipe) -> Any:
    """The model for VQAv2's 3,129 answers, without weights."""
    sizes = {"img_size": recipe.data.settings.img_size, "max_text_len": recipe.data.settings.max_text_len}
    arguments = recipe.backbone.kwargs | sizes | {"num_classes": 3129, "pretrained": False}
    return FACTORIES.find(recipe.backbone.factory)(recipe.backbone.name, arguments)


@pytest.mark.parametrize("name", names_of("vqav2"))
def test_meter_s_settings_of_vqav2(name: str) -> None:
    recipe, small = loaded(name), "_224_" in name
    settings, optim = recipe.data.settings, recipe.optim
    assert (settings.img_size, settings.max_text_len) == (224 if small else 576, 50)
    assert settings.auto_augment == ("rand-m9-n2" if small else None)
    assert settings.mean == (0.48145466, 0.4578275, 0.40821073)
    assert (recipe.data.train_on, recipe.data.min_answer_count) == ("train+val", 9)
    assert (optim.lr, optim.beta1, optim.beta2, optim.eps) == (1e-5 if small else 5e-6, 0.9, 0.98, 1e-8)
    assert (optim.weight_decay, optim.mapper_lr, recipe.train.epochs) == (0.01, 10, 10)
    assert recipe.data.batch_size * recipe.train.accumulate * 4 == 512  # of the paper's four devices
    assert recipe.backbone.kwargs == {"pretrained": True}


@pytest.mark.parametrize("name", names_of("flickr30k"))
def test_meter_s_settings_of_flickr30k(name: str) -> None:
    recipe, small = loaded(name), "_224_" in name
    settings, optim, data = recipe.data.settings, recipe.optim, recipe.data
    assert (settings.img_size, settings.max_text_len) == (224 if small else 384, 40)
    assert settings.auto_augment == ("rand-m9-n2" if small else None)
    assert (data.train_on, data.negatives, data.fitting_negatives) == ("train+val", 15, True)
    assert (optim.lr, optim.beta2, optim.weight_decay) == (1e-5 if small else 5e-6, 0.98, 0.01)
    assert (optim.rates, optim.mapper_lr) == ({"cross_modal_*": 10 if small else 5}, 10)
    assert data.batch_size * recipe.train.accumulate * 4 == 512
    assert recipe.task_options["align_weight"] == 0
    assert (recipe.task_options["rank_weight"], recipe.task_options["match_weight"]) == (1.0, 1.0)


def test_rates_by_module_rise_from_zero_and_fall_to_zero() -> None:
    recipe = loaded("vision_language/meter_vqav2_llama")
    block = random_block(dim=4096, head_dim=8, mlp_dim=8)
    with torch.device("meta"):
        model = lmgraft.graft(model_of(recipe), block)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = parameter_groups(model, recipe.optim)
    rates = {names[id(p)]: group.get("lr_scale", 1) for group in groups for p in group["params"]}
    by_hand = {
        "vqa_classifier.0.weight": 50, "vqa_classifier.1.bias": 50, "cross_modal_image_layers.0.output.dense.weight": 5,
        "cross_modal_text_transform.bias": 5, "token_type_embeddings.weight": 1,
        "cross_modal_text_pooler.dense.weight": 5,
    }  # fmt: skip
    assert {name: rates[name] for name in by_hand} == pytest.approx(by_hand)
    assert {round(rate) for name, rate in rates.items() if name.startswith(("vision.", "text."))} == {1}
    assert {round(rate) for name, rate in rates.items() if "mapper_" in name} == {10}
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=recipe.optim.lr)
    factor = make_schedule(optimizer, 100, recipe.optim, epochs=10).lr_lambdas[0]
    assert (factor(0), factor(5), factor(10)) == pytest.approx((0, 0.5, 1))
    assert factor(55) == pytest.approx(0.5)
    assert factor(99) == pytest.approx(1 / 90)


@pytest.mark.parametrize("name", METER)
def test_what_meter_s_list_misses_decays_too(name: str) -> None:
    """By METER's own rule (meter/modules/meter_utils.py), which goes by names, in the names of its CLIP."""
    recipe = loaded(name)
    block = random_block(dim=4096, head_dim=8, mlp_dim=8)
    with torch.device("meta"):
        model = lmgraft.graft(model_of(recipe), block)
    decays = {id(p): group["weight_decay"] for group in parameter_groups(model, recipe.optim) for p in group["params"]}
    listed = ["bias", "LayerNorm.weight", "norm.weight", "norm1.weight", "norm2.weight"]
    in_clip = [
        ("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"), ("pre_layrnorm", "ln_pre"), ("post_layernorm", "ln_post"),
    ]  # fmt: skip
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad and ".graft." not in name]
    for its_name, p in trained:
        theirs = its_name
        for ours, of_clip in in_clip:
            theirs = theirs.replace(ours, of_clip)
        assert decays[id(p)] == (0 if any(part in theirs for part in listed) else 0.01), its_name
    assert len({decays[id(p)] for its_name, p in trained if p.dim() == 1 and "bias" not in its_name}) == 2
    assert recipe.train.precision == "32-true"


def test_the_settings_in_the_documents_are_the_recipe_s() -> None:
    text = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    (block,) = [part for part in text.split("```") if "(METER)" in part]
    written, recipe = (
        yaml.safe_load(block.removeprefix("yaml"))["questions on images (METER)"],
        loaded("vision_language/meter_vqav2"),
    )
    assert OptimConfig(**written["optim"]) == recipe.optim
    assert {key: getattr(recipe.train, key) for key in written["train"]} == written["train"]


@pytest.mark.parametrize("name", METER)
def test_paper_sizes_on_the_meta_device(name: str) -> None:
    recipe = loaded(name)
    block = random_block(dim=4096, head_dim=8, mlp_dim=8)
    with torch.device("meta"):
        model = model_of(recipe)
        assert sum(p.numel() for p in model.parameters()) == counted(recipe)
        lmgraft.graft(model, block)
    trained = sum(p.numel() for group in parameter_groups(model, recipe.optim) for p in group["params"])
    frozen = MATCH if "flickr30k" in name else 0  # as published, once its row has begun rank_output
    assert trained == counted(recipe) + 2 * 4096 * 768 - frozen


@pytest.mark.long
@pytest.mark.parametrize("name", METER)
def test_paper_sizes_make_a_step(name: str) -> None:
    """One question at full size, the paper's optimiser; a small block in the place of LLaMA's."""
    recipe = loaded(name)
    side = recipe.data.settings.img_size
    model = lmgraft.graft(model_of(recipe), random_block(dim=64, head_dim=16, mlp_dim=64))
    optimizer = make_optimizer(model, recipe.optim)
    before = {name: p.clone() for name, p in model.named_parameters() if p.requires_grad}
    mask = torch.tensor([[1, 1, 1, 0]])
    out = model(torch.randn(1, 3, side, side), torch.tensor([[0, 5, 2, 1]]), mask)
    if "flickr30k" in name:
        out.sum().backward()
    else:
        F.binary_cross_entropy_with_logits(out, torch.rand(1, 3129), reduction="sum").backward()
    optimizer.step()
    unmoved = [name for name, p in model.named_parameters() if p.requires_grad and torch.equal(p, before[name])]
    assert unmoved == []


@pytest.mark.slow
def test_a_debug_variant_trains_and_is_asked_without_its_image(
    tmp_path: Path, llama_folder: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.setenv("LMGRAFT_CACHE", str(tmp_path / "cache"))
    given = ["--llm", str(llama_folder), "--train.accelerator", "cpu", "--train.epochs", "1"]
    run = tmp_path / "run"
    assert main(
        ["train", "vision_language/composed_questions_debug", "--data.max_text_len", "5", "--out", str(run), *given]
    ) == 0  # fmt: skip
    result = read_result(run)
    remarks = json.loads((run / "run.json").read_text())["remarks"]
    assert len([remark for remark in remarks if "cut behind data.max_text_len=5" in remark]) == 3
    assert (result.items, set(result.by["answer_type"])) == (12, {"shape", "yes/no"})
    suite = ["--suite", "grounding", "--out", str(tmp_path / "grounding"), "--train.accelerator", "cpu"]
    assert main(["evaluate", str(run), *suite]) == 0
    assert "without the image" in capsys.readouterr().out
    assert remarks[0] in (tmp_path / "grounding" / "grounding_report.json").read_text()
    (tmp_path / "asked.csv").write_text("image,question\ncache/data/toy-questions/images/0.png,Is it MAUVE?\n")
    assert main(["predict", str(run), str(tmp_path / "asked.csv"), "--train.accelerator", "cpu"]) == 0
    row = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (row["question"], row["row"]) == ("Is it MAUVE?", 1)
    assert row["file"].endswith("images/0.png")


@pytest.mark.slow
def test_a_debug_variant_finds_captions(tmp_path: Path, llama_folder: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setenv("LMGRAFT_CACHE", str(tmp_path / "cache"))
    given = ["--llm", str(llama_folder), "--train.accelerator", "cpu", "--train.epochs", "1"]
    run = tmp_path / "run"
    assert main(["train", "vision_language/emoji_retrieval_debug", "--out", str(run), *given]) == 0
    result = read_result(run)
    assert set(result.metrics) == {"ir1", "ir5", "ir10", "tr1", "tr5", "tr10"}
    suite = ["--suite", "caption-grounding", "--out", str(tmp_path / "grounding"), "--train.accelerator", "cpu"]
    assert main(["evaluate", str(run), *suite]) == 0
    assert "without images" in capsys.readouterr().out
