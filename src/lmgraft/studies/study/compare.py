"""`lmgraft.compare`: a study of a training loop of one's own; its folder holds what trials.py and claim.py say."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from numbers import Real
from operator import index
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from lmgraft import records
from lmgraft.analysis.items import MetricValue
from lmgraft.analysis.paired import check_items
from lmgraft.contracts import Metric
from lmgraft.errors import RecipeError, RunError
from lmgraft.graft import GraftConfig
from lmgraft.recipes import ARMS
from lmgraft.registry import METRICS
from lmgraft.studies.engine.missing import Done, in_turn, run_missing
from lmgraft.studies.engine.progress import Say, silent
from lmgraft.studies.study.arms import ArmSpec
from lmgraft.studies.study.assemble import assemble, completed
from lmgraft.studies.study.checks import check_environment
from lmgraft.studies.study.claim import COMPARISON, changed_afterwards, read_changes, write_claim
from lmgraft.studies.study.config import Study, StudyConfig, check_study
from lmgraft.studies.study.facts import Fact, check_same_blocks, check_same_versions
from lmgraft.studies.study.results import StudyResult
from lmgraft.studies.study.trials import Trial, check_arms, make_fact, read_trial, record_of, write_trial
from lmgraft.training.clock import Clock

Outcome: TypeAlias = "float | Mapping[str, Any]"
"""The metric on the test items; or a mapping with "value" and "items", (N,) numbers in the test set's order, which adds
the bootstrap over items, and "groups", (N,) whole numbers, where items belong together (questions of one image): the
bootstrap then draws groups."""


def compare(
    train: Callable[[Trial], Outcome],
    *,
    llm: str = "smollm2-135m",
    layer: int | tuple[int, ...] = -1,
    arms: Sequence[str] | Mapping[str, Mapping[str, Any]] = ("plain", "llm", "random_frozen", "mlp"),
    seeds: int | Sequence[int] = 5,
    metric: str | Metric = "accuracy",
    contrasts: Sequence[tuple[str, str]] | None = None,
    reference: str | None = None,
    margin: float | None = None,
    confidence: float = 0.95,
    out: str | Path | None = None,
    question: str = "Does the frozen LLM block help?",
    notes: Sequence[str] = (),
    say: Callable[[str], None] | None = print,
    allow_difference: bool = False,
    **graft_options: Any,
) -> StudyResult:
    """Call a training loop for every arm and seed, and say what that shows.

        def train(trial):
            model = trial.graft(timm.create_model("vit_small_patch16_224", num_classes=10))
            ...                                  # your loop; draw from torch's generators or trial.seed
            return test_accuracy

        result = lmgraft.compare(train, llm="Qwen/Qwen2.5-1.5B", seeds=5, out="runs/mine")
        print(*result.verdict, sep="\\n")

    Args:
        train: Makes a model, calls `trial.graft` on it, trains, and returns an `Outcome`: the metric on test items
            that chose nothing, or a mapping with "value", "items" and "groups".
        out: Folder that keeps finished trials, so that the same call goes on where it stopped.
        say: Is given what happens; None is silent.
        allow_difference: Compare trials of other versions of lmgraft, torch, torchvision or timm too.

    The other keywords are the fields of `Comparison`, `graft_options` further fields of `GraftConfig`.
    `lmgraft.report.study.write_report(result, folder)` writes the result's page.

    Raises:
        RecipeError: If arms, seeds or metric do not fit, before anything is trained.
        RunError: See `run_comparison`.
    """
    if not callable(train):
        raise RecipeError(f"compare() takes a training loop, got {train!r}", "lmgraft study takes a recipe")
    comparison = Comparison(
        arms=arms,
        seeds=seeds,
        metric=metric,
        contrasts=contrasts,
        reference=reference,
        margin=margin,
        confidence=confidence,
        question=question,
        notes=notes,
        graft={"llm": llm, "layer": layer, **graft_options},
    )
    folder = None if out is None else Path(out)
    return run_comparison(train, comparison.study(), folder, say or silent, allow_difference=allow_difference)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What `compare` is asked."""

    arms: Sequence[str] | Mapping[str, Mapping[str, Any]]
    """Kinds of arms, or label -> {"arm": kind, and what of `graft` it changes}."""
    seeds: int | Sequence[int]
    """How many, from 0, or which; at least 2, and 5 for a verdict."""
    metric: str | Metric
    """accuracy, top5 or nll, or a `Metric` of one's own."""
    contrasts: Sequence[tuple[str, str]] | None
    """Planned pairs (arm, reference); by default llm against plain, random_frozen and mlp."""
    reference: str | None
    """The arm that all others are held against; by default plain."""
    margin: float | None
    """What counts as equal, in the metric's unit; by default the metric's."""
    confidence: float
    """Of intervals; tests are at 1 minus this."""
    question: str
    """For the report."""
    notes: Sequence[str]
    """Cautions for the report."""
    graft: dict[str, Any]
    """llm, the source of the block; layer, one or several consecutive ones; and other fields of `GraftConfig`: at,
    residual, final_norm ..."""

    def study(self) -> Study:
        """The comparison as a checked study.

        Raises:
            RecipeError: If something does not fit.
        """
        metric = METRICS.find(self.metric) if isinstance(self.metric, str) else self.metric
        if not isinstance(metric, Metric):
            raise RecipeError(f"compare(): metric={metric!r} is none", "give a name, or an lmgraft.contracts.Metric")
        for name, number in (("margin", self.margin), ("confidence", self.confidence)):
            if not isinstance(number, Real | None):
                raise RecipeError(f"compare(): {name}={number!r} is no number")
        arms = self.arms if isinstance(self.arms, Mapping) else {name: {} for name in self.arms}
        config = StudyConfig(
            recipe="a training loop of its own",
            question=self.question,
            arms={label: {_key(name): value for name, value in (body or {}).items()} for label, body in arms.items()},
            seeds=_whole(self.seeds),
            reference=self.reference,
            contrasts=None if self.contrasts is None else [list(pair) for pair in self.contrasts],
            margin=self.margin,
            confidence=self.confidence,
            overrides={_key(name): value for name, value in self.graft.items()},
            notes=[self.notes] if isinstance(self.notes, str) else list(self.notes),
        )
        return check_study(config, (), name="comparison", where="compare()", metric=metric)


def run_comparison(
    train: Callable[[Trial], Outcome], study: Study, folder: Path | None, say: Say, *, allow_difference: bool
) -> StudyResult:
    """Call the loop for each trial that is not kept in `folder`, and compare all.

    Raises:
        RunError: If a trial returns what is no number, models start from different weights for one
            seed, an LLM has another block than before, or `folder` holds another comparison, by another metric
            or of other versions, or is in use.
    """
    configs = {label: _graft_config(label, spec, study.overrides) for label, spec in study.arms.items()}
    trials = [
        Trial(label=label, arm=spec.arm, seed=seed, config=configs[label])
        for seed in study.seeds
        for label, spec in study.arms.items()
    ]
    if folder is None:
        return completed(assemble(study, _run(train, study, trials, {}, say, allow_difference)))
    with records.only_one(folder / ".study.lock", f"the comparison in {folder}"):
        kept = _kept(study, trials, folder, configs, allow_difference)
        facts = _run(train, study, trials, kept, say, allow_difference, folder)
        result = completed(assemble(study, facts), findings=read_changes(folder))
        records.write_json(folder / "results.json", asdict(result))
    return result


def _kept(
    study: Study, trials: Sequence[Trial], folder: Path, configs: Mapping[str, GraftConfig], allow_difference: bool
) -> dict[str, Fact]:
    """Name of a trial -> what the folder holds of it; all is checked, and the folder is this comparison's."""
    arms = check_arms(folder, study, configs)
    read = {trial.name: read_trial(folder, trial, study.metric) for trial in trials}
    kept = {name: fact for name, fact in read.items() if fact is not None}
    _check(study, list(kept.values()), allow_difference)
    if len(kept) < len(trials):
        check_environment(list(kept.values()), allow_difference)
    changed = changed_afterwards(study, folder)
    records.write_json(folder / COMPARISON, arms)
    write_claim(study, folder, changed)
    return kept


def _run(
    train: Callable[[Trial], Outcome],
    study: Study,
    trials: Sequence[Trial],
    kept: Mapping[str, Fact],
    say: Say,
    allow_difference: bool,
    folder: Path | None = None,
) -> list[Fact]:
    """All trials, seed by seed: those that are kept, and the others, which are written to `folder`."""
    facts = dict(kept)

    def do(trial: Trial) -> None:
        measured, clock = _call(train, trial, study.metric)
        record = record_of(trial, measured, study.metric, clock)
        facts[trial.name] = make_fact(trial, record, measured)
        _check(study, list(facts.values()), allow_difference)  # first: what does not fit is not kept
        if folder is not None:
            write_trial(folder, trial, record, measured)

    def in_words(done: Done[Trial]) -> str:
        return f"{study.metric.name} {facts[done.cell.name].measured.value:.4f} in {done.seconds:.0f} s"

    run_missing("trials", trials, lambda trial: trial.name in kept, in_turn(do), say, after=in_words)
    return [facts[trial.name] for trial in trials]


def _check(study: Study, facts: Sequence[Fact], allow_difference: bool) -> None:
    items: dict[str, dict[int, NDArray[np.float64]]] = {}
    for fact in facts:
        if fact.measured.items is not None:
            items.setdefault(fact.arm, {})[fact.seed] = fact.measured.items
    check_items(items, {(arm, seed) for arm, own in items.items() for seed in own})
    _check_same_start(facts)
    check_same_blocks(study, facts)
    check_same_versions(facts, allow_difference)


def _whole(seeds: Any) -> int | list[int]:
    """Whole numbers of any kind, such as NumPy's, as Python's."""
    try:
        return [index(seed) for seed in seeds] if isinstance(seeds, Iterable) else index(seeds)
    except TypeError:
        raise RecipeError(f"compare(): seeds={seeds!r} is neither how many nor a list of whole numbers") from None


def _key(name: str) -> str:
    return name if name in ("arm", "question") else f"graft.{name}"


def _graft_config(label: str, spec: ArmSpec, overrides: Mapping[str, Any]) -> GraftConfig:
    if ARMS[spec.arm].equal_flops is not None:
        raise RecipeError(
            f"compare() cannot enlarge a model that your loop makes: arm {label}",
            "leave that arm out; lmgraft study, which makes its models itself, has it",
        )
    fields = {key.removeprefix("graft."): value for key, value in {**overrides, **spec.overrides}.items()}
    try:
        return GraftConfig(**fields)
    except TypeError as error:
        raise RecipeError(f"compare(), arm {label}: {error}", "graft options are fields of GraftConfig") from None


def _call(train: Callable[[Trial], Outcome], trial: Trial, metric: Metric) -> tuple[MetricValue, Clock]:
    random.seed(trial.seed)
    np.random.seed(trial.seed)  # what users' augmentations draw from
    torch.manual_seed(trial.seed)
    clock = Clock()
    clock.start()
    outcome = train(trial)
    clock.stop()
    if not trial.facts:
        raise RunError(f"the training loop did not call trial.graft for {trial.name}", "model = trial.graft(model)")
    return _measured(outcome, metric, trial.name), clock


def _measured(outcome: Outcome, metric: Metric, name: str) -> MetricValue:
    """What a training loop returned, checked."""
    items = groups = None
    value: Any = outcome
    if isinstance(outcome, Mapping):
        if "value" not in outcome and "items" not in outcome:
            raise RunError(f"the training loop returned {sorted(outcome)} for {name}", 'return {"items": ...}')
        if outcome.get("items") is not None:
            items = _row(outcome["items"], name)
            given = outcome.get("groups")
            groups = np.arange(len(items)) if given is None else _groups(given, len(items), name)
        value = outcome.get("value", None if items is None else items.mean())
    try:
        value = float(value)
    except (TypeError, ValueError):
        raise RunError(f"the training loop returned {value!r} for {name}", f"return its {metric.title}") from None
    if not np.isfinite(value):
        raise RunError(f"the training loop returned {value} for {name}", "did its loss stay finite?")
    for one in (value,) if items is None else (value, float(items.min()), float(items.max())):
        if not metric.possible(one):
            raise RunError(
                f"the training loop returned {one:g} for {name}, which is no {metric.title}",
                "shares lie from 0 to 1 (83.2 % is 0.832), and no cross-entropy below 0; other numbers are an "
                "lmgraft.contracts.Metric of your own",
            )
    if items is not None and abs(items.mean() - value) > 1e-6 * max(1.0, abs(value)):
        raise RunError(f"{name}: the value is {value}, its items' mean {items.mean()}", "give one metric in both")
    return MetricValue(value=value, items=items, groups=groups)


def _groups(given: Any, size: int, name: str) -> NDArray[np.int64]:
    groups = np.asarray(given.detach().cpu() if isinstance(given, torch.Tensor) else given)
    if groups.dtype.kind not in "iu" or groups.shape != (size,):
        raise RunError(
            f"the groups of {name} are {groups.dtype} {groups.shape} for {size} items", "one whole number for each item"
        )
    return groups.astype(np.int64)


def _row(given: Any, name: str) -> NDArray[np.float64]:
    try:
        items = np.asarray(given.detach().cpu() if isinstance(given, torch.Tensor) else given, dtype=np.float64)
    except (TypeError, ValueError):
        items = np.empty(0)
    if items.ndim != 1 or not len(items) or not np.isfinite(items).all():
        raise RunError(f"the items of {name} are no finite numbers in one row", "one number for each test item")
    return items


def _check_same_start(facts: Sequence[Fact]) -> None:
    """The pairing by seed is what makes few seeds tell something."""
    first: dict[int, Fact] = {}
    for fact in facts:
        other = first.setdefault(fact.seed, fact)
        if fact.record["encoder"] != other.record["encoder"]:
            raise RunError(
                f"{other.arm} and {fact.arm} started from different weights for seed {fact.seed}",
                "make the model first thing in your loop, or seed torch by trial.seed before it",
            )
