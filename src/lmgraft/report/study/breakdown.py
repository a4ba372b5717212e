"""Contrasts within each class and each corruption, as dots with intervals; exploratory."""

from __future__ import annotations

import math

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lmgraft.report.drawing import INK, SOFT, short
from lmgraft.report.study.format import MINUS, finite_ends
from lmgraft.report.study.tables import breakdown_metric, breakdown_pairs
from lmgraft.studies.study.results import Breakdown, StudyResult

MOST_ROWS = 30
"""Classes in a figure; with more, those at both ends of the first contrast."""
MOST_COLUMNS = 4
"""Contrasts in a figure, beginning with the first."""


def class_figure(result: StudyResult) -> Figure | None:
    """Differences within each class."""
    return _figure(result, "class")


def corruption_figure(result: StudyResult) -> Figure | None:
    """Differences on each corruption of the test images."""
    return _figure(result, "corruption")


def shown_names(result: StudyResult, kind: str) -> list[str]:
    """The classes or corruptions that a figure has room for, in their order, or by difference if there are more."""
    parts = [part for part in result.breakdown if part.kind == kind]
    names = list(dict.fromkeys(part.name for part in parts))
    if len(names) <= MOST_ROWS:
        return names
    arm, reference = breakdown_pairs(result, kind)[0]
    first = [part for part in parts if (part.arm, part.reference) == (arm, reference) and math.isfinite(part.mean)]
    ordered = [part.name for part in sorted(first, key=lambda part: -part.mean)]
    return [*ordered[: MOST_ROWS // 2], *ordered[-(MOST_ROWS // 2) :]]


def _figure(result: StudyResult, kind: str) -> Figure | None:
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
                _row(ax, row, part, m.scale)
        ax.set_title(f"{short(arm, 20)}\n{MINUS} {short(reference, 18)}", fontsize=9)
        ax.set_yticks(range(len(names)), [short(name.replace("_", " "), 26) for name in names])
        ax.set_ylim(len(names) - 0.4, -0.6)
        ax.xaxis.set_major_locator(MaxNLocator(5))
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="x", alpha=0.25)
    side = "right" if m.higher_is_better else "left"
    unit = m.difference_unit
    what = m.title.removeprefix("test ")
    said = f"difference in {what}, {unit}; {side} of zero, the first arm is better"
    figure.supxlabel(said, fontsize=10, color=INK)
    return figure


def _row(ax: matplotlib.axes.Axes, row: int, part: Breakdown, scale: float) -> None:
    color = "#2f6f9f"
    if finite_ends(part.interval):
        ax.plot([scale * end for end in part.interval], [row, row], color=color, linewidth=2, alpha=0.5)
    ax.plot(scale * part.mean, row, "o", color=color, markersize=4.5)
