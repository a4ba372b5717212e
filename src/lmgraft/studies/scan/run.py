"""The scan: candidates, the encoder, cheap scores of each candidate, short paired trainings.

<out>/scan.json                      everything that is known, written after each score
<out>/runs/plain/seed<k>/            run folders of the plain encoder; the first gives the tokens
<out>/runs/<candidate>/seed<k>/      run folders of the short training
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from lmgraft import records
from lmgraft.errors import RunError
from lmgraft.recipes import Recipe, build_model
from lmgraft.recipes.build import set_up_data
from lmgraft.recipes.run import block_digest
from lmgraft.studies.engine.local import local
from lmgraft.studies.engine.missing import Done, in_turn, run_missing
from lmgraft.studies.engine.progress import Say, silent
from lmgraft.studies.engine.runs import Run, train_missing
from lmgraft.studies.scan.candidates import Anatomy, Candidate, find_candidates, find_places
from lmgraft.studies.scan.config import ScanConfig
from lmgraft.studies.scan.cost import Cost, check_memory, cost_of, shapes_of
from lmgraft.studies.scan.encoder import (
    check_run,
    load_encoder,
    needs_training,
    scan_recipe,
    training_recipe,
)
from lmgraft.studies.scan.lab import Lab, candidate_model, open_lab
from lmgraft.studies.scan.results import Scan, Scanned, check_settings, read_scan, unit_of, write_scan
from lmgraft.studies.scan.scores import SCORES, check_scores
from lmgraft.studies.scan.scores.measured import Measured
from lmgraft.studies.scan.training import gain_of, make_runs, plain_values, seeds_of
from lmgraft.studies.study.checks import check_selection
from lmgraft.studies.tokens import Places
from lmgraft.training.fit import Verbosity, on_gpu
from lmgraft.words.numbers import value as written


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A checked scan: all that can be wrong is found by now."""

    config: ScanConfig
    recipe: Recipe
    candidates: list[Candidate]
    anatomy: dict[str, Anatomy]
    places: Places
    costs: list[Cost]
    trains_encoder: bool


def plan_scan(config: ScanConfig, say: Say | None = None) -> Plan:
    """Check everything and count what it will take; nothing is trained or written.

    Raises:
        LmgraftError: If a score, layer, position, LLM, run or data set is not there or does not fit.
    """
    say = say or silent
    check_scores(config.scores)
    recipe = scan_recipe(config)
    candidates, anatomy = find_candidates(config, recipe.graft.revision)
    say("Data: finding or fetching")
    set_up_data(recipe)
    check_selection(recipe, config.recipe)
    if config.from_run is not None:
        check_run(Path(config.from_run), recipe)
    training = training_recipe(config, recipe.seed)
    set_up_data(training)
    for candidate in {c.position: c for c in candidates}.values():
        training_recipe(config, recipe.seed, candidate)  # a position may not fit the recipe's other graft options
    encoder = build_model(scan_recipe(config, "--arm", "plain"), initial=False)
    places = find_places(encoder, config.positions)
    shapes = shapes_of(config, recipe, training, encoder, places)
    device = "cuda" if on_gpu(recipe.train) else "cpu"
    costs = [cost_of(config, c, anatomy[c.llm], shapes, device) for c in candidates]
    check_memory(costs)
    return Plan(
        config=config,
        recipe=recipe,
        candidates=candidates,
        anatomy=anatomy,
        places=places,
        costs=costs,
        trains_encoder=needs_training(config, recipe),
    )


def run_scan(
    config: ScanConfig, out: Path, *, say: Say | None = None, progress: Verbosity = "none", plan: Plan | None = None
) -> Scan:
    """Compute what is missing in `out`.

    Args:
        say: Told what happens.
        progress: Of the trainings; see `lmgraft.training.fit.fit`.
        plan: As `plan_scan` gives it; made here if it is not given.

    Raises:
        LmgraftError: As `plan_scan`; or if `out` holds a scan of other settings or is damaged.
    """
    say = say or silent
    read_scan(out)  # a damaged file is said before anything else
    plan = plan or plan_scan(config, say)
    with records.only_one(out / ".scan.lock", f"scan {out}"):
        return _run(plan, out, read_scan(out), say, progress)


def _run(plan: Plan, out: Path, before: Scan | None, say: Say, progress: Verbosity) -> Scan:
    config, recipe = plan.config, plan.recipe
    seeds = seeds_of(config, recipe.seed)
    settings = settings_of(config, recipe)
    if before is not None:
        check_settings(before, settings, out)
    first = [recipe.seed] if plan.trains_encoder and recipe.seed not in seeds else []
    failed = _train("plain encoder", make_runs(config, out, [*first, *seeds]), say, progress)
    if failed:
        raise RunError(f"the plain encoder could not be trained: {failed['plain']}", "run its recipe first")
    encoder, record = load_encoder(config, recipe, out)
    if before is not None and before.encoder.weights != record.weights:
        raise RunError(f"{out} holds a scan of another encoder: {before.encoder.origin}", "choose another --out")
    task = recipe.task(encoder)
    scan = Scan(
        recipe=config.recipe,
        settings=settings,
        encoder=record,
        plain=plain_values(out, seeds, task.primary) or (before.plain if before else {}),
        candidates=dict(before.candidates) if before else {},
        environment=records.environment(),
        metric=task.primary,
        agreement=task.agreement_metric,
        things=recipe.data.things,
    )
    for candidate in plan.candidates:
        scan.candidates.setdefault(candidate.label, Scanned(candidate=candidate))
        if scan.candidates[candidate.label].candidate != candidate:
            raise RunError(f"{out} has another candidate called {candidate.label}", "choose another --out")
    write_scan(scan, out)
    _score(plan, out, scan, encoder, say)
    del encoder, task
    if config.trains:
        _train_candidates(plan, out, scan, seeds, say, progress)
    return scan


def settings_of(config: ScanConfig, recipe: Recipe) -> dict[str, Any]:
    """What scores that stand beside each other must have in common, as it comes back from JSON."""
    settings = {
        "recipe": yaml.safe_load(recipe.yaml),
        "overrides": list(config.overrides),
        "effort": config.effort(),
    }
    return dict(json.loads(json.dumps(settings)))


@dataclass(frozen=True, kw_only=True)
class _Scoring:
    """The scores of a candidate that are missing."""

    candidate: Candidate
    missing: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.candidate.label


def _score(plan: Plan, out: Path, scan: Scan, encoder: nn.Module, say: Say) -> None:
    config, device = plan.config, torch.device("cuda" if on_gpu(plan.recipe.train) else "cpu")
    counted = {cost.candidate.label: cost.seconds for cost in plan.costs}
    cells = [
        _Scoring(candidate=c, missing=tuple(n for n in config.scores if n not in scan.candidates[c.label].scores))
        for c in plan.candidates
    ]

    def executor(cells: Iterable[_Scoring], say: Say) -> Iterator[Done[_Scoring]]:
        lab = open_lab(config, plan.recipe, encoder, plan.places, device, say)
        yield from in_turn(partial(_score_candidate, lab, scan, out))(cells, say)

    run_missing(
        "candidates to score",
        cells,
        lambda cell: not cell.missing,
        executor,
        say,
        after=lambda done: _in_words(scan, done.cell),
        size=lambda cell: ("", sum(counted[cell.candidate.label][name] for name in cell.missing)),
    )


def _score_candidate(lab: Lab, scan: Scan, out: Path, cell: _Scoring) -> None:
    scanned = scan.candidates[cell.candidate.label]
    model = candidate_model(lab, scanned.candidate)
    _check_block(scanned, model, out)
    for name in cell.missing:
        scanned.scores[name] = _measured(lab, scanned, name, model)
        write_scan(scan, out)
    del model
    gc.collect()  # one block in memory at a time


def _measured(lab: Lab, scanned: Scanned, name: str, model: nn.Module) -> Measured:
    started = time.monotonic()
    try:
        found = SCORES[name].measure(lab, lab.places[scanned.candidate.position], model)
    except RunError as error:  # of this candidate alone: others may well have it
        found = Measured(value=None, failed=error.message)
    return replace(found, seconds=time.monotonic() - started)


def _check_block(scanned: Scanned, model: nn.Module, out: Path) -> None:
    digest = block_digest(model)
    if scanned.digest not in (None, digest):
        raise RunError(
            f"{scanned.candidate.llm} holds another layer {scanned.candidate.layer} than when {out} began",
            "give the LLM it was begun with, or choose another --out",
        )
    scanned.digest = digest


def _train(
    title: str,
    runs: Sequence[Run],
    say: Say,
    progress: Verbosity,
    after: Callable[[dict[str, str]], None] = lambda _: None,
) -> dict[str, str]:
    """Train what is missing; arm -> why the first of its runs failed, also given to `after` as each run ends."""
    for run in runs:
        if run.finished:
            run.check_recipe()
    failed: dict[str, str] = {}

    def ended(done: Done[Run]) -> None:
        if done.error is not None:
            failed.setdefault(done.cell.arm, done.error)
        after(failed)

    train_missing(title, [replace(run, progress=progress) for run in runs], local(), say, ended)
    return failed


def _train_candidates(plan: Plan, out: Path, scan: Scan, seeds: list[int], say: Say, progress: Verbosity) -> None:
    def note(failed: dict[str, str]) -> None:
        for candidate in plan.candidates:
            gain = gain_of(out, candidate, scan.plain, scan.metric, failed)
            scan.candidates[candidate.label].gain = gain
        write_scan(scan, out)

    runs = [run for candidate in plan.candidates for run in make_runs(plan.config, out, seeds, candidate)]
    note(_train("short training", runs, say, progress, note))


def _in_words(scan: Scan, cell: _Scoring) -> str:
    sentences = []
    for name in cell.missing:
        measured, unit = scan.candidates[cell.candidate.label].scores[name], unit_of(scan, name)
        if measured.value is None:
            value = "failed" if measured.applies else "not for this task"
        else:
            value = f"{written(measured.value, unit)} {unit.difference_unit}".strip()
        sentences.append(f"{name} {value}")
    return ", ".join(sentences)
