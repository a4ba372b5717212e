"""The runs of a study: what each trains, where it lies, and whether it is there.

<out>/runs/<arm>/seed<k>/            a run folder
<out>/runs/<arm>/lr<rate>/seed<k>/   with a grid of learning rates
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lmgraft import records
from lmgraft.errors import LmgraftError, RunError
from lmgraft.recipes import Recipe, Result, load_recipe, read_result
from lmgraft.recipes.record import Change
from lmgraft.recipes.run import other_recipe, read_run
from lmgraft.studies.study.config import Study, options_of
from lmgraft.tasks.items import RESERVED, Items, is_mean_of
from lmgraft.training.items import FILE as ITEMS
from lmgraft.training.items import read_items

State = Literal["done", "begun", "missing"]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a study."""

    arm: str
    """The arm's label."""
    seed: int
    learning_rate: float | None
    """Of the grid; None without one."""
    folder: Path
    recipe: str
    options: tuple[str, ...]
    """Laid over the recipe."""

    @property
    def name(self) -> str:
        """For progress lines and errors."""
        rate = "" if self.learning_rate is None else f", lr {self.learning_rate:g}"
        return f"{self.arm}, seed {self.seed}{rate}"

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


@cache
def _read_once(recipe: str, options: tuple[str, ...]) -> Recipe:
    return load_recipe(recipe, options)


def make_cells(study: Study, out: Path) -> list[Cell]:
    """All runs of a study: seed by seed, so that every arm has its first seeds early."""
    return [
        Cell(
            arm=label,
            seed=seed,
            learning_rate=rate,
            folder=out / "runs" / label / ("" if rate is None else f"lr{rate:g}") / f"seed{seed}",
            recipe=study.recipe,
            options=(
                *options_of(study.overrides),
                *study.arguments,
                *options_of(spec.overrides),
                f"--arm={spec.arm}",
                f"--seed={seed}",
                *(() if rate is None else (f"--optim.lr={rate!r}",)),
            ),
        )
        for seed in study.seeds
        for label, spec in study.arms.items()
        for rate in (study.learning_rates or (None,))
    ]


def state_of(cell: Cell, say: Callable[[str], None], *, dry_run: bool = False) -> State:
    """Whether a run is finished, begun or missing.

    A result that is cut short is set aside and said: the run is then evaluated again.

    Raises:
        RunError: If the folder holds a run of another recipe.
    """
    folder = cell.folder
    if not (folder / "config.yaml").exists():
        return "missing"
    changed = cell.changed()
    if changed:
        raise RunError(
            f"{folder} holds a run of another recipe; different now: {'; '.join(map(str, changed[:4]))}",
            "choose another --out, or go on with the study as it was",
        )
    if not (folder / "result.json").exists():
        return "begun"
    try:
        read_finished(folder)
    except RunError as error:
        say(f"{cell.name}: {error.message}; set aside, the run is evaluated again")
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


def same_run(cell: Cell, others: Mapping[Path, Recipe]) -> Path | None:
    """A finished run of the same recipe and seed from among `others`."""
    return next((run for run, recipe in others.items() if not other_recipe(recipe, cell.plan)), None)


def reuse(cell: Cell, source: Path) -> None:
    """Copy what a study reads of a finished run, which the weights are not among."""
    cell.folder.mkdir(parents=True, exist_ok=True)
    if (source / "logs" / "csv").is_dir():
        shutil.copytree(source / "logs" / "csv", cell.folder / "logs" / "csv", dirs_exist_ok=True)
    for name in KEPT:
        if (source / name).exists():
            with records.atomic_path(cell.folder / name) as temporary:
                shutil.copyfile(source / name, temporary)


def find_runs(folders: Sequence[Path], say: Callable[[str], None]) -> dict[Path, Recipe]:
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
