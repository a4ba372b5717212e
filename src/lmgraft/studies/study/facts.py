"""Finished runs as facts to compare, and the refusal to compare what does not belong together."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmgraft.analysis.curves import Curve, read_curves, running_mean
from lmgraft.analysis.items import MetricValue, metric_value
from lmgraft.checkpoint.digest import json_digest
from lmgraft.contracts import Metric
from lmgraft.errors import RunError
from lmgraft.recipes import Result
from lmgraft.studies.engine.runs import Run, read_finished
from lmgraft.studies.robustness.cells import FILE as ROBUSTNESS
from lmgraft.studies.robustness.cells import read_cells
from lmgraft.studies.study.config import Study
from lmgraft.studies.study.results import Cost
from lmgraft.tasks.items import RESERVED, by_category

LOSS_WINDOW = 10
"""Logged losses in the running mean of the learning curves."""


@dataclass(frozen=True, kw_only=True)
class ConditionFact:
    """What a run reached under one condition of the study's suite."""

    part: str
    metrics: dict[str, float]
    shown: str
    """Digest of which items were shown, and how; those of two runs are alike where it is equal."""


@dataclass(frozen=True, kw_only=True)
class Fact:
    """What one run reached and cost."""

    arm: str
    seed: int
    learning_rate: float | None
    in_grid: float | None
    measured: MetricValue
    """The study's metric on the test items."""
    cost: Cost
    position: str | int
    block: dict[str, Any] | None
    monitor: Metric | None = None
    """What chose the epoch; None where the training loop is not lmgraft's."""
    val_value: float | None = None
    """`monitor` on the validation items."""
    by: dict[str, dict[str, float]] = field(default_factory=dict)
    """Category of the items -> part -> the study's metric."""
    by_condition: dict[str, ConditionFact] = field(default_factory=dict)
    """Key of the suite's condition -> what was reached there."""
    curves: dict[str, Curve] = field(default_factory=dict)
    test_items: int = 0
    retries: int = 0
    """Restarts at a lower learning rate."""
    index: str = ""
    """Digest of which items were tested, in order."""
    things: str = "items"
    """What an item is called, in the plural."""
    record: dict[str, Any] = field(default_factory=dict)
    """run.json."""


def read_facts(study: Study, cells: Sequence[Run], *, allow_difference: bool = False) -> tuple[list[Fact], list[str]]:
    """The facts of all finished runs, and the names of those that are not there.

    Raises:
        RunError: If a run is of another recipe, a file is damaged, runs saw other data, other
            blocks or other initial weights, or other versions made them (unless `allow_difference`).
    """
    facts, missing = [], []
    for cell in cells:
        if not cell.finished:
            missing.append(cell.name)
            continue
        facts.append(read_fact(cell, study))
    check_together(study, facts, allow_difference)
    return facts, missing


def read_fact(cell: Run, study: Study) -> Fact:
    """What a finished run reached and cost.

    Raises:
        RunError: If it is of another recipe, or damaged.
    """
    folder, metric = cell.folder, study.metric
    cell.check_recipe()
    recipe = cell.plan
    result, items, record = read_finished(folder)
    if metric.column not in items and metric.name not in result.metrics:
        raise RunError(
            f"{folder} has no {metric.title}: its data or task have no metric {metric.name!r}",
            f"compare by {result.primary}",
        )
    curves = read_curves(folder)
    if "train/loss" in curves:
        curves["train/loss"] = running_mean(curves["train/loss"], LOSS_WINDOW)
    categories = record.get("categories") or {name: list(parts) for name, parts in result.by.items()}
    return Fact(
        arm=cell.arm,
        seed=cell.seed,
        learning_rate=recipe.optim.lr,
        in_grid=cell.learning_rate,
        measured=metric_value(items, metric, result.metrics.get(metric.name, math.nan)),
        cost=Cost(**{name: getattr(result, name) for name in _OF_THE_RESULT}),
        position=recipe.graft.at,
        block=record["block"],
        monitor=recipe.metric(result.primary),
        val_value=result.val[result.primary],
        by=by_category(items, metric, categories) if items else _by_primary(result, metric),
        by_condition=_conditions(folder, study),
        curves={name: curves[name] for name in ("train/loss", f"val/{result.primary}") if name in curves},
        test_items=result.items,
        retries=len(result.retries),
        index=json_digest({name: items[name].tolist() for name in RESERVED}) if items else "",
        things=record.get("things", "images"),
        record=record,
    )


_OF_THE_RESULT = (
    *("trained_params", "frozen_params", "seconds", "peak_memory"),
    *("share", "threads", "device", "device_seconds"),
)
"""What a run cost, by its names in `recipes.result.Result` and in `Cost`."""


def _by_primary(result: Result, metric: Metric) -> dict[str, dict[str, float]]:
    return result.by if metric.name == result.primary else {}


_OF_THE_MODEL = ("precision", "evaluate_ema")
"""Conditions that say how a model was run, not what it was shown."""


def _conditions(folder: Path, study: Study) -> dict[str, ConditionFact]:
    """From the run's robustness.json, what it reached in the study's suite; by default on corrupted images.

    Raises:
        RunError: If it is damaged.
    """
    file = folder / ROBUSTNESS
    if not file.exists():
        return {}
    suite = "corruptions" if study.robustness is None else study.robustness.suite.name
    facts = {}
    for key, cell in read_cells(file)[1].items():
        if cell.suite == suite and cell.part is not None:
            shown = {k: v for k, v in cell.conditions.items() if k not in _OF_THE_MODEL}
            facts[key] = ConditionFact(part=cell.part, metrics=cell.metrics, shown=json_digest(shown))
    return facts


_NOT_DECISIVE = {"numpy", "gguf", "safetensors"}
"""Distributions whose version does not change what is trained."""


def other_versions(first: Mapping[str, str | None], second: Mapping[str, str | None]) -> list[str]:
    """Distributions of which two records name other versions."""
    return [n for n in first if n in second and n not in _NOT_DECISIVE and first[n] != second[n]]


def check_together(study: Study, facts: Sequence[Fact], allow_difference: bool) -> None:
    """Refuse runs that cannot be compared.

    Raises:
        RunError: See `read_facts`.
    """
    for fact in facts:
        if fact.record.get("selection", "val") == "test":
            raise RunError(f"{_name(fact)} chose its epoch by the test data", "hold items out and train it again")
        if not math.isfinite(fact.measured.value):
            raise RunError(
                f"{_name(fact)}: its {study.metric.name} is {fact.measured.value}", "look at the run; train it again"
            )
    _one(facts, "the data", lambda f: f.record["data"])
    _one(facts, "the test items or their order", lambda f: f.index)
    check_same_blocks(study, facts)
    shared = [f for f in facts if not any(k.partition(".")[0] == "backbone" for k in study.arms[f.arm].overrides)]
    for seed in (*study.rate_seeds, *study.seeds):
        of_seed = [f for f in shared if f.seed == seed and study.arms[f.arm].arm != "plain_equal_flops"]
        _one(of_seed, f"the encoder's initial weights of seed {seed}", lambda f: f.record["encoder"]["digest"])
    check_same_versions(facts, allow_difference)


def check_same_blocks(study: Study, facts: Sequence[Fact]) -> None:
    """Refuse another block under the name of an arm, or of an LLM.

    Raises:
        RunError: If there is one.
    """
    for label in study.arms:
        own = [fact for fact in facts if fact.arm == label]
        _one(own, f"the LLM's block of arm {label}", lambda f: _source_digest(f.block))
    for origin in {_origin(f.block) for f in facts if f.block is not None}:
        own = [f for f in facts if f.block is not None and _origin(f.block) == origin]
        _one(own, f"the content of {origin[0]}", lambda f: _source_digest(f.block))


def check_same_versions(facts: Sequence[Fact], allow_difference: bool) -> None:
    """Refuse runs of different versions, unless that is allowed.

    Raises:
        RunError: If versions differ.
    """
    if allow_difference or not facts:
        return
    versions = [fact.record["environment"]["versions"] for fact in facts]
    for fact, others in zip(facts, versions, strict=True):
        for name in other_versions(versions[0], others):
            raise RunError(
                f"{_name(facts[0])} and {_name(fact)} cannot be compared: the version of {name} differs "
                f"({versions[0][name]} and {others[name]})",
                "train all with one version, or add --allow-difference",
            )


def _origin(block: Mapping[str, Any]) -> tuple[Any, ...]:
    return (block["source"], block.get("revision"), *block["layers"], block["final_norm"], *block["file_dtypes"])


def _source_digest(block: Mapping[str, Any] | None) -> str | None:
    if block is None:
        return None
    return str((block.get("control") or {}).get("of") or block["digest"])


def _one(
    facts: Sequence[Fact],
    what: str,
    of: Callable[[Fact], Any],
    remedy: str = "they are not one study: train them again, in one folder",
) -> None:
    for fact in facts[1:]:
        if of(fact) != of(facts[0]):
            raise RunError(
                f"{_name(facts[0])} and {_name(fact)} cannot be compared: {what} differs "
                f"({_short(of(facts[0]))} and {_short(of(fact))})",
                remedy,
            )


def _name(fact: Fact) -> str:
    return f"{fact.arm}, seed {fact.seed}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
