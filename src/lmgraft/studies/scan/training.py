"""The short paired training: plain and every candidate with the same seeds, by the recipe's own training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from lmgraft.analysis.student import equal_within
from lmgraft.contracts import Metric
from lmgraft.errors import RunError
from lmgraft.recipes import read_result
from lmgraft.recipes.run import other_recipe, read_run
from lmgraft.studies.progress import Say, duration
from lmgraft.studies.scan.candidates import Candidate
from lmgraft.studies.scan.config import ScanConfig
from lmgraft.studies.scan.encoder import plain_run, training_options, training_recipe
from lmgraft.studies.scan.scores.measured import Measured, over_draws
from lmgraft.studies.study.jobs import Job
from lmgraft.studies.study.local import local
from lmgraft.training.fit import Verbosity

Wanted = dict[Path, tuple[int, Candidate | None]]
"""Run folder -> seed, and candidate or None for the plain encoder."""


def train_missing(
    config: ScanConfig,
    wanted: Wanted,
    say: Say,
    progress: Verbosity,
    after: Callable[[dict[Path, str]], None] | None = None,
) -> dict[Path, str]:
    """Train what of `wanted` is not finished, each in a process of its own.

    Args:
        after: Called after each training with what has failed so far.

    Returns:
        Folders that could not be trained, and why.

    Raises:
        RunError: If a folder holds a finished run of another recipe.
    """
    jobs = []
    for folder, (seed, candidate) in wanted.items():
        if (folder / "result.json").exists():
            changed = other_recipe(read_run(folder), training_recipe(config, seed, candidate))
            if changed:
                raise RunError(
                    f"{folder} holds a run of another recipe; different now: {'; '.join(map(str, changed[:4]))}",
                    "choose another --out",
                )
            continue
        name = f"{'plain' if candidate is None else candidate.label} seed {seed}"
        options = tuple(training_options(config, seed, candidate))
        jobs.append(
            Job(name=name, recipe=config.recipe, options=options, folder=str(folder.resolve()), progress=progress)
        )
    failed, took = {}, 0.0
    for number, done in enumerate(local()(jobs, say) if jobs else (), start=1):
        took += done.seconds
        left = f"about {duration(took / number * (len(jobs) - number))} left" if number < len(jobs) else "all trained"
        if done.error is not None:
            failed[Path(done.job.folder)] = done.error
        what = f"{done.seconds:.0f} s" if done.error is None else f"failed: {done.error}"
        say(f"[train {number}/{len(jobs)}] {done.job.name}: {what}; {left}")
        if after is not None:
            after(failed)
    return failed


def candidate_run(out: Path, candidate: Candidate, seed: int) -> Path:
    return out / "runs" / candidate.label / f"seed{seed}"


def seeds_of(config: ScanConfig, first: int) -> list[int]:
    """Seeds of the short training."""
    return list(range(first, first + config.train_seeds)) if config.trains else []


def plain_values(out: Path, seeds: list[int], metric: Metric) -> dict[int, float]:
    """Seed -> the metric on held-out items, of the plain encoder; the test items are not looked at."""
    return {seed: read_result(plain_run(out, seed)).val[metric.name] for seed in seeds}


def gain_of(
    out: Path, candidate: Candidate, plain: dict[int, float], metric: Metric, failed: dict[Path, str]
) -> Measured | None:
    """How much better than plain on held-out items, over seeds, with its t interval; None before all runs are there.

    Accuracies are counts of few items, so that two seeds often gain exactly the same: then there is no interval.
    """
    folders = {seed: candidate_run(out, candidate, seed) for seed in plain}
    why = [failed[f.resolve()] for f in folders.values() if f.resolve() in failed]
    if why:
        return Measured(value=None, failed=why[0])
    if not all((folder / "result.json").exists() for folder in folders.values()):
        return None
    results = {seed: read_result(folder) for seed, folder in folders.items()}
    values = {seed: result.val[metric.name] for seed, result in results.items()}
    gains = [metric.direction * (value - plain[seed]) for seed, value in values.items()]
    seconds = sum(result.seconds for result in results.values())
    rounding = equal_within([*plain.values(), *values.values()])
    return replace(over_draws(gains, rounding=rounding, **{metric.name: fmean(values.values())}), seconds=seconds)
