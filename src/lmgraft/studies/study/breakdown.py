"""Planned contrasts within each category of the items and each condition of a robustness suite."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

from lmgraft.analysis.paired import differences
from lmgraft.analysis.student import mean_interval
from lmgraft.analysis.verdict import Finding
from lmgraft.contracts import Metric
from lmgraft.registry import METRICS
from lmgraft.studies.study.config import Study
from lmgraft.studies.study.facts import ConditionFact, Fact
from lmgraft.studies.study.results import Breakdown

_Values = Mapping[str, float]


def break_down(study: Study, by_arm: Mapping[str, Mapping[int, Fact]]) -> tuple[list[Breakdown], list[Finding]]:
    """Every planned contrast within what all its runs have, and which conditions are left out of it."""
    made, left_out = [], []
    word = "corruption" if study.robustness is None else study.robustness.suite.word
    metric = _suite_metric(study, by_arm)
    for arm, reference in study.contrasts:
        seeds = sorted(by_arm[arm].keys() & by_arm[reference].keys())
        one, other = ([by_arm[label][seed] for seed in seeds] for label in (arm, reference))
        shared, every = _shared([f.by_condition for f in (*one, *other)], metric)
        if len(shared) < len(every):
            lacking = tuple(sorted({part for key, part in every.items() if key not in shared}))
            counts = {"left_out": len(every) - len(shared), "all": len(every)}
            pair = (arm, reference)
            left_out.append(Finding(kind="cells left out", key=word, pair=pair, names=lacking, counts=counts))
        kinds: list[tuple[str, list[_Values], list[_Values], Metric | None]] = [
            (kind, [f.by[kind] for f in one], [f.by[kind] for f in other], None) for kind in one[0].by
        ]
        by_part = [_by_part(f, shared, metric) for f in one], [_by_part(f, shared, metric) for f in other]
        for kind, a, b, of in (*kinds, (word, *by_part, None if metric == study.metric else metric)):
            for name in [name for name in a[0] if all(name in values for values in (*a, *b))]:
                rows, mean, sd = differences([values[name] for values in a], [values[name] for values in b])
                made.append(
                    Breakdown(
                        kind=kind,
                        name=name,
                        arm=arm,
                        reference=reference,
                        mean=mean,
                        interval=None if sd == 0 else mean_interval(rows, study.confidence, rounding=0),
                        metric=of,
                    )
                )
    return made, left_out


def _suite_metric(study: Study, by_arm: Mapping[str, Mapping[int, Fact]]) -> Metric:
    """The study's metric; the accuracy where there are conditions of an earlier version, which counted nothing else."""
    conditions = [c for own in by_arm.values() for fact in own.values() for c in fact.by_condition.values()]
    if all(study.metric.name in condition.metrics for condition in conditions):
        return study.metric
    accuracy: Metric = METRICS.find("accuracy")
    return accuracy


def _shared(runs: list[dict[str, ConditionFact]], metric: Metric) -> tuple[set[str], dict[str, str]]:
    """Keys of the conditions under which all runs were shown the same items; and of all, with their parts."""
    every = {key: condition.part for run in runs for key, condition in run.items() if metric.name in condition.metrics}
    return {key for key in every if len({run[key].shown if key in run else None for run in runs}) == 1}, every


def _by_part(fact: Fact, shared: set[str], metric: Metric) -> _Values:
    """The metric's mean over the shared conditions of each part."""
    values: dict[str, list[float]] = {}
    for key, condition in fact.by_condition.items():
        if key in shared:
            values.setdefault(condition.part, []).append(condition.metrics[metric.name])
    return {part: fmean(of_part) for part, of_part in values.items()}
