"""The short paired training: plain and every candidate with the same seeds, by the recipe's own training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from lmgraft.analysis.student import equal_within
from lmgraft.contracts import Metric
from lmgraft.recipes import read_result
from lmgraft.studies.engine.runs import Run
from lmgraft.studies.scan.candidates import Candidate
from lmgraft.studies.scan.config import ScanConfig
from lmgraft.studies.scan.encoder import run_folder, training_options
from lmgraft.studies.scan.scores.measured import Measured, over_draws


def make_runs(config: ScanConfig, out: Path, seeds: Sequence[int], candidate: Candidate | None = None) -> list[Run]:
    """Trainings of a candidate, or without one of the plain encoder."""
    return [
        Run(
            arm="plain" if candidate is None else candidate.label,
            seed=seed,
            folder=run_folder(out, candidate, seed),
            recipe=config.recipe,
            options=tuple(training_options(config, seed, candidate)),
        )
        for seed in seeds
    ]


def seeds_of(config: ScanConfig, first: int) -> list[int]:
    """Seeds of the short training."""
    return list(range(first, first + config.train_seeds)) if config.trains else []


def plain_values(out: Path, seeds: list[int], metric: Metric) -> dict[int, float]:
    """Seed -> the metric on held-out items, of the plain encoder; the test items are not looked at."""
    return {seed: read_result(run_folder(out, None, seed)).val[metric.name] for seed in seeds}


def gain_of(
    out: Path, candidate: Candidate, plain: dict[int, float], metric: Metric, failed: Mapping[str, str]
) -> Measured | None:
    """How much better than plain on held-out items, over seeds, with its t interval; None before all runs are there.

    Args:
        failed: Label of a candidate of which a run failed -> why.

    Accuracies are counts of few items, so that two seeds often gain exactly the same: then there is no interval.
    """
    folders = {seed: run_folder(out, candidate, seed) for seed in plain}
    why = [error for arm, error in failed.items() if arm == candidate.label]
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
