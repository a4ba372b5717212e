"""The trained encoder whose tokens the scores look at, and where it comes from."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from lmgraft import records
from lmgraft.checkpoint.digest import file_digest
from lmgraft.errors import RecipeError, RunError
from lmgraft.recipes import Recipe, build_model, load_recipe, load_trained, read_result
from lmgraft.recipes.record import changed_keys, is_pretrained
from lmgraft.recipes.run import read_run
from lmgraft.studies.scan.candidates import Candidate
from lmgraft.studies.scan.config import ScanConfig
from lmgraft.training.checkpoints import checkpoint_path


@dataclass(frozen=True, kw_only=True)
class EncoderRecord:
    """Which encoder the scores are of."""

    origin: str
    """In words."""
    run: str | None
    """Its run folder."""
    weights: str | None
    """SHA-256 of its checkpoint; None for a pretrained one, which the recipe names."""
    val: float | None
    """The scan's metric on all held-out items; None for a pretrained one, whose head is new."""


def scan_recipe(config: ScanConfig, *more: str) -> Recipe:
    """The scan's recipe with its overrides and `more`.

    Raises:
        RecipeError: If it does not fit, or trains the block.
    """
    recipe = load_recipe(config.recipe, [*config.overrides, *more])
    if recipe.graft.train_block != "none":
        raise RecipeError(
            f"graft.train_block={recipe.graft.train_block}: a scan compares frozen blocks", "set it to none"
        )
    return recipe


def training_options(config: ScanConfig, seed: int, candidate: Candidate | None = None) -> list[str]:
    """What a training inside the scan changes in the recipe: a candidate's, or without one the plain encoder's.

    Raises:
        RecipeError: If --train-steps cannot be kept with these data.
    """
    own = ["--arm", "plain"] if candidate is None else candidate.overrides()
    options = [*config.overrides, *own, f"--seed={seed}"]
    if not config.trains:
        return options
    options.append(f"--train.epochs={config.train_epochs}")
    if config.train_steps is None:
        return options
    recipe = load_recipe(config.recipe, options)
    data = yaml.safe_load(recipe.yaml)["data"]["init_args"]
    if "train_size" not in data:
        raise RecipeError(
            f"--train-steps: {type(recipe.data).__name__} cannot be cut to fewer training {recipe.data.things}",
            f"leave --train-steps out, or give fewer {recipe.data.things}",
        )
    items = -(-config.train_steps // config.train_epochs) * recipe.data.batch_size * recipe.train.accumulate
    if items < (data["train_size"] or _all_training_items(config.recipe, config.overrides)):
        options.append(f"--data.train_size={items}")
    return options


@cache
def _all_training_items(recipe: str, overrides: tuple[str, ...]) -> int:
    data = load_recipe(recipe, overrides).data
    data.prepare_data()
    data.setup()
    return len(data.split("train"))


def training_recipe(config: ScanConfig, seed: int, candidate: Candidate | None = None) -> Recipe:
    """The recipe of a training inside the scan."""
    return load_recipe(config.recipe, training_options(config, seed, candidate))


def run_folder(out: Path, candidate: Candidate | None, seed: int) -> Path:
    """Where a training of a candidate lies, or without one of the plain encoder."""
    return out / "runs" / ("plain" if candidate is None else candidate.label) / f"seed{seed}"


def check_run(run_dir: Path, recipe: Recipe) -> None:
    """Whether a run's encoder can stand for this recipe's; before it is loaded.

    Raises:
        RunError: If it is not finished, not plain, of another backbone, or of other data.
    """
    read_result(run_dir)
    trained = read_run(run_dir)
    if trained.arm != "plain":
        raise RunError(f"{run_dir} is a run of the arm {trained.arm}", "give a run of the arm plain")
    changed = changed_keys(asdict(trained.backbone), asdict(recipe.backbone), "backbone")
    if changed:
        raise RunError(
            f"{run_dir} has another backbone: {'; '.join(map(str, changed[:4]))}", "scan with the run's recipe"
        )
    theirs = records.read_json(run_dir / "run.json").get("data")
    ours = json.loads(json.dumps(recipe.data.fingerprint()))
    if theirs != ours:
        raise RunError(
            f"{run_dir} was trained on other data: {'; '.join(map(str, changed_keys(theirs, ours, 'data')[:4]))}",
            "scan with the run's own data options: else it may have been trained on what is held out here",
        )


def load_encoder(config: ScanConfig, recipe: Recipe, out: Path) -> tuple[nn.Module, EncoderRecord]:
    """The plain model, trained, in eval mode; its run must be finished by now."""
    if config.from_run is None and is_pretrained(recipe):
        model = build_model(scan_recipe(config, "--arm", "plain"))
        record = EncoderRecord(
            origin=f"pretrained weights of {recipe.backbone.name}, new head",
            run=None,
            weights=None,
            val=None,
        )
        return model.eval(), record
    run_dir = run_folder(out, None, recipe.seed) if config.from_run is None else Path(config.from_run)
    result = read_result(run_dir)
    _, model = load_trained(run_dir, [f"--{key}={value}" for key, value in _where(recipe).items()])
    by_whom = "trained by this scan" if config.from_run is None else "trained before"
    record = EncoderRecord(
        origin=f"the plain encoder, {by_whom} for {result.epochs} epochs ({result.steps:,} steps)",
        run=str(run_dir if config.from_run is not None else run_dir.relative_to(out)),
        weights=file_digest(checkpoint_path(run_dir, "best")),
        val=result.val.get(recipe.task(model).primary.name),
    )
    return model, record


def needs_training(config: ScanConfig, recipe: Recipe) -> bool:
    """Whether the scan has to train the encoder itself."""
    return config.from_run is None and not is_pretrained(recipe)


def _where(recipe: Recipe) -> dict[str, Any]:
    """Where the data lie now, which a run's own record may not know."""
    root = yaml.safe_load(recipe.yaml)["data"]["init_args"].get("root")
    return {} if root is None else {"data.root": root}
