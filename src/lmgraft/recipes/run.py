"""A recipe and a run folder: train, resume, evaluate, and write down what is needed to repeat it.

<run>/config.yaml   the resolved recipe
<run>/run.json      versions, commit, seeds, launches, data fingerprint, block and encoder, parameter counts
<run>/retries.json  restarts at a lower learning rate, where there were any
<run>/model         the best weights for lmgraft.load_pretrained, with names of classes and preprocessing
<run>/test_items.npz  what best.ckpt made of each test item (lmgraft.training.items)
<run>/test_so_far.KEY.npz  a test that was interrupted (lmgraft.training.so_far)
<run>/result.json   test metrics of best.ckpt and what training cost (lmgraft.recipes.result); written last
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import yaml
from pytorch_lightning import Callback
from torch import nn

from lmgraft import records
from lmgraft.checkpoint.digest import file_digest, json_digest
from lmgraft.errors import RecipeError, RunError
from lmgraft.graft import find_graft
from lmgraft.graft.save import save_model
from lmgraft.recipes.arms import ARMS
from lmgraft.recipes.build import build_model, build_task, host_spec, set_up_data
from lmgraft.recipes.equal_flops import settled
from lmgraft.recipes.features import network, try_task, use_stored_tokens
from lmgraft.recipes.recipe import Recipe, as_it_was, parse_recipe
from lmgraft.recipes.record import (
    Change,
    changed_keys,
    check_repeats,
    check_resumes,
    count_params,
    make_record,
    plan_retry,
    read_retries,
    write_record,
    write_retries,
)
from lmgraft.recipes.result import Result, read_result, write_result
from lmgraft.tasks.base import Task
from lmgraft.tasks.items import Items, by_category
from lmgraft.training.callbacks import check_block
from lmgraft.training.checkpoints import RunWarning, checkpoint_path, read_checkpoint
from lmgraft.training.ema import load_mean
from lmgraft.training.fit import (
    Display,
    FitSummary,
    Verbosity,
    check_trainer,
    end_other_processes,
    evaluate,
    fit,
    rank,
    testing,
)
from lmgraft.training.items import write_items
from lmgraft.training.schedule import check_warmup
from lmgraft.training.so_far import TestSoFar
from lmgraft.training.stopping import NotFiniteError


def train_run(
    recipe: Recipe,
    run_dir: Path,
    *,
    resume: bool = False,
    label: str | None = None,
    progress: Verbosity = "auto",
    retries: int = 0,
    repeats: Path | None = None,
    allow_difference: bool = False,
) -> Result:
    """Train a recipe in `run_dir`, evaluate its best epoch on the test items, write result.json.

    One process at a time is at a run (`alone_in`). With several processes, all but the first end when training is
    done (SystemExit with status 0); the first one evaluates and returns.

    Args:
        recipe: What to train.
        run_dir: A new folder, or with `resume` that of an interrupted run of the same recipe.
        label: Shown before progress lines; the arm's name by default.
        progress: See `lmgraft.training.fit.Display`.
        retries: How often in all to restart from the last good checkpoint, at a fifth of the learning
            rate, after a loss that is not finite.
        repeats: Run folder that this run repeats; its data and block must be the same.
        allow_difference: Only warn where they are not.

    Raises:
        RunError: If another process is at it, or it holds a run of another recipe, data or block; see also `fit`.
        LmgraftError: If data, block or backbone cannot be had; before any training.
    """
    if rank() == 0:
        _claim(recipe, run_dir, resume)
    display = Display(label or recipe.arm, progress)
    return _train(recipe, run_dir, repeats, allow_difference, resume=resume, retries=retries, display=display)


def _train(
    recipe: Recipe,
    run_dir: Path,
    repeats: Path | None,
    allow_difference: bool,
    *,
    resume: bool,
    retries: int,
    display: Display,
) -> Result:
    check_trainer(recipe.train)
    history = read_retries(run_dir) if resume else []
    task = _prepare(recipe, history)
    recipe = settled(recipe, build_model)
    digest = block_digest(network(task))
    record = make_record(recipe, network(task))
    if repeats is not None:
        check_repeats(record, repeats, allow_difference)
    if resume:
        check_resumes(record, run_dir)
    try_task(recipe, task)
    features = use_stored_tokens(recipe, task)
    if features is not None:
        record["features"] = features
    with alone_in(run_dir):  # no sooner: what ends in a mistake leaves nothing behind
        if rank() == 0:
            _claim(recipe, run_dir, resume)  # again: another process may have been at it meanwhile
            records.write_text(run_dir / "config.yaml", recipe.yaml)
            write_record(run_dir, record)
        task, summary = _fit_with_retries(
            recipe, task, run_dir, history, retries=retries, resume=resume, display=display
        )
        end_other_processes()
        if recipe.train.strategy == "fsdp":
            task = build_task(recipe, initial=False)  # the trained one is in shards
        _load_best(recipe, task, run_dir)
        watch = [*testing(display, task, recipe.data), _so_far(recipe, task, run_dir)]
        result = replace(_evaluate(recipe, task, summary, digest, watch), retries=history)
        save_model(network(task), run_dir / "model", host_spec(recipe), about_data(recipe))
        write_items(run_dir, task.items)
        write_result(run_dir, result)
        return result


def lock_of(run_dir: Path) -> Path:
    """The file whose lock a process holds while it is at the run: beside the folder, which is new or another's."""
    return run_dir.parent / f".{run_dir.name}.lock"


_ours: ContextVar[frozenset[Path]] = ContextVar("lmgraft_runs", default=frozenset())


@contextmanager
def alone_in(run_dir: Path, wait: float = 0) -> Iterator[None]:
    """Hold the lock of a run; a call inside of another holds it on. Of a run's own processes only the first takes it.

    Where the folder beside is not to be written in, everyone gets in.

    Args:
        run_dir: The run's folder, there or not.
        wait: Seconds to wait for another process that is at this run, and may be dying.

    Raises:
        HeldError: If another process is at it for longer.
    """
    run_dir = run_dir.resolve()
    is_writable = not run_dir.parent.exists() or os.access(run_dir.parent, os.W_OK)
    if rank() != 0 or run_dir in _ours.get() or not is_writable:
        yield
        return
    with records.only_one(lock_of(run_dir), f"run {run_dir}", wait=wait):
        before = _ours.set(_ours.get() | {run_dir})
        try:
            yield
        finally:
            _ours.reset(before)


def _fit_with_retries(
    recipe: Recipe,
    task: Task,
    run_dir: Path,
    history: list[dict[str, Any]],
    *,
    retries: int,
    resume: bool,
    display: Display,
) -> tuple[Task, FitSummary]:
    """Train; after a loss that is not finite from the last good checkpoint, at a fifth of the learning rate.

    `history` gets a row for each restart. Returns the task that was trained last.
    """
    digest = block_digest(network(task))
    while True:
        try:
            summary = fit(
                task,
                recipe.data,
                run_dir,
                recipe.train,
                seed=recipe.seed,
                block_digest=digest,
                display=display,
                resume=resume,
            )
            return task, summary
        except NotFiniteError as error:
            if len(history) >= retries:
                raise
            history.append(plan_retry(run_dir, error, len(history) + 1))
        if rank() == 0:
            write_retries(run_dir, history)
            warnings.warn(
                f"{history[-1]['reason']}; restart {len(history)} of {retries} from step {history[-1]['from_step']} "
                "with a fifth of the learning rate",
                RunWarning,
                stacklevel=3,
            )
        task, resume = build_task(recipe, history), True


def about_data(recipe: Recipe) -> dict[str, Any]:
    """What a saved model has to say of its inputs and outputs: categories and how items are prepared."""
    categories = {name: list(parts) for name, parts in recipe.data.categories().items()}
    return {"categories": categories, "preprocess": recipe.data.transform_record().get("preprocess")}


def evaluate_run(
    run_dir: Path, overrides: list[str] | None = None, callbacks: Sequence[Callback] = ()
) -> tuple[Result, Items]:
    """Evaluate best.ckpt of a run folder on the test items again, from its own record.

    Args:
        run_dir: A folder made by `train_run`.
        overrides: Changes of the recipe, such as ["--data.root", "DIR"].
        callbacks: Lightning callbacks of the test.

    Returns:
        The result, and what came of each test item.

    Raises:
        RunError: If the folder is no finished run.
    """
    recipe = read_run(run_dir, overrides)
    summary = read_result(run_dir)
    task = _prepare(recipe, trained=run_dir)
    _warn_of_other_items(recipe, run_dir)
    use_stored_tokens(recipe, task)
    cost = FitSummary(**{field.name: getattr(summary, field.name) for field in fields(FitSummary)})
    watch = callbacks or [_so_far(recipe, task, run_dir)]  # a callback may change what is scored
    watch = [*testing(Display(recipe.arm), task, recipe.data), *watch]
    result = _evaluate(recipe, task, cost, block_digest(network(task)), watch)
    return replace(result, faults=summary.faults, retries=summary.retries), task.items


def _warn_of_other_items(recipe: Recipe, run_dir: Path) -> None:
    """Say it where the data are not those that the run was trained and tested with."""
    file = run_dir / "run.json"
    before = records.read_json(file).get("data", {}) if file.exists() else {}
    now = json.loads(json.dumps(recipe.data.fingerprint()))  # as it comes back from a file
    changes = [change for change in changed_keys(before, now) if before]
    if changes:
        warnings.warn(
            f"these are not the {recipe.data.things} of {file}: {'; '.join(map(str, changes[:6]))}",
            RunWarning,
            stacklevel=3,
        )


def read_run(run_dir: Path, overrides: list[str] | None = None) -> Recipe:
    """The recipe of a run folder.

    Raises:
        RunError: If the folder holds no run, or its config.yaml is no recipe.
        RecipeError: If `overrides` do not fit.
    """
    file = run_dir / "config.yaml"
    if not file.is_file():
        raise RunError(f"{run_dir} is no run folder: it has no config.yaml", "give a folder made by lmgraft train")
    try:
        text = as_it_was(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise RunError(f"{file} is damaged ({error})", "train it again in another folder") from None
    try:
        return parse_recipe(text, overrides or (), where=str(file))
    except RecipeError as error:
        if overrides:
            read_run(run_dir)  # the file by itself may be what is wrong
            raise
        raise RunError(
            error.message, "cut short, or of another version: delete the folder to train this run again, or put it back"
        ) from None


def load_task(recipe: Recipe, run_dir: Path) -> Task:
    """The task of a run around its whole model, from items on, with the weights of best.ckpt, in eval mode.

    Args:
        recipe: The run's; its data need not be set up.

    Raises:
        RunError: If the checkpoint is missing, damaged or of another model.
    """
    task = build_task(recipe, initial=False)
    _load_best(recipe, task, run_dir)
    task.model = network(task)
    return task.eval()


def load_trained(run_dir: Path, overrides: Sequence[str] = ()) -> tuple[Recipe, nn.Module]:
    """The recipe of a run, its data not set up, and its model with the weights of best.ckpt, in eval mode."""
    recipe, task = trained_task(run_dir, overrides)
    return recipe, task.model


def trained_task(run_dir: Path, overrides: Sequence[str] = ()) -> tuple[Recipe, Task]:
    """The recipe of a run, its data not set up, and its task as `load_task` gives it."""
    recipe = read_run(run_dir, list(overrides))
    return recipe, load_task(recipe, run_dir)


def set_up_trained(recipe: Recipe, run_dir: Path) -> None:
    """As `set_up_data`, of a run that is trained: what its data measured in training files is taken from its record."""
    file = run_dir / "run.json"
    if file.exists():
        recipe.data.as_trained(records.read_json(file))
    set_up_data(recipe)


def _prepare(recipe: Recipe, retries: Sequence[dict[str, Any]] = (), trained: Path | None = None) -> Task:
    """Data checked and loaded, and the task around the model: all that can fail before training.

    Args:
        trained: The run folder whose best weights the model gets instead of initial ones.
    """
    check_warmup(recipe.optim, recipe.train.epochs)
    if trained is None:
        set_up_data(recipe)
    else:
        set_up_trained(recipe, trained)
    task = build_task(recipe, retries, initial=trained is None)
    if trained is not None:
        _load_best(recipe, task, trained)
    task.check(recipe.data.batch_size)
    return task


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
    changed = other_recipe(read_run(run_dir), recipe)
    if changed:
        raise RunError(
            f"{run_dir} holds a run of another recipe; different now: {'; '.join(map(str, changed[:6]))}",
            "resume with the settings it was started with, or choose another --out",
        )


def other_recipe(before: Recipe, now: Recipe) -> list[Change]:
    """Keys in which two recipes would train different things."""
    changed = changed_keys(yaml.safe_load(before.yaml), yaml.safe_load(now.yaml))
    changed = [change for change in changed if not _MAY_CHANGE.fullmatch(change.key)]
    if before.arm == now.arm and ARMS[now.arm].block is None and ARMS[now.arm].equal_flops is None:
        changed = [change for change in changed if not change.key.startswith("graft.")]  # nothing is grafted
    return changed


_MAY_CHANGE = re.compile(
    r"data\.init_args\.(max_corrupt\w*|num_workers|eval_batch_size|root|csv|scans|maps)|train\.(log_every|save_every)"
    r"|backbone\.equal_flops.*"
)
"""Keys that do not change what is trained; that the data are the same, wherever they lie, their fingerprint tells."""


def block_digest(model: nn.Module) -> str | None:
    """The identity of the model's block; None where nothing is grafted."""
    inserted = find_graft(model)
    return None if inserted is None else inserted.block.provenance.digest


def _load_best(recipe: Recipe, task: Task, run_dir: Path) -> None:
    file = checkpoint_path(run_dir, "best")
    checkpoint = read_checkpoint(file)
    check_block(checkpoint, block_digest(network(task)))
    try:
        task.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        raise RunError(f"{file} does not fit the model of config.yaml: {error}", "do not edit config.yaml") from None
    if recipe.train.evaluate_ema:
        load_mean(task, checkpoint)


def _so_far(recipe: Recipe, task: Task, run_dir: Path) -> TestSoFar:
    def key() -> str:
        weights = file_digest(checkpoint_path(run_dir, "best"))
        return json_digest({"weights": weights, "recipe": recipe.yaml, "data": recipe.data.fingerprint()})[:16]

    return TestSoFar(run_dir, key, task, recipe.data)


def _evaluate(
    recipe: Recipe, task: Task, summary: FitSummary, digest: str | None, callbacks: Sequence[Callback]
) -> Result:
    data = recipe.data
    metrics = evaluate(task, data, recipe.train, callbacks)
    trained, frozen = count_params(task.model)
    return Result(
        arm=recipe.arm,
        seed=recipe.seed,
        metrics=metrics,
        primary=task.primary.name,
        items=len(task.items["index"]),
        by=by_category(task.items, task.primary, data.categories()),
        selection=data.selection,
        splits=data.split_names(),
        epochs=recipe.train.epochs,
        trained_params=trained,
        frozen_params=frozen,
        block_digest=digest,
        **asdict(summary),
        faults=[fault._asdict() for fault in data.faults],
    )
