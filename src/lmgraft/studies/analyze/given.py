"""The runs that are looked at beside each other: finished, of one data set, each arm's its seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lmgraft.data.base import Data
from lmgraft.errors import RunError
from lmgraft.recipes.run import other_recipe, read_run
from lmgraft.studies.analyze.look import Opened, open_run
from lmgraft.training.checkpoints import checkpoint_path


def open_runs(run_dirs: Sequence[Path], overrides: Sequence[str] = (), others: Data | None = None) -> list[Opened]:
    """Finished runs of one data set, by their labels; `others` as in `open_run`.

    Raises:
        LmgraftError: If one is not finished, or they have other data.
    """
    runs: list[Opened] = []
    for folder, label in labels_of(run_dirs, overrides).items():
        run = open_run(folder, label, overrides, others)
        for other in runs:
            if other.source != run.source:
                raise RunError(f"{folder} and {other.folder} have other data", "compare runs of one data set")
        runs.append(run)
    return runs


def labels_of(run_dirs: Sequence[Path], overrides: Sequence[str] = ()) -> dict[Path, str]:
    """Folder -> what a run is called: its arm, with its seed where an arm has several, and its folder if need be.

    Raises:
        RunError: If a folder comes twice, or holds no finished run.
    """
    if len({folder.resolve() for folder in run_dirs}) < len(run_dirs):
        raise RunError("a run is given twice", "give each once")
    recipes = {folder: read_run(folder, list(overrides)) for folder in run_dirs}
    for folder in recipes:
        if not (checkpoint_path(folder, "best").exists() and (folder / "result.json").exists()):
            raise RunError(
                f"{folder} is not finished: it has no best.ckpt or no result.json",
                f"lmgraft train --resume --out {folder}; or give another run",
            )
    arms = [recipe.arm for recipe in recipes.values()]
    labels = {f: r.arm if arms.count(r.arm) == 1 else f"{r.arm} seed {r.seed}" for f, r in recipes.items()}
    alike = len(set(labels.values())) < len(labels)
    return {folder: f"{label} ({folder})" for folder, label in labels.items()} if alike else labels


def check_seeds(runs: Sequence[Opened]) -> None:
    """Refuse runs of one arm that are not its seeds.

    Raises:
        RunError: If two of them have one seed, or differ in more than that.
    """
    first: dict[str, Opened] = {}
    seeds: dict[tuple[str, int], Opened] = {}
    for run in runs:
        arm, seed = run.recipe.arm, run.recipe.seed
        same = seeds.setdefault((arm, seed), run)
        if same is not run:
            raise RunError(
                f"{same.folder} and {run.folder} are both runs of arm {arm} with seed {seed}",
                "give one of them: runs of one arm count as its seeds",
            )
        other = first.setdefault(arm, run)
        change = next((one for one in other_recipe(other.recipe, run.recipe) if one.key != "seed"), None)
        if change is not None:
            raise RunError(
                f"{run.folder} is not one more seed of {other.folder}: {change}",
                "give runs that differ in their seed alone: those of one arm count as its seeds",
            )
