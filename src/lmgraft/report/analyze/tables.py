"""An analysis in tables: what maps find, what masking takes, comparisons, probes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lmgraft.analysis.comparison import Comparison, Interval, Kind
from lmgraft.report.table import Column, Sheet
from lmgraft.studies.analyze.gallery import STAGES
from lmgraft.studies.analyze.look import CENTRE
from lmgraft.studies.analyze.results import Analysis, Found, Loss
from lmgraft.words import analyze as words
from lmgraft.words import numbers as write
from lmgraft.words.arms import block_name

_ENDS = ("low", "high")


def stage_title(stage: str) -> str:
    """A stage as pages call it: "W2", "layer 3"."""
    return STAGES.get(stage, stage)


def _three(value: float) -> str:
    return f"{value:.3f}"


def runs_sheet(analysis: Analysis) -> Sheet:
    """The runs, with what they reach on the items that were looked at."""
    m = analysis.metric
    return Sheet(
        [
            Column("run", lambda s: s.label, names=("run",)),
            Column("arm", lambda s: s.arm, names=("arm",)),
            Column("seed", lambda s: s.seed, names=("seed",)),
            Column("block", lambda s: s.block, block_name, names=()),
            Column("", lambda s: None if s.block is None else block_name(s.block), names=("block",)),
            Column("tokens", lambda s: s.tokens, names=("tokens",)),
            Column(write.in_unit(m.title, m.unit), lambda s: s.metric, lambda x: write.value(x, m), names=("metric",)),
            Column("95 % interval", lambda s: s.metric_interval, lambda x: write.interval(x, m), names=_ENDS),
        ],
        analysis.subjects,
    )


def arms_sheet(analysis: Analysis) -> Sheet:
    """The arms, with what their runs reach on the items that were looked at."""
    m = analysis.metric
    return Sheet(
        [
            Column("arm", lambda r: r.arm, names=("arm",)),
            Column("block", lambda r: r.block, block_name, names=()),
            Column("", lambda r: None if r.block is None else block_name(r.block), names=("block",)),
            Column("tokens", lambda r: r.tokens, names=("tokens",)),
            Column("seeds", lambda r: r.seeds, names=("seeds",)),
            Column(write.in_unit(m.title, m.unit), lambda r: r.metric, lambda x: write.value(x, m), names=("metric",)),
            Column("95 % interval", lambda r: r.interval, lambda x: write.interval(x, m), names=_ENDS),
        ],
        analysis.reached,
    )


def summary_sheet(analysis: Analysis) -> Sheet:
    """Last stage and attention of each arm, and the floors: all scores."""
    every = _wide(analysis.found_by_arm)
    grafted = {row["label"] for row in every if row["stage"] == "mapper_out"}
    last = [row for row in every if row["stage"] == ("mapper_out" if row["label"] in grafted else "encoder")]
    return _found_sheet(
        [row for row in every if row in last or row["measure"] == "attention" or row["stage"] == CENTRE]
    )


def stages_sheet(found: Sequence[Found]) -> Sheet:
    """Every stage and measure of each run, or of each arm."""
    return _found_sheet(_wide(found))


def _wide(found: Sequence[Found]) -> list[dict[str, Any]]:
    """(run or arm, stage, measure) -> its scores; as rows."""
    rows: dict[tuple[str, str, str], dict[str, Found]] = {}
    for one in found:
        rows.setdefault((one.label, one.stage, one.measure), {})[one.score] = one
    return [{"label": k[0], "stage": k[1], "measure": k[2], **scores} for k, scores in rows.items()]


def _found_sheet(rows: list[dict[str, Any]]) -> Sheet:
    columns = [
        Column("of", lambda row: row["label"], names=("run",)),
        Column("after", lambda row: stage_title(row["stage"]), names=("stage",)),
        Column("measure", lambda row: row["measure"], names=("measure",)),
    ]
    for score, title in words.SCORES.items():
        columns += [
            Column(title, lambda row, s=score: _of(row, s, "mean"), _three, names=(score,)),  # type: ignore[misc]
            Column(
                "95 %" if score in ("best_iou", "average_precision", "share") else "",
                lambda row, s=score: _of(row, s, "interval"),  # type: ignore[misc]
                words.interval,
                names=tuple(f"{score}_{end}" for end in _ENDS),
            ),
        ]
    columns.append(Column("seeds", lambda row: row["best_iou"].seeds, names=("seeds",)))
    columns.append(Column("items", lambda row: row["best_iou"].items, names=("items",)))
    return Sheet(columns, rows)


def _of(row: dict[str, Any], score: str, part: str) -> Any:
    """A part of a score, None where the measure has none, or an earlier version did not count it."""
    return getattr(row[score], part) if score in row else None


def comparisons_sheet(analysis: Analysis, *kinds: Kind) -> Sheet:
    """Paired differences of some kinds: maps, or what masking takes."""
    of_maps = kinds == ("object",)
    metric = None if of_maps else analysis.lost
    title = "difference" if metric is None else write.in_unit("difference", metric.difference_unit)

    def ends(of: Interval) -> str:
        return words.interval(of) if metric is None else write.interval(of, metric, signed=True)

    def sized(of: float) -> str:
        return words.signed(of, None) if metric is None else write.difference(of, metric)

    every = [
        Column("first", _first_of, names=("first",)),
        Column("second", _second_of, names=("second",)),
        Column("by" if of_maps else "masked", lambda c: (words.SCORES | words.WHERE)[c.score], names=("score",)),
        Column("share", lambda c: c.share, lambda x: f"{100 * x:.0f} %", names=("share",)),
        Column(title, lambda c: c.difference, sized, names=("difference",)),
        Column("95 % interval", lambda c: c.interval, ends, names=_ENDS),
        Column("seeds and items", lambda c: c.over_items, ends, names=("both_low", "both_high")),
        Column("seeds", lambda c: c.seeds, names=("seeds",)),
        Column("items", lambda c: c.items, names=("items",)),
        Column("planned", lambda c: "planned" if c.planned else "exploratory", names=("planned",)),
        Column("p", lambda c: c.p, write.probability, names=("p",)),
        Column("p, Holm", lambda c: c.p_holm, write.probability, names=("p_holm",)),
        Column("shown", lambda c: c.outcome, names=("outcome",)),
    ]
    shown = [c for c in analysis.comparisons if c.kind in kinds]
    return Sheet([c for c in every if not of_maps or c.title != "share"], shown)


def _first_of(c: Comparison) -> str:
    if c.kind == "object":
        return c.first
    return f"{c.first if c.kind == 'effect' else c.arm}: {words.RULES['amplified']}"


def _second_of(c: Comparison) -> str:
    if c.kind == "effect":
        return f"{c.second}: {words.RULES['amplified']}; each beyond {words.RULES['random']}"
    return words.RULES.get(c.second, c.second)


def losses_sheet(analysis: Analysis, losses: Sequence[Loss]) -> Sheet:
    """What the metric loses by masked tokens, run by run or arm by arm."""
    m = analysis.lost
    return Sheet(
        [
            Column("of", lambda row: row.label, names=("run",)),
            Column("masked", lambda row: words.WHERE[row.where], names=("where",)),
            Column("tokens", lambda row: words.RULES[row.rule], names=("rule",)),
            Column("share", lambda row: row.share, lambda x: f"{100 * x:.0f} %", names=("share",)),
            Column(
                f"lost, {m.difference_unit}", lambda row: row.mean, lambda x: write.difference(x, m), names=("lost",)
            ),
            Column("95 % interval", lambda row: row.interval, lambda x: write.interval(x, m, signed=True), names=_ENDS),
        ],
        losses,
    )


def probes_sheet(analysis: Analysis) -> Sheet:
    """Spread of attention and dimensions in use."""
    return Sheet(
        [
            Column("arm", lambda p: p.label, names=("arm",)),
            Column("after", lambda p: stage_title(p.stage), names=("stage",)),
            Column("probe", lambda p: p.name.replace("_", " "), names=("probe",)),
            Column("mean", lambda p: p.mean, _three, names=("mean",)),
            Column("95 % interval", lambda p: p.interval, words.interval, names=_ENDS),
        ],
        analysis.probes,
    )


def coherences_sheet(analysis: Analysis) -> Sheet:
    """How far the gradients of items agree."""
    return Sheet(
        [
            Column("run", lambda c: c.label, names=("run",)),
            Column("gradient of", lambda c: words.PARTS[c.part], names=("part",)),
            Column("coherence", lambda c: c.value, lambda x: words.signed(x, None), names=("coherence",)),
            Column("95 % interval", lambda c: c.interval, words.interval, names=_ENDS),
            Column("items", lambda c: c.items, names=("items",)),
        ],
        analysis.coherences,
    )


def efforts_sheet(analysis: Analysis) -> Sheet:
    """What was computed of how many items."""
    return Sheet(
        [
            Column("of each run", lambda e: words.EFFORTS[e.what], names=("what",)),
            Column("items", lambda e: e.items, names=("items",)),
            Column("passes forward, each", lambda e: e.forward, names=("forward",)),
            Column("passes back, each", lambda e: e.backward, names=("backward",)),
        ],
        analysis.efforts,
    )
