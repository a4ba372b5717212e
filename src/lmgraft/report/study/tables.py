"""A study's tables as rows of text, for the terminal, Markdown, LaTeX and HTML alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean

from lmgraft.analysis.paired import Contrast
from lmgraft.contracts import Metric
from lmgraft.registry import METRICS
from lmgraft.report.study import format as write
from lmgraft.report.table import Table
from lmgraft.studies.study.results import ArmResult, Breakdown, StudyResult


def arms_table(result: StudyResult) -> Table:
    """Every arm: the metric over seeds, and what it costs beside the reference arm."""
    m, base = result.metric, write.reference_arm(result)
    one = f"{result.reference} = 1"
    cost = None if base is None else base.cost
    columns: list[tuple[str, Callable[[ArmResult], str]]] = [
        ("arm", lambda arm: arm.label),
        (f"{m.title}, {m.unit}", lambda arm: write.value(arm.mean, m)),
        (f"{write.share(result.confidence)} interval", lambda arm: write.interval(arm.interval, m)),
        ("seeds", lambda arm: str(len(arm.values))),
        ("trained", lambda arm: write.count(arm.cost.trained_params)),
        ("frozen", lambda arm: write.count(arm.cost.frozen_params)),
    ]
    if any(arm.cost.train_flops is not None for arm in result.arms):
        columns.append(
            (f"train FLOPs, {one}", lambda arm: write.ratio(arm.cost.train_flops, cost.train_flops if cost else None))
        )
    columns += [
        (f"time, {one}", lambda arm: write.ratio(arm.cost.seconds, cost.seconds if cost else None)),
        ("seconds", lambda arm: write.count(arm.cost.seconds)),
        ("peak memory", lambda arm: write.memory(arm.cost.peak_memory)),
    ]
    return Table(tuple(name for name, _ in columns), [tuple(cell(arm) for _, cell in columns) for arm in result.arms])


def arms_header(result: StudyResult) -> tuple[str, ...]:
    """Of `arms_rows`."""
    return arms_table(result).header


def arms_rows(result: StudyResult) -> list[tuple[str, ...]]:
    """One row an arm, formatted."""
    return list(arms_table(result).rows)


def contrasts_table(result: StudyResult, contrasts: Sequence[Contrast], minus: str = "-") -> Table:
    """Contrasts with all that is tested of them: no corrected p of exploratory ones, and no test without spread."""
    m = result.metric
    planned = {id(contrast) for contrast in result.contrasts}
    rows = [
        (
            write.pair(c, minus),
            write.difference(c.mean, m),
            write.contrast_interval(c, m),
            *(
                write.NONE if one is None or c.sd == 0 else write.probability(one)
                for one in (c.p, c.p_holm if id(c) in planned else None, c.p_equivalence)
            ),
            write.NONE if c.sd == 0 else write.value(c.detectable, m),
            write.NONE if c.bootstrap is None else write.interval(c.bootstrap, m, signed=True),
            f"{_same_sign(c)} of {len(c.differences)}",
            write.outcome(c),
        )
        for c in contrasts
    ]
    header = (
        "contrast",
        f"difference, {m.difference_unit}",
        f"{write.share(result.confidence)} interval",
        "p",
        "p, Holm",
        "p, equivalence",
        "detectable",
        "bootstrap",
        "same sign",
        "outcome",
    )
    return Table(header, rows)


def contrast_header(result: StudyResult) -> tuple[str, ...]:
    """Of `contrast_rows`."""
    return _terminal(contrasts_table(result, [])).header


def contrast_rows(result: StudyResult) -> list[tuple[str, ...]]:
    """One row a contrast, formatted: planned ones, then exploratory ones, marked as such."""
    planned = _terminal(contrasts_table(result, result.contrasts)).rows
    exploratory = _terminal(contrasts_table(result, result.exploratory)).rows
    return [*planned, *(mark_exploratory(row) for row in exploratory)]


def mark_exploratory(row: tuple[str, ...]) -> tuple[str, ...]:
    """A row of an exploratory contrast where it stands in one table with planned ones."""
    return (*row[:-1], f"{row[-1]} (exploratory)")


def _terminal(table: Table) -> Table:
    """Without what a terminal has no room for."""
    kept = [i for i, name in enumerate(table.header) if name not in ("p", "bootstrap", "same sign")]
    return Table(tuple(table.header[i] for i in kept), [tuple(row[i] for i in kept) for row in table.rows])


def seeds_table(result: StudyResult) -> Table:
    """Every arm's value of every seed."""
    m = result.metric
    seeds = list(dict.fromkeys([*result.seeds, *(seed for arm in result.arms for seed in arm.values)]))
    rows = [(arm.label, *(write.value(arm.values.get(seed, math.nan), m) for seed in seeds)) for arm in result.arms]
    return Table(("arm", *(f"seed {seed}" for seed in seeds)), rows)


def questions_table(result: StudyResult) -> Table:
    """What each arm is, and the question it answers."""
    columns: list[tuple[str, Callable[[ArmResult], str]]] = [
        ("arm", lambda arm: arm.label),
        ("kind", lambda arm: arm.arm),
        ("question", lambda arm: arm.question),
        ("block", lambda arm: write.block_name(arm.block)),
        ("position", lambda arm: write.NONE if arm.block is None else str(arm.position)),
        ("learning rate", lambda arm: write.NONE if arm.learning_rate is None else f"{arm.learning_rate:g}"),
        ("changes in the recipe", lambda arm: write.settings(arm.overrides) or write.NONE),
    ]
    dull = {"position": {write.NONE}}  # that the plain arm has none is no news
    shown = [
        (name, cell)
        for name, cell in columns
        if name in ("arm", "kind", "question") or len({cell(arm) for arm in result.arms} - dull.get(name, set())) > 1
    ]
    return Table(tuple(name for name, _ in shown), [tuple(cell(arm) for _, cell in shown) for arm in result.arms])


def grid_table(result: StudyResult) -> Table | None:
    """Mean accuracy on the held-out images by learning rate, the chosen one starred; None without a grid."""
    rates = sorted({rate for arm in result.arms for rate in arm.val_values})
    if len(rates) < 2:
        return None
    rows = []
    for arm in result.arms:
        cells = []
        for rate in rates:
            found = arm.val_values.get(rate)
            mark = " *" if rate == arm.learning_rate else ""
            cells.append(f"{100 * fmean(found.values()):.2f}{mark}" if found else write.NONE)
        rows.append((arm.label, *cells))
    return Table(("arm", *(f"{rate:g}" for rate in rates)), rows)


def at_the_edge(result: StudyResult) -> list[str]:
    """Arms whose chosen learning rate is the smallest or largest tried: a better one may lie beyond."""
    return [
        arm.label
        for arm in result.arms
        if len(arm.val_values) > 1 and arm.learning_rate in (min(arm.val_values), max(arm.val_values))
    ]


def breakdown_pairs(result: StudyResult, kind: str) -> list[tuple[str, str]]:
    """The contrasts that are broken down, as (arm, reference)."""
    return list(dict.fromkeys((part.arm, part.reference) for part in result.breakdown if part.kind == kind))


def breakdown_metric(result: StudyResult, kind: str) -> Metric:
    """What is broken down: the study's metric, on corrupted images always the accuracy."""
    return METRICS.find("accuracy") if kind == "corruption" else result.metric


def breakdown_table(result: StudyResult, kind: str, minus: str = "-") -> Table:
    """A row for each class or corruption, a column for each contrast."""
    m = breakdown_metric(result, kind)
    parts: dict[tuple[str, str, str], Breakdown] = {
        (part.name, part.arm, part.reference): part for part in result.breakdown if part.kind == kind
    }
    pairs = breakdown_pairs(result, kind)
    rows = []
    for name in dict.fromkeys(name for name, _, _ in parts):
        cells = []
        for arm, reference in pairs:
            part = parts.get((name, arm, reference))
            cells.append(
                write.NONE
                if part is None
                else f"{write.difference(part.mean, m)} ({write.interval(part.interval, m, signed=True)})"
            )
        rows.append((name, *cells))
    return Table((kind, *(f"{arm} {minus} {reference}" for arm, reference in pairs)), rows)


def _same_sign(contrast: Contrast) -> int:
    """Seeds whose difference has the sign of the mean."""
    return sum(one * contrast.mean > 0 for one in contrast.differences)
