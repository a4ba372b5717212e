"""The metric against severity: a small chart for each corruption, a line for each model."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lmgraft.contracts import Metric
from lmgraft.report.drawing import COLORS, FURTHER, INK, MARKERS, STYLE, write_figures
from lmgraft.studies.robustness.run import Robustness

_COLUMNS = 5


def quantity(metric: Metric) -> str:
    """What table and figure are of: "accuracy in %"."""
    return " in ".join(filter(None, (metric.title.removeprefix("test "), metric.unit)))


def write_figure(results: Sequence[Robustness], out: Path, name: str) -> list[Path]:
    """Write `name`.png and `name`.svg; nothing where there are no corruptions."""
    curves = [_curves(result) for result in results]
    corruptions = list(dict.fromkeys(corruption for one in curves for corruption in one))
    with matplotlib.rc_context({**STYLE, "font.size": 8}):
        figure = _draw(results, curves, corruptions) if corruptions else None
    return [out / f"{made}.{ending}" for made in write_figures({name: figure}, out) for ending in ("png", "svg")]


def _curves(result: Robustness) -> dict[str, dict[int, float]]:
    """Part -> level -> value as it is written."""
    curves: dict[str, dict[int, float]] = {}
    for cell in result.cells.values():
        if cell.part is not None and cell.level is not None:
            curves.setdefault(cell.part, {})[cell.level] = result.metric.scale * cell.metrics[result.metric.name]
    return curves


def _clean(result: Robustness) -> float | None:
    return next((result.metric.scale * row.value for row in result.summary if row.kind == "clean"), None)


def _draw(
    results: Sequence[Robustness], curves: Sequence[dict[str, dict[int, float]]], corruptions: Sequence[str]
) -> Figure:
    columns = min(_COLUMNS, len(corruptions))
    lines = -(-len(corruptions) // columns)
    figure = Figure(figsize=(max(4.5, 1.95 * columns), 0.95 + 1.6 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    styles = _styles([result.label for result in results])
    levels = sorted({level for one in curves for curve in one.values() for level in curve})
    clean = [_clean(result) for result in results]
    for number, axes in enumerate(grid.flat):
        if number >= len(corruptions):
            axes.set_visible(False)
            continue
        for curve, style, level in zip(curves, styles, clean, strict=True):
            points = sorted(curve.get(corruptions[number], {}).items())
            axes.plot([level for level, _ in points], [value for _, value in points], **style)
            if level is not None:
                axes.axhline(level, color=style["color"], linestyle=":", linewidth=1)
        axes.set_title(corruptions[number].replace("_", " "), fontsize=8, loc="left")
        axes.grid(alpha=0.25)
        axes.set_xticks(levels)
        # A column's last chart carries the axis, also where the bottom row is not full.
        axes.tick_params(labelbottom=number + columns >= len(corruptions))
    known = [level for level in clean if level is not None]
    shown = [value for one in curves for curve in one.values() for value in curve.values()] + known
    metric = results[0].metric
    if metric.low == 0 and min(shown) >= 0:
        top = metric.scale * metric.bounds[1]
        grid.flat[0].set_ylim(0, min(top, max(shown) * 1.08) or 1)
    figure.supxlabel("severity", fontsize=9, color=INK)
    figure.supylabel(quantity(metric), fontsize=9, color=INK)
    handles = [Line2D([], [], label=result.label, **style) for result, style in zip(results, styles, strict=True)]
    if known:
        handles.append(Line2D([], [], color=INK, linestyle=":", linewidth=1, label=f"on clean {results[0].things}"))
    figure.legend(handles=handles, loc="outside upper left", ncols=min(4, len(handles)), fontsize=8)
    return figure


def _styles(labels: Sequence[str]) -> list[dict[str, Any]]:
    """Arms in their own colours, other models in what is left."""
    taken = {COLORS[label] for label in labels if label in COLORS}
    free = cycle([color for color in FURTHER if color not in taken])
    return [
        {
            "color": COLORS[label] if label in COLORS else next(free),
            "marker": MARKERS[number % len(MARKERS)],
            "markersize": 3,
            "linewidth": 1.4,
        }
        for number, label in enumerate(labels)
    ]
