"""A study's tables: values with how they are written, for the terminal, Markdown, LaTeX, HTML and CSV alike."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from lmgraft import records
from lmgraft.analysis.paired import Contrast
from lmgraft.contracts import Metric
from lmgraft.report.table import Column, Sheet, Table, csv_text, latex, markdown
from lmgraft.studies.study.results import ArmResult, Breakdown, StudyResult
from lmgraft.words import numbers as write
from lmgraft.words.arms import block_name

Pair = tuple[str, str]


def reference_arm(result: StudyResult) -> ArmResult | None:
    """The result of the arm that costs and gains are held against; None if it has not run."""
    return next((arm for arm in result.arms if arm.label == result.reference), None)


def _all_seeds(result: StudyResult) -> list[int]:
    return list(dict.fromkeys([*result.seeds, *(seed for arm in result.arms for seed in arm.values)]))


def _of_seed(seed: int) -> Callable[[ArmResult], float | None]:
    return lambda arm: arm.values.get(seed)


def _difference_of(seed: int) -> Callable[[Contrast], float | None]:
    return lambda c: dict(zip(c.seeds, c.differences, strict=True)).get(seed)


def _of_block(key: str) -> Callable[[ArmResult], Any]:
    return lambda arm: (arm.block or {}).get(key) or None


def arms_sheet(result: StudyResult) -> Sheet:
    """Every arm: the metric over seeds, and what it costs beside the reference arm."""
    m, base = result.metric, reference_arm(result)

    def relative(name: str) -> Any:
        of_base = None if base is None else getattr(base.cost, name)
        return lambda arm: write.divide(getattr(arm.cost, name), of_base)

    counted = any(arm.cost.train_flops is not None for arm in result.arms)
    one = f"{result.reference} = 1"
    return Sheet(
        [
            Column("arm", lambda arm: arm.label, names=("label",)),
            Column("", lambda arm: arm.arm, names=("arm",)),
            Column("", lambda arm: arm.question, names=("question",)),
            Column("", lambda _: m.name, names=("metric",)),
            Column(write.in_unit(m.title, m.unit), lambda arm: arm.mean, lambda x: write.value(x, m), ("mean",)),
            Column(
                f"{write.share(result.confidence)} interval",
                lambda arm: arm.interval,
                lambda ends: write.interval(ends, m),
                ("low", "high"),
            ),
            Column("seeds", lambda arm: len(arm.values), names=("seeds",)),
            *(Column("", _of_seed(seed), names=(f"seed_{seed}",)) for seed in _all_seeds(result)),
            Column("trained", lambda arm: arm.cost.trained_params, write.count, ("trained_params",)),
            Column("frozen", lambda arm: arm.cost.frozen_params, write.count, ("frozen_params",)),
            Column("", lambda arm: arm.cost.train_flops, names=("train_flops",)),
            Column(
                f"train FLOPs, {one}" if counted else "", relative("train_flops"), write.ratio, ("train_flops_ratio",)
            ),
            Column("", lambda arm: arm.cost.eval_flops, names=("eval_flops",)),
            Column("", lambda arm: arm.cost.seconds, names=("seconds",)),
            Column(f"time, {one}", lambda arm: arm.cost.time and arm.cost.time.ratio, write.ratio, ("seconds_ratio",)),
            Column("", lambda arm: arm.cost.time and arm.cost.time.basis, names=("time_basis",)),
            Column("seconds", lambda arm: arm.cost.seconds, write.count),
            Column("peak memory", lambda arm: arm.cost.peak_memory, write.memory, ("peak_memory",)),
            Column("", lambda arm: arm.learning_rate, names=("learning_rate",)),
            Column("", lambda arm: arm.position if arm.block else None, names=("position",)),
            Column("", _of_block("source"), names=("block_source",)),
            Column("", lambda arm: " ".join(map(str, _of_block("layers")(arm) or ())), names=("block_layers",)),
            Column("", lambda arm: _json(_of_block("control")(arm)), names=("block_control",)),
            Column("", _of_block("digest"), names=("block_digest",)),
            Column("", lambda arm: _json(arm.overrides), names=("overrides",)),
        ],
        result.arms,
    )


def _json(content: Any) -> str | None:
    return json.dumps(content, default=str) if content else None


def contrasts_sheet(result: StudyResult, contrasts: Sequence[Contrast], *, apart: bool = False) -> Sheet:
    """Contrasts with all that is tested of them: no corrected p of exploratory ones, and no test without spread.

    Args:
        contrasts: Planned ones, exploratory ones, or both.
        apart: Whether exploratory ones stand apart under their own title, so that rows need not say it.
    """
    m, planned = result.metric, {id(contrast) for contrast in result.contrasts}
    seeds = list(dict.fromkeys(s for c in (*result.contrasts, *result.exploratory) for s in c.seeds))
    groups = any(c.groups is not None for c in contrasts)

    def tested(value: Any) -> Any:
        return lambda c: None if c.sd == 0 else value(c)

    def ends(interval: tuple[float, float]) -> str:
        return write.interval(interval, m, signed=True)

    def outcome(c: Contrast) -> str:
        words = f"{c.outcome}; equivalent" if c.equivalent else c.outcome
        return words if apart or id(c) in planned else f"{words} (exploratory)"

    return Sheet(
        [
            Column("", lambda c: "planned" if id(c) in planned else "exploratory", names=("kind",)),
            Column("contrast", lambda c: f"{c.arm} - {c.reference}"),
            Column("", lambda c: c.arm, names=("arm",)),
            Column("", lambda c: c.reference, names=("reference",)),
            Column("", lambda _: m.name, names=("metric",)),
            Column(
                write.in_unit("difference", m.difference_unit),
                lambda c: c.mean,
                lambda x: write.difference(x, m),
                ("mean",),
            ),
            Column("", lambda c: c.sd, names=("sd",)),
            Column(f"{write.share(result.confidence)} interval", tested(lambda c: c.interval), ends, ("low", "high")),
            Column("p", tested(lambda c: c.p), write.probability, ("p",)),
            Column("p, Holm", tested(lambda c: c.p_holm if id(c) in planned else None), write.probability, ("p_holm",)),
            Column("p, equivalence", tested(lambda c: c.p_equivalence), write.probability, ("p_equivalence",)),
            Column("", lambda c: c.equivalent, names=("equivalent",)),
            Column("", lambda _: result.margin, names=("margin",)),
            Column("detectable", tested(lambda c: c.detectable), lambda x: write.value(x, m), ("detectable",)),
            Column("bootstrap", lambda c: c.bootstrap, ends, ("bootstrap_low", "bootstrap_high")),
            Column("groups" if groups else "", lambda c: c.groups, write.count, ("groups",)),
            Column("same sign", lambda c: f"{sum(d * c.mean > 0 for d in c.differences)} of {len(c.differences)}"),
            Column("outcome", lambda c: c, outcome),
            Column("", lambda c: c.outcome, names=("outcome",)),
            Column("", lambda c: len(c.seeds), names=("seeds",)),
            *(Column("", _difference_of(seed), names=(f"seed_{seed}",)) for seed in seeds),
        ],
        contrasts,
    )


def terminal_table(result: StudyResult) -> Table:
    """All contrasts, planned ones first, without what a terminal has no room for."""
    table = contrasts_sheet(result, [*result.contrasts, *result.exploratory]).table()
    kept = [i for i, name in enumerate(table.header) if name not in ("p", "bootstrap", "same sign", "groups")]
    return Table(tuple(table.header[i] for i in kept), [tuple(row[i] for i in kept) for row in table.rows])


def seeds_table(result: StudyResult) -> Table:
    """Every arm's value of every seed."""
    m = result.metric
    columns = [Column("arm", lambda arm: arm.label)]
    columns += [Column(f"seed {seed}", _of_seed(seed), lambda x: write.value(x, m)) for seed in _all_seeds(result)]
    return Sheet(columns, result.arms).table()


def questions_table(result: StudyResult) -> Table:
    """What each arm is, and the question it answers; other columns only where arms differ in them."""
    always = [
        Column("arm", lambda arm: arm.label),
        Column("kind", lambda arm: arm.arm),
        Column("question", lambda arm: arm.question),
    ]
    further = [
        Column("block", lambda arm: arm.block, block_name),
        Column("position", lambda arm: None if arm.block is None else arm.position),
        Column("learning rate", lambda arm: arm.learning_rate, "{:g}".format),
        Column("changes in the recipe", lambda arm: write.settings(arm.overrides) or None),
    ]

    def differ(column: Column) -> bool:
        seen = {str(column.value(arm)) for arm in result.arms}
        return len(seen - ({"None"} if column.title == "position" else set())) > 1  # that plain has none is no news

    return Sheet([*always, *filter(differ, further)], result.arms).table()


def blocks_table(result: StudyResult) -> Table:
    """The provenance of each arm's block."""
    columns = [Column("arm", lambda arm: arm.label), Column("block", lambda arm: arm.block, block_name)]
    columns += [Column(key, _of_block(key)) for key in ("revision", "digest")]
    return Sheet(columns, [arm for arm in result.arms if arm.block is not None]).table()


def grid_table(result: StudyResult) -> Table | None:
    """The mean of the validation metric by learning rate, the chosen one starred; None without a grid."""
    rates = sorted({rate for arm in result.arms for rate in arm.val_values})
    m = result.monitor
    if len(rates) < 2 or m is None:
        return None
    rows = []
    for arm in result.arms:
        cells = []
        for rate in rates:
            values = arm.val_values.get(rate)
            mark = " *" if rate == arm.learning_rate else ""
            cells.append(f"{write.value(fmean(values.values()), m)}{mark}" if values else write.NONE)
        rows.append((arm.label, *cells))
    return Table(("arm", *(f"{rate:g}" for rate in rates)), rows)


def at_the_edge(result: StudyResult) -> list[str]:
    """Arms whose chosen learning rate is the smallest or largest tried: a better one may lie beyond."""
    return [
        arm.label
        for arm in result.arms
        if len(arm.val_values) > 1 and arm.learning_rate in (min(arm.val_values), max(arm.val_values))
    ]


def breakdown_kinds(result: StudyResult) -> list[str]:
    """By what contrasts are broken down."""
    return list(dict.fromkeys(part.kind for part in result.breakdown))


def breakdown_pairs(result: StudyResult, kind: str) -> list[Pair]:
    """The contrasts that are broken down, as (arm, reference)."""
    return list(dict.fromkeys((part.arm, part.reference) for part in result.breakdown if part.kind == kind))


def breakdown_metric(result: StudyResult, kind: str) -> Metric:
    """The metric that is broken down."""
    return next((p.metric for p in result.breakdown if p.kind == kind and p.metric is not None), result.metric)


def breakdown_table(result: StudyResult, kind: str) -> Table:
    """A row for each category or condition, a column for each contrast."""
    m = breakdown_metric(result, kind)
    parts = {(p.name, p.arm, p.reference): p for p in result.breakdown if p.kind == kind}

    def within(arm: str, reference: str) -> Callable[[str], Breakdown | None]:
        return lambda name: parts.get((name, arm, reference))

    def cell(p: Breakdown) -> str:
        return f"{write.difference(p.mean, m)} ({write.interval(p.interval, m, signed=True)})"

    columns = [Column(kind.replace("_", " "), str)]
    columns += [Column(" - ".join(pair), within(*pair), cell) for pair in breakdown_pairs(result, kind)]
    return Sheet(columns, list(dict.fromkeys(name for name, _, _ in parts))).table()


def breakdown_csv(result: StudyResult) -> str:
    """One row a category or condition of a contrast."""
    header = ("kind", "name", "arm", "reference", "mean", "low", "high")
    return csv_text(
        header,
        [(p.kind, p.name, p.arm, p.reference, p.mean, *(p.interval or (None, None))) for p in result.breakdown],
    )


def write_tables(result: StudyResult, folder: Path) -> list[Path]:
    """Write all tables into `folder`, each atomically; returns the files.

    In the CSV files values are in the metric's own unit (accuracy: a share), differences too.
    """
    arms, contrasts = arms_sheet(result), contrasts_sheet(result, [*result.contrasts, *result.exploratory])
    texts = {"arms.csv": arms.csv(), "contrasts.csv": contrasts.csv(), "breakdown.csv": breakdown_csv(result)}
    for name, sheet in (("arms", arms), ("contrasts", contrasts)):
        texts |= {f"{name}.md": markdown(sheet.table()), f"{name}.tex": latex(sheet.table())}
    for name, text in texts.items():
        records.write_text(folder / name, text)
    return [folder / name for name in texts]
