"""Trainings as cells: what each trains, where it lies, whether it is there, and how it is trained."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from lmgraft import records
from lmgraft.errors import LmgraftError, RunError
from lmgraft.recipes import Recipe, Result, load_recipe, read_result, train_run
from lmgraft.recipes.record import Change
from lmgraft.recipes.run import alone_in, other_recipe, read_run
from lmgraft.studies.engine.missing import Done, Executor, run_missing, took
from lmgraft.studies.engine.progress import Say
from lmgraft.tasks.items import RESERVED, Items, is_mean_of
from lmgraft.training.fit import Verbosity
from lmgraft.training.items import FILE as ITEMS
from lmgraft.training.items import read_items

State = Literal["done", "begun", "missing"]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training: an arm with a seed, in a folder."""

    arm: str
    """The arm's label."""
    seed: int
    learning_rate: float | None = None
    """That of a grid; None without one."""
    folder: Path
    recipe: str
    """Name or path."""
    options: tuple[str, ...] = ()
    """Laid over the recipe."""
    progress: Verbosity = field(default="none", compare=False)
    """What the training shows; see `lmgraft.training.fit.Display`."""

    @property
    def name(self) -> str:
        """For progress lines and errors."""
        rate = "" if self.learning_rate is None else f", lr {self.learning_rate:g}"
        return f"{self.arm}, seed {self.seed}{rate}"

    @property
    def finished(self) -> bool:
        """Whether it has a result, which is written last."""
        return (self.folder / "result.json").exists()

    def load(self) -> Recipe:
        """The checked recipe of this run.

        Raises:
            RecipeError: If it does not fit the signatures.
        """
        return load_recipe(self.recipe, self.options)

    @property
    def plan(self) -> Recipe:
        """As `load`, read once in a process: to look at, not to set up."""
        return _read_once(self.recipe, self.options)

    def changed(self) -> list[Change]:
        """Keys in which the run in the folder is of another recipe.

        Raises:
            RunError: If the folder holds no run.
        """
        file = self.folder / "config.yaml"
        if file.is_file() and file.read_bytes() == self.plan.yaml.encode():
            return []
        return other_recipe(read_run(self.folder), self.plan)

    def check_recipe(self) -> None:
        """Refuse a folder that holds a run of another recipe.

        Raises:
            RunError: If it does, or holds no run.
        """
        changed = self.changed()
        if changed:
            raise RunError(
                f"{self.folder} holds a run of another recipe; different now: {'; '.join(map(str, changed[:4]))}",
                "choose another --out, or go on with the settings that it was begun with",
            )


@cache
def _read_once(recipe: str, options: tuple[str, ...]) -> Recipe:
    return load_recipe(recipe, options)


def train(run: Run, threads: int | None = None, wait: float = 0) -> None:
    """Train a run from where it stands, in this process; one that is finished is left alone.

    Args:
        run: What is trained.
        threads: Of torch; None leaves them.
        wait: Seconds to wait for another process that is at this run, and may be dying.

    Raises:
        LmgraftError: See `train_run`; or if another process is at this run.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    with alone_in(run.folder, wait):
        if run.finished:
            read_result(run.folder)
        else:
            train_run(run.load(), run.folder, resume=True, progress=run.progress, label=run.name)


def train_missing(
    title: str, runs: Sequence[Run], executor: Executor[Run], say: Say, after: Callable[[Done[Run]], None] | None = None
) -> dict[str, str]:
    """Train the runs that are not finished; as `run_missing`. Runs of one arm are taken to last as long as each other.

    Args:
        after: Called with each run that has ended.
    """

    def ended(done: Done[Run]) -> str:
        if after is not None:
            after(done)
        return took(done)

    whole = [replace(run, folder=run.folder.resolve()) for run in runs]  # workers may stand elsewhere
    return run_missing(
        title, whole, lambda run: run.finished, executor, say, after=ended, size=lambda run: (run.arm, 1.0)
    )


def as_command(run: Run) -> str:
    """The shell command that trains the run, from this folder, or goes on with it."""
    recipe = str(Path(run.recipe).resolve()) if Path(run.recipe).is_file() else run.recipe
    return shlex.join(["lmgraft", "train", recipe, *run.options, "--out", str(run.folder.resolve()), "--resume"])


def state_of(run: Run, say: Say, *, dry_run: bool = False) -> State:
    """Whether a run is finished, begun or missing.

    A result that is cut short is set aside and said: the run is then evaluated again.

    Raises:
        RunError: If the folder holds a run of another recipe.
    """
    folder = run.folder
    if not (folder / "config.yaml").exists():
        return "missing"
    run.check_recipe()
    if not run.finished:
        return "begun"
    try:
        read_finished(folder)
    except RunError as error:
        say(f"{run.name}: {error.message}; set aside, the run is evaluated again")
        for name in ("result.json", ITEMS, *(() if _is_record(folder / "run.json") else ("run.json",))):
            if (folder / name).exists() and not dry_run:
                (folder / name).replace(folder / f"{name}.damaged")
        return "begun"
    return "done"


def read_finished(folder: Path) -> tuple[Result, Items, dict[str, Any]]:
    """A finished run's result, what it made of each test item, and its run.json; they must agree.

    A run of an early version may have kept no items.

    Raises:
        RunError: If a file is missing or cut short, or one is of another run.
    """
    result, items, record = read_result(folder), read_items(folder), records.read_json(folder / "run.json")
    if not _has_all(record):
        raise RunError(f"{folder / 'run.json'} is no record of a run", "train it again in another folder")
    again = "delete its result.json; the same command evaluates it again"
    if items is None:
        if "categories" in record:  # runs of before there were categories may have kept no items
            raise RunError(f"{folder} has no {ITEMS}", again)
        return result, {}, record
    missing = [name for name in RESERVED if name not in items]
    if missing:
        raise RunError(f"{folder / ITEMS} has no column {missing[0]}", again)
    if len(items["index"]) != result.items:
        raise RunError(f"{folder / ITEMS} has {len(items['index'])} items, result.json {result.items}", again)
    for name, value in result.metrics.items():
        if name in items and not is_mean_of(value, items[name]):
            mean = np.mean(items[name], dtype=np.float64)
            raise RunError(f"{folder / ITEMS}: the mean {name} is {mean:.6g}, in result.json {value:.6g}", again)
    return result, items, record


def _has_all(record: Any) -> bool:
    needed = {"data", "block", "environment", "encoder", "selection"}
    return isinstance(record, dict) and needed <= record.keys()


def _is_record(file: Path) -> bool:
    try:
        return _has_all(records.read_json(file))
    except RunError:
        return False


KEPT = ("config.yaml", "run.json", "retries.json", "metrics.json", ITEMS, "robustness.json", "result.json")
"""What of a run a study reads; result.json last, as it says that a run is finished."""


def same_run(run: Run, others: Mapping[Path, Recipe]) -> Path | None:
    """A finished run of the same recipe and seed from among `others`."""
    return next((folder for folder, recipe in others.items() if not other_recipe(recipe, run.plan)), None)


def reuse(run: Run, source: Path) -> None:
    """Copy what a study reads of a finished run, which the weights are not among."""
    run.folder.mkdir(parents=True, exist_ok=True)
    if (source / "logs" / "csv").is_dir():
        shutil.copytree(source / "logs" / "csv", run.folder / "logs" / "csv", dirs_exist_ok=True)
    for name in KEPT:
        if (source / name).exists():
            with records.atomic_path(run.folder / name) as temporary:
                shutil.copyfile(source / name, temporary)


def find_runs(folders: Sequence[Path], say: Say) -> dict[Path, Recipe]:
    """Every finished run folder in or below these folders; what is damaged or of another version is passed over.

    Raises:
        RunError: If one of them does not exist.
    """
    for folder in folders:
        if not folder.is_dir():
            raise RunError(f"{folder}, whose runs are to be used again, does not exist", "check --reuse")
    found = {}
    for run in sorted({file.parent for folder in folders for file in folder.rglob("result.json")}):
        if not (run / "config.yaml").exists():
            continue  # another command's result
        try:
            read_finished(run)
            found[run] = read_run(run)
        except LmgraftError as error:
            say(f"{run} is not used again: {error.message}")
    return found
