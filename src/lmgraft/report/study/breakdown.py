"""Contrasts within each category of the test items, or each condition, as dots with intervals; exploratory."""

from __future__ import annotations

import math

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lmgraft.report.drawing import INK, SOFT, bar, name_rows, short
from lmgraft.report.study.tables import breakdown_metric, breakdown_pairs
from lmgraft.studies.study.results import StudyResult
from lmgraft.words import numbers as write

MOST_ROWS = 30
"""Rows in a figure; with more, those at both ends of the first contrast."""
MOST_COLUMNS = 4
"""Contrasts in a figure, beginning with the first."""
_COLOR = "#2f6f9f"


def shown_names(result: StudyResult, kind: str) -> list[str]:
    """The categories that a figure has room for, in their order, or by difference if there are more."""
    parts = [part for part in result.breakdown if part.kind == kind]
    names = list(dict.fromkeys(part.name for part in parts))
    if len(names) <= MOST_ROWS:
        return names
    arm, reference = breakdown_pairs(result, kind)[0]
    first = [part for part in parts if (part.arm, part.reference) == (arm, reference) and math.isfinite(part.mean)]
    ordered = [part.name for part in sorted(first, key=lambda part: -part.mean)]
    return [*ordered[: MOST_ROWS // 2], *ordered[-(MOST_ROWS // 2) :]]


def breakdown_figure(result: StudyResult, kind: str) -> Figure | None:
    """Differences within each category of this kind."""
    parts = {(p.name, p.arm, p.reference): p for p in result.breakdown if p.kind == kind and math.isfinite(p.mean)}
    if not parts:
        return None
    names, pairs = shown_names(result, kind), breakdown_pairs(result, kind)[:MOST_COLUMNS]
    m = breakdown_metric(result, kind)
    width = 2.2 + 2.6 * max(len(pairs), 2)
    figure = Figure(figsize=(min(width, 11.5), 1.2 + 0.27 * len(names)), layout="constrained")
    grid = figure.subplots(1, len(pairs), squeeze=False, sharex=True, sharey=True)[0]
    for ax, (arm, reference) in zip(grid, pairs, strict=True):
        if m == result.metric:
            ax.axvspan(-result.margin * m.scale, result.margin * m.scale, color=SOFT, alpha=0.18, linewidth=0)
        ax.axvline(0, color=INK, linewidth=1)
        for row, name in enumerate(names):
            if part := parts.get((name, arm, reference)):
                bar(ax, row, part.interval, m.scale, width=2, color=_COLOR)
                ax.plot(m.scale * part.mean, row, "o", color=_COLOR, markersize=4.5)
        ax.set_title(f"{short(arm, 20)}\n{write.MINUS} {short(reference, 18)}", fontsize=9)
        name_rows(ax, [short(name.replace("_", " "), 26) for name in names])
        ax.xaxis.set_major_locator(MaxNLocator(5))
    title = write.in_unit(f"difference in {m.title.removeprefix('test ')}", m.difference_unit)
    figure.supxlabel(f"{title}; {write.better_side(m)}", fontsize=10, color=INK)
    return figure
