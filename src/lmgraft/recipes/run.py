"""A recipe and a run folder: train, resume, evaluate, and write down what is needed to repeat it.

<run>/config.yaml   the resolved recipe
<run>/run.json      versions, commit, data fingerprint, block provenance, parameter counts
<run>/model         the best weights for lmgraft.load_pretrained, unless nothing was grafted
<run>/result.json   test metrics of best.ckpt and what training cost; written last
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule
from torch import nn

from lmgraft import records
from lmgraft.block import load_block
from lmgraft.errors import RunError
from lmgraft.graft import find_graft, graft, save_pretrained
from lmgraft.recipes.arms import ARMS
from lmgraft.recipes.recipe import Recipe, parse_recipe
from lmgraft.registry import FACTORIES
from lmgraft.training.callbacks import check_block
from lmgraft.training.checkpoints import read_checkpoint
from lmgraft.training.fit import FitSummary, Verbosity, checkpoint_path, evaluate, fit
from lmgraft.training.optim import make_optimizer, make_schedule


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a finished run reached on the test images and what it cost."""

    arm: str
    seed: int
    accuracy: float
    correct: int
    total: int
    class_accuracy: dict[str, float]
    val_accuracy: float
    epochs: int
    steps: int
    seconds: float
    """Training, validation included."""
    peak_memory: int
    """Bytes."""
    trained_params: int
    frozen_params: int
    block_digest: str | None
    device: str


def train_run(
    recipe: Recipe,
    run_dir: Path,
    *,
    resume: bool = False,
    label: str | None = None,
    progress: Verbosity = "auto",
) -> Result:
    """Train a recipe in `run_dir`, evaluate its best epoch on the test images, write result.json.

    Args:
        recipe: What to train.
        run_dir: A new folder, or with `resume` that of an interrupted run of the same recipe.
        label: Shown before progress lines; the arm's name by default.
        progress: See `lmgraft.training.fit.fit`.

    Raises:
        RunError: If the folder is in use, or holds a run of another recipe.
        LmgraftError: If data, block or backbone cannot be had; before any training.
    """
    _claim(recipe, run_dir, resume)
    task = _prepare(recipe)
    digest = block_digest(task.model)
    records.write_text(run_dir / "config.yaml", recipe.yaml)
    records.write_json(run_dir / "run.json", _record(recipe, task.model))
    summary = fit(
        task,
        recipe.data,
        run_dir,
        recipe.train,
        seed=recipe.seed,
        block_digest=digest,
        label=label or recipe.arm,
        resume=resume,
        progress=progress,
    )
    result = _evaluate(recipe, task, run_dir, summary, digest)
    if digest is not None:
        save_pretrained(task.model, run_dir / "model")
    records.write_json(run_dir / "result.json", asdict(result))
    return result


def evaluate_run(run_dir: Path, overrides: list[str] | None = None, callbacks: Sequence[Callback] = ()) -> Result:
    """Evaluate best.ckpt of a run folder on the test images again, from its own record.

    Args:
        run_dir: A folder made by `train_run`.
        overrides: Changes of the recipe, such as ["--data.root", "DIR"].
        callbacks: Lightning callbacks of the test.

    Raises:
        RunError: If the folder is no finished run.
    """
    recipe = read_run(run_dir, overrides)
    summary = read_result(run_dir)
    task = _prepare(recipe)
    cost = FitSummary(
        seconds=summary.seconds,
        peak_memory=summary.peak_memory,
        steps=summary.steps,
        best_val_accuracy=summary.val_accuracy,
        device=summary.device,
    )
    return _evaluate(recipe, task, run_dir, cost, block_digest(task.model), callbacks)


def read_run(run_dir: Path, overrides: list[str] | None = None) -> Recipe:
    """The recipe of a run folder.

    Raises:
        RunError: If the folder holds no run.
    """
    file = run_dir / "config.yaml"
    if not file.is_file():
        raise RunError(f"{run_dir} is no run folder: it has no config.yaml", "give a folder made by lmgraft train")
    return parse_recipe(file.read_text(encoding="utf-8"), overrides or (), where=str(file))


def read_result(run_dir: Path) -> Result:
    """The result of a finished run.

    Raises:
        RunError: If the run is not finished or its result is damaged.
    """
    file = run_dir / "result.json"
    if not file.exists():
        raise RunError(f"{run_dir} is not finished: it has no result.json", "go on with lmgraft train --resume")
    values = records.read_json(file)
    expected = {field.name for field in fields(Result)}
    if not isinstance(values, dict) or set(values) != expected:
        raise RunError(f"{file} does not hold a result of this version", "delete it and evaluate the run again")
    return Result(**values)


def load_trained(run_dir: Path) -> tuple[Recipe, nn.Module]:
    """The recipe of a run, its data not set up, and its model with the weights of best.ckpt, in eval mode."""
    recipe = read_run(run_dir)
    task = _build_task(recipe)
    _load_best(task, run_dir, block_digest(task.model))
    model: nn.Module = task.model.eval()
    return recipe, model


def build_model(recipe: Recipe) -> nn.Module:
    """The arm's model with its initial weights: shared tensors are equal in all arms of a seed."""
    data, config = recipe.data, recipe.graft
    arguments = {"num_classes": data.num_classes, "in_chans": data.in_chans, "img_size": data.img_size}
    arm = ARMS[recipe.arm]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        factory = FACTORIES.load(recipe.backbone.factory)
        model: nn.Module = factory(recipe.backbone.name, arguments | recipe.backbone.kwargs)
        if arm.block is None:
            return model
        block = load_block(
            config.llm, config.layer, dtype=config.dtype, revision=config.revision, final_norm=config.final_norm
        )
        torch.manual_seed(recipe.seed)
        return graft(
            model,
            arm.block(block, recipe.seed),
            at=config.at,
            reads=config.reads,
            read_token=config.read_token,
            residual=config.residual,
            form=config.form,
            mapper_init=config.mapper_init,
            host_spec={
                "factory": recipe.backbone.factory,
                "name": recipe.backbone.name,
                "kwargs": arguments | recipe.backbone.kwargs,
            },
        )


def _prepare(recipe: Recipe) -> Any:
    """Data checked and loaded, and the task around the model: all that can fail before training."""
    recipe.data.seed = recipe.seed
    recipe.data.prepare_data()
    recipe.data.setup()
    return _build_task(recipe)


def _build_task(recipe: Recipe) -> Any:
    return recipe.task_class(
        build_model(recipe),
        recipe.data.num_classes,
        partial(make_optimizer, config=recipe.optim),
        partial(make_schedule, config=recipe.optim),
        **recipe.task_options,
    )


def _claim(recipe: Recipe, run_dir: Path, resume: bool) -> None:
    """Make sure that `run_dir` is free, or holds an unfinished run of this very recipe."""
    if not run_dir.exists() or not any(run_dir.iterdir()):
        return
    if not resume:
        raise RunError(f"{run_dir} is not empty", "add --resume to go on with it, or choose another --out")
    config = run_dir / "config.yaml"
    if not config.exists():
        if (run_dir / "checkpoints").exists():
            raise RunError(f"{run_dir} has checkpoints but no config.yaml", "choose another --out")
        return  # killed before anything was written
    before, now = config.read_text(encoding="utf-8").splitlines(), recipe.yaml.splitlines()
    if before != now:
        changed = [f"{line.strip()}" for line in now if line not in before] or ["(lines were removed)"]
        raise RunError(
            f"{run_dir} holds a run of another recipe; different now: {'; '.join(changed[:6])}",
            "resume with the settings it was started with, or choose another --out",
        )


def _record(recipe: Recipe, model: nn.Module) -> dict[str, Any]:
    inserted = find_graft(model)
    trained, frozen = count_params(model)
    return {
        "arm": recipe.arm,
        "seed": recipe.seed,
        "data": recipe.data.fingerprint(),
        "block": inserted.block.provenance.to_dict() if inserted is not None else None,
        "trained_params": trained,
        "frozen_params": frozen,
        "environment": records.environment(),
    }


def block_digest(model: nn.Module) -> str | None:
    """The identity of the model's block; None where nothing is grafted."""
    inserted = find_graft(model)
    return None if inserted is None else inserted.block.provenance.digest


def count_params(model: nn.Module) -> tuple[int, int]:
    """Trained and frozen parameters."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return trained, sum(p.numel() for p in model.parameters()) - trained


def _load_best(task: LightningModule, run_dir: Path, digest: str | None) -> None:
    file = checkpoint_path(run_dir, "best")
    checkpoint = read_checkpoint(file)
    check_block(checkpoint, digest)
    try:
        task.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        raise RunError(f"{file} does not fit the model of config.yaml: {error}", "do not edit config.yaml") from None


def _evaluate(
    recipe: Recipe,
    task: Any,
    run_dir: Path,
    summary: FitSummary,
    digest: str | None,
    callbacks: Sequence[Callback] = (),
) -> Result:
    _load_best(task, run_dir, digest)
    metrics = evaluate(task, recipe.data, recipe.train, callbacks)
    total = len(recipe.data.split("test"))
    correct = round(metrics["test/accuracy"] * total)
    by_class = task.test_class_accuracy.compute()
    trained, frozen = count_params(task.model)
    return Result(
        arm=recipe.arm,
        seed=recipe.seed,
        accuracy=correct / total,
        correct=correct,
        total=total,
        class_accuracy={n: float(a) for n, a in zip(recipe.data.class_names, by_class, strict=True)},
        val_accuracy=summary.best_val_accuracy,
        epochs=recipe.train.epochs,
        steps=summary.steps,
        seconds=summary.seconds,
        peak_memory=summary.peak_memory,
        trained_params=trained,
        frozen_params=frozen,
        block_digest=digest,
        device=summary.device,
    )
