"""`report.html` of a study: what its template shows, gathered; findings get colour, sign and place by their kind."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lmgraft.analysis.verdict import CAUTIONS, CHANGES, VERDICT
from lmgraft.report.html import facts_of, render
from lmgraft.report.study.breakdown import MOST_COLUMNS, MOST_ROWS
from lmgraft.report.study.figures import arm_colors
from lmgraft.report.study.tables import (
    arms_sheet,
    at_the_edge,
    blocks_table,
    breakdown_kinds,
    breakdown_metric,
    breakdown_pairs,
    breakdown_table,
    contrasts_sheet,
    grid_table,
    questions_table,
    seeds_table,
)
from lmgraft.studies.study.results import StudyResult
from lmgraft.words import limits as words
from lmgraft.words import numbers as write
from lmgraft.words import paper
from lmgraft.words.splits import of_splits
from lmgraft.words.verdict import coverage, sentences

_MOST_SENTENCES = 10
_SIGNS = {"better": "▲", "worse": "▼", "not shown": "○"}
_STYLES = {
    **dict.fromkeys(("helps", "better"), ("helps", "▲")),
    **dict.fromkeys(("hurts", "worse"), ("hurts", "▼")),
    **dict.fromkeys(("not shown", "nothing planned"), ("unclear", "○")),
    **dict.fromkeys(("equivalent", "explained", "equal"), ("equal", "=")),
    **dict.fromkeys(CAUTIONS, ("caution", "!")),
    "tally": ("tally", "\N{N-ARY SUMMATION}"),
}
"""Kind of finding -> the style of its sentence, and a sign."""


class Mark(NamedTuple):
    """A sentence of the verdict as the page shows it."""

    sentence: str
    style: str
    """A class of the style sheet; "continued" for a sentence that belongs to the one before."""
    sign: str


def page(result: StudyResult, svgs: Mapping[str, str], files: Sequence[str] = ()) -> str:
    """The whole page as HTML.

    Args:
        result: What is shown.
        svgs: Figures by name, as SVG files' texts; those that are not there are left out.
        files: Tables and figures beside the page, relative to it.
    """
    shown, folded = marks(result)
    every = [*result.contrasts, *result.exploratory]
    drawn_anew = [c for c in every if c.bootstrap is not None]
    groups = (("planned", result.contrasts), ("exploratory, not corrected", result.exploratory))
    m = result.monitor
    return render(
        "study.html",
        result=result,
        svgs=svgs,
        files=files,
        paper=paper,
        shown=shown,
        folded=folded,
        limits=_limits(result),
        arms=arms_sheet(result).table(),
        colors=arm_colors(result),
        bare_arms="" if all(write.is_interval(arm.interval) for arm in result.arms) else write.MISSING["no spread"],
        seeds=seeds_table(result),
        questions=questions_table(result),
        contrasts=[(title, of, contrasts_sheet(result, of, apart=True).table()) for title, of in groups if of],
        signs=_SIGNS,
        level=write.share(1 - result.confidence),
        power=" or ".join(write.share(p) for p in sorted({c.power for c in every})),
        no_intervals=_no_intervals(result),
        covered=coverage(drawn_anew, result.confidence) if drawn_anew else "",
        groups=any(c.groups is not None for c in every),
        breakdowns=[
            {
                "kind": kind,
                "title": kind.replace("_", " "),
                "table": breakdown_table(result, kind),
                "metric": breakdown_metric(result, kind),
                "contrasts": len(breakdown_pairs(result, kind)),
            }
            for kind in breakdown_kinds(result)
        ],
        most={"rows": MOST_ROWS, "columns": MOST_COLUMNS},
        grid=grid_table(result),
        monitored="" if m is None else m.title.removeprefix("test ") + (f" in {m.unit}" if m.unit else ""),
        edge=at_the_edge(result),
        facts=_facts(result),
        blocks=blocks_table(result),
        tested=of_splits(result.things, result.selection, result.splits),
        fingerprint=json.dumps(result.data, indent=1, ensure_ascii=False, default=str) if result.data else "",
    )


def marks(result: StudyResult) -> tuple[list[Mark], list[Mark]]:
    """The verdict's sentences that are shown at once, and, where there are many, all that can be unfolded.

    Of many, first what belongs to a sentence is folded, then what is not shown or equal; cautions never are.
    """
    every = []
    for finding in (f for f in result.findings if f.kind in VERDICT or f.kind in CHANGES):
        head, *rest = sentences(finding, result.setting)
        every += [Mark(head, *_STYLES[finding.kind]), *(Mark(sentence, "continued", "") for sentence in rest)]
    if len(every) <= _MOST_SENTENCES:
        return every, []
    shown = [mark for mark in every if mark.style != "continued"]
    if len(shown) > _MOST_SENTENCES:
        shown = [mark for mark in shown if mark.style not in ("unclear", "equal")] or every[:1]
    return shown, every


def _limits(result: StudyResult) -> list[str]:
    return [
        words.scope(result.seeds, result.test_items, result.things),
        *words.limits(result.contrasts, result.setting),
        *([words.of_margin(result.setting)] if result.contrasts or result.exploratory else []),
        *([words.of_missing(len(result.missing))] if result.missing else []),
    ]


def _no_intervals(result: StudyResult) -> str:
    """Why some contrasts have no interval; empty where all have one."""
    every = [*result.contrasts, *result.exploratory]
    reasons = [write.MISSING[c.no_interval] for c in every if c.interval is None and c.no_interval is not None]
    without_spread = ["seeds do not spread, so that nothing can be tested"] * any(c.sd == 0 for c in every)
    return "; ".join(dict.fromkeys([*without_spread, *reasons]))


def _facts(result: StudyResult) -> dict[str, str]:
    """What was run, by which versions, on which data."""
    sizes = result.data.get("sizes") or {}
    named = [str(result.data["name"])] if result.data.get("name") else []
    return {
        "study": result.name,
        "recipe": result.recipe,
        "seeds": ", ".join(map(str, result.seeds)),
        "data": ", ".join([*named, *(f"{n:,} {half}" for half, n in sizes.items())]),
        "commits": ", ".join(result.commits) or "not a checkout",
        **facts_of(result.environment),
    }
