"""A trained model under the conditions of a suite, one by one, going on where it was interrupted.

The task of the model counts, on the same path as its test items do; see `lmgraft.training.fit.evaluate`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from lmgraft import records
from lmgraft.analysis.items import metric_interval
from lmgraft.checkpoint.digest import file_digest, json_digest
from lmgraft.contracts import Metric
from lmgraft.data.base import Data
from lmgraft.data.loader import EpochLoader, EpochSampler
from lmgraft.errors import CheckpointError, DataError, LmgraftError, RecipeError, RunError
from lmgraft.recipes.run import read_run, trained_task
from lmgraft.studies.engine.missing import Done, in_turn, run_missing
from lmgraft.studies.engine.progress import Say, silent
from lmgraft.studies.robustness.cells import FILE, Cell, read_cells, write_cells
from lmgraft.studies.robustness.paired import FILE as CLEAN
from lmgraft.studies.robustness.paired import lost_intervals, read_clean, write_clean
from lmgraft.studies.robustness.suite import Condition, Row, Spread, Suite, make_suite
from lmgraft.tasks.base import Task
from lmgraft.tasks.items import NotFiniteColumnError
from lmgraft.training.checkpoints import checkpoint_path
from lmgraft.training.config import TrainConfig
from lmgraft.training.fit import evaluate
from lmgraft.words.numbers import value as written

_FEW = 256  # items below which starting workers costs more than they save


@dataclass(frozen=True, kw_only=True)
class RobustnessConfig:
    """A suite, and how much of it is evaluated how."""

    suite: Suite
    limit: int | None = None
    """Items a condition, evenly spread over it; None for all."""
    batch_size: int | None = None
    """None takes the run's data.eval_batch_size."""
    workers: int | None = None
    """Loader processes; None takes one for each processor, at most 8, and none for few items."""

    def __post_init__(self) -> None:
        for name, least in (("limit", 1), ("batch_size", 1), ("workers", 0)):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < least):
                raise DataError(f"--{name.replace('_', '-')} {value} must be at least {least}")

    def to_dict(self) -> dict[str, Any]:
        """What is evaluated, as plain data; `robustness_config` reads it back."""
        options = {f.name: getattr(self.suite, f.name) for f in fields(self.suite)}
        content = {"suite": self.suite.name, "limit": self.limit, **options}
        plain: dict[str, Any] = json.loads(json.dumps(content, default=str))
        return plain


def robustness_config(content: Mapping[str, Any], where: str = "robustness") -> RobustnessConfig:
    """What a study's file says of a suite: its name, `limit` and its options.

    Args:
        content: Without "suite" it is corruptions; null stands for an option's default.
        where: The file, for errors.

    Raises:
        LmgraftError: If there is no such suite or option, or a value does not fit.
    """
    options = {key: value for key, value in content.items() if value is not None}
    name, limit = options.pop("suite", "corruptions"), options.pop("limit", None)
    try:
        return RobustnessConfig(suite=make_suite(name, options), limit=limit)
    except LmgraftError as error:
        raise RecipeError(f"{where}: robustness: {error.message}", error.remedy) from None


@dataclass(frozen=True, kw_only=True)
class Robustness:
    """What one model reached in one suite; nothing in it is left to compute."""

    label: str
    suite: str
    """Its name."""
    metric: Metric
    """The task's first one."""
    things: str
    """What an item is called, in the plural."""
    cells: dict[str, Cell]
    """By key, in the suite's order."""
    summary: list[Row]
    """What sums the cells up."""
    notes: tuple[str, ...]
    """What a reader must know."""
    limit: int | None = None
    """Items a condition, where not all were shown."""
    shown: str = ""
    """SHA-256 of all conditions; equal where models can be compared."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model to evaluate, and how items are shown to it."""

    label: str
    task: Task
    data: Data
    train: TrainConfig
    weights: str
    """SHA-256 of the weight file."""
    record: Path
    """The robustness.json."""


def evaluate_robustness(
    run_dirs: Sequence[Path], config: RobustnessConfig, *, overrides: Sequence[str] = (), say: Say = silent
) -> list[Robustness]:
    """Evaluate finished runs on a suite; each run's robustness.json is written condition by condition.

    Args:
        run_dirs: Folders made by `lmgraft train`.
        config: What is evaluated.
        overrides: Changes of the recipes, such as ["--data.root", "DIR"].
        say: Told what happens.

    Raises:
        LmgraftError: If a run or what the suite needs is missing, or they do not fit; before anything is evaluated.
    """
    labels = _labels(run_dirs)
    for run_dir, label in zip(run_dirs, labels, strict=True):
        config.suite.check(read_run(run_dir, list(overrides)).data, label, say)
    check_weights(run_dirs)
    results = []
    for run_dir, label in zip(run_dirs, labels, strict=True):
        recipe, task = trained_task(run_dir, overrides)
        subject = Subject(
            label=label,
            task=task,
            data=recipe.data,
            train=recipe.train,
            weights=file_digest(checkpoint_path(run_dir, "best")),
            record=run_dir / FILE,
        )
        results.append(evaluate_subject(subject, config, say))
    if len({result.shown for result in results}) > 1:
        differ = f"the models were not shown the same {results[0].things}: their columns cannot be compared"
        results = [replace(result, notes=(differ, *result.notes)) for result in results]
    return results


def check_weights(run_dirs: Sequence[Path]) -> None:
    """Make sure that runs have what is to be evaluated.

    Raises:
        RunError: If a run's weights are not there.
    """
    for run_dir in run_dirs:
        if not checkpoint_path(run_dir, "best").exists():
            raise RunError(
                f"{run_dir} has no best.ckpt to be evaluated on a suite (a run that a study took by --reuse has none)",
                "go on with lmgraft train --resume; in a study leave out --reuse, or robustness",
            )


def evaluate_elsewhere(
    model: str, checkpoint: Path, out: Path, config: RobustnessConfig, *, say: Say = silent
) -> Robustness:
    """Evaluate a model that lmgraft did not train; `out`/robustness.json holds what is done.

    Args:
        model: As the suite names models, such as "timm:NAME".
        checkpoint: .safetensors, or a torch file, which is read without running code from it.

    Raises:
        LmgraftError: If model, file or what the suite needs are missing or do not fit.
    """
    if not checkpoint.is_file():
        raise CheckpointError(f"{checkpoint} is no file", "check the path")
    task, data = config.suite.elsewhere(model, checkpoint)
    config.suite.check(data, model, say)
    subject = Subject(
        label=checkpoint.stem,
        task=task,
        data=data,
        train=TrainConfig(),
        weights=file_digest(checkpoint),
        record=out / FILE,
    )
    return evaluate_subject(subject, config, say)


def evaluate_subject(subject: Subject, config: RobustnessConfig, say: Say = silent) -> Robustness:
    """Evaluate a model under every condition that its record does not hold yet, and sum up."""
    suite, data, metric = config.suite, subject.data, subject.task.primary
    conditions = suite.conditions(data)
    if config.limit is not None:
        conditions = [replace(c, items=Spread(c.items, config.limit)) for c in conditions]
    identities = {c.key: _identity(c, subject, config.limit) for c in conditions}
    kept = _kept(subject, say)
    environment = records.environment()

    def is_kept(condition: Condition) -> bool:
        cell = kept.get(condition.key)
        return cell is not None and cell.conditions == identities[condition.key] and metric.name in cell.metrics

    def do(condition: Condition) -> None:
        cell = _evaluated(subject, condition, identities[condition.key], config)
        if suite.paired:
            cell = _paired(subject, suite, condition, cell, identities)
        kept[condition.key] = cell
        write_cells(subject.record, subject.weights, environment, kept)

    def in_words(done: Done[Condition]) -> str:
        cell = kept[done.cell.key]
        rate = f"{cell.items / done.seconds:.0f} {data.things}/s"
        return f"{written(cell.metrics[metric.name], metric)} {metric.unit}, {rate}"

    run_missing(
        subject.label,
        conditions,
        is_kept,
        in_turn(do),
        say,
        after=in_words,
        size=lambda condition: ("", len(condition.items)),
    )
    cells = {c.key: replace(kept[c.key], title=c.title or c.key) for c in conditions}  # version 1 has no titles
    limited = [] if config.limit is None else [f"a quick look: at most {config.limit} {data.things} a cell"]
    unread = [f"{len(data.faults)} files could not be read; blank ones stood for them"] if data.faults else []
    return Robustness(
        label=subject.label,
        suite=suite.name,
        metric=metric,
        things=data.things,
        cells=cells,
        summary=suite.summary(cells, metric),
        notes=(*suite.notes(data), *data.remarks, *unread, *limited),
        limit=config.limit,
        shown=json_digest({c.key: dict(c.identity) | {"limit": config.limit} for c in conditions}),
    )


def _paired(
    subject: Subject, suite: Suite, condition: Condition, cell: Cell, identities: Mapping[str, dict[str, Any]]
) -> Cell:
    """The cell with what is lost against the unchanged items, whose own columns are kept for that."""
    file, task = subject.record.with_name(CLEAN), subject.task
    identity = json_digest({"weights": subject.weights, "shown": identities.get(suite.clean)})
    if condition.key == suite.clean:
        write_clean(file, identity, task.items, task.scored)
        return cell
    clean = read_clean(file, identity)
    return cell if clean is None else replace(cell, lost=lost_intervals(clean, task.items, task.scored))


def _identity(condition: Condition, subject: Subject, limit: int | None) -> dict[str, Any]:
    """What besides key and weights decides a cell's values: what is shown, and how the model is run."""
    return dict(condition.identity) | {
        "limit": limit,
        "precision": subject.train.precision,
        "evaluate_ema": subject.train.evaluate_ema,
        "transform": json_digest(subject.data.transform_record()["preprocess"]),
    }


def _evaluated(subject: Subject, condition: Condition, identity: dict[str, Any], config: RobustnessConfig) -> Cell:
    task, items = subject.task, condition.items
    loader = EpochLoader(
        items,
        EpochSampler(len(items), config.batch_size or subject.data.eval_batch_size),
        report=partial(subject.data.report, "test"),
        num_workers=_workers(len(items)) if config.workers is None else config.workers,
        persistent=False,
    )
    model = task.model
    try:
        task.model = model if condition.wrap is None else condition.wrap(model)
        metrics = evaluate(task, loader, subject.train)
    except NotFiniteColumnError as error:
        raise RunError(f"{condition.key}: {error.message}", "try it with --train.precision 32-true") from None
    finally:
        task.model = model
    return Cell(
        suite=config.suite.name,
        title=condition.title or condition.key,
        part=condition.part,
        level=condition.level,
        metrics=metrics,
        intervals={name: metric_interval(task.items, metric) for name, metric in task.scored.items()},
        items=len(task.items["index"]),
        conditions=identity,
    )


def _workers(items: int) -> int:
    return min(8, records.usable_cpus()) if items >= _FEW else 0


def _kept(subject: Subject, say: Say) -> dict[str, Cell]:
    """What the record holds of these weights."""
    if not subject.record.exists():
        return {}
    try:
        weights, cells = read_cells(subject.record)
    except RunError:
        say(f"{subject.record} is damaged; all cells are evaluated again")
        return {}
    if weights != subject.weights:
        say(f"{subject.record} is of other weights; all cells are evaluated again")
        return {}
    return cells


def _labels(run_dirs: Sequence[Path]) -> list[str]:
    """The folders' paths below what they have in common: names side by side, plain/lr0.001/seed0 of a study."""
    paths = [run_dir.resolve() for run_dir in run_dirs]
    common = os.path.commonpath([path.parent for path in paths])
    return [path.relative_to(common).as_posix() for path in paths]
