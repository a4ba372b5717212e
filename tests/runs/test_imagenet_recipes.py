"""The ImageNet recipes: their values, and one of them from the toy tree to the robustness suite."""

import json

import pytest
import yaml

from lmgraft.cli.main import main
from lmgraft.data.image.toy import write_toy_imagenet
from lmgraft.recipes import list_recipes, load_recipe, read_result
from lmgraft.training.optim import OptimConfig

IMAGENET = [name for name in list_recipes() if "_imagenet" in name]


@pytest.mark.parametrize("name", IMAGENET)
def test_deits_settings(name):
    recipe = load_recipe(name, ["--data.root", "nowhere"])
    data, augment = recipe.data, recipe.data.settings.augment
    assert (data.batch_size, data.repeats, data.settings.val_size, data.img_size) == (256, 3, 0, (224, 224))
    assert data.preprocess.reading == "timm"
    assert (data.preprocess.crop_pct, data.preprocess.interpolation) == (0.875, "bicubic")
    assert augment.scale == (0.08, 1.0)
    assert (augment.auto_augment, augment.re_prob, augment.re_mode, augment.re_count) == (
        "rand-m9-mstd0.5-inc1", 0.25, "pixel", 1,
    )  # fmt: skip
    mixing = {
        "mixup": 0.8,
        "cutmix": 1.0,
        "mixup_prob": 1.0,
        "switch_prob": 0.5,
        "mixup_mode": "batch",
        "views": "logits",
    }
    assert recipe.task_options == mixing | {"label_smoothing": 0.1}
    assert recipe.backbone.kwargs == {"drop_path_rate": 0.1}
    optim = recipe.optim
    rate = 1e-4 if name.endswith(("opt_125m", "opt_350m")) else 5e-4
    assert optim.for_batch(1024).lr == pytest.approx(2 * rate)
    assert (optim.schedule, optim.warmup_epochs, optim.warmup_lr, optim.min_lr) == ("epoch", 20, 1e-6, 1e-5)
    assert (optim.weight_decay, optim.beta1, optim.beta2, optim.eps) == (0.05, 0.9, 0.999, 1e-8)
    assert (optim.layer_decay, optim.mapper_lr) == (None, OptimConfig().mapper_lr)
    assert (recipe.train.ema, recipe.train.evaluate_ema, recipe.train.clip_grad) == (0.99996, False, None)
    assert recipe.train.epochs in (100, 300)


@pytest.mark.long
def test_tables_of_the_paper_are_there():
    sizes = {f"image/vit_{size}_imagenet{arm}" for size in ("tiny", "small", "base") for arm in ("", "_llama")}
    assert sizes <= set(IMAGENET)
    at = {n.rsplit("_", 1)[1]: load_recipe(n).graft.at for n in IMAGENET if n.endswith(("_head", "_middle"))}
    assert at == {"head": "head", "middle": "middle"}
    assert load_recipe("image/vit_small_imagenet_llama_two_blocks").graft.layer == (-2, -1)
    arms = {load_recipe(n).arm for n in IMAGENET}
    assert arms == {"plain", "llm", "llm_finetuned", "llm_lora", "mlp", "random_trained", "random_frozen"}


@pytest.mark.long
def test_from_a_toy_tree_to_the_robustness_suite(tmp_path, monkeypatch, capsys, llama_folder):
    monkeypatch.setenv("LMGRAFT_CACHE", str(tmp_path / "cache"))
    tree = write_toy_imagenet(tmp_path / "toy", train=1, size=32, suites=("a", "r", "sketch"))
    run, data = tmp_path / "run", ["--data.root", str(tree), "--data.num_workers", "0"]
    short = ["--train.epochs", "2", "--train.accelerator", "cpu", "--backbone.kwargs.depth", "1"]
    command = ["train", "image/vit_small_imagenet_llama_debug", "--out", str(run), "--llm", str(llama_folder)]
    monkeypatch.setattr("lmgraft.data.image.toy.write_toy_imagenet", lambda *_, **__: tree)  # the debug tree is larger
    assert main([*command, *data, *short]) == 0
    result = read_result(run)
    assert (result.items, result.selection, len(result.by["class"])) == (1000, "test", 1000)
    assert yaml.safe_load((run / "config.yaml").read_text())["data"]["init_args"]["repeats"] == 3
    suite = ["--suite", "imagenet-robustness", "--suite-root", str(tree), "--limit", "50", "--workers", "0"]
    assert main(["evaluate", str(run), *suite]) == 0
    said = capsys.readouterr().out
    for name in ("ImageNet-A", "ImageNet-R", "ImageNet-Sketch", "ReaL"):
        assert name in said
    assert "ImageNet-C is left out" in said.replace("\n", " ")
    assert json.loads((run / "robustness.json").read_text())
    assert main(["train", "--from-run", str(run), "--out", str(tmp_path / "again")]) == 0
    assert read_result(tmp_path / "again").metrics == result.metrics
