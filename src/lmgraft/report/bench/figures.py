"""The benchmark's charts as PNG: cost against tokens, and against the LLM's width.

A chart shows the cells that differ in its axis alone, of that encoder, block and batch for which
there are most; its title says which.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from lmgraft.report.drawing import SOFT, STYLE, write_png
from lmgraft.studies.bench.measure import Spread
from lmgraft.studies.bench.results import CellResult

Series = dict[tuple[str, str], list[tuple[int, Spread]]]
"""(phase, form) -> points: where on the axis, and the ratio to plain."""

_COLORS = {"train": "#c2571a", "eval": "#2f6f9f"}
_LINES = {"auto": "-", "dense": "--"}


def write_figures(results: Sequence[CellResult], out: Path) -> list[Path]:
    """Write both charts to `out`; a chart is left out where all its cells lie at one place of its axis."""
    measured = [result for result in results if result.times]
    charts = {
        "cost_tokens.png": (by_tokens(measured), "tokens of the encoder"),
        "cost_width.png": (by_width(measured), "width of the LLM"),
    }
    return [_write(out / name, *chart, axis) for name, (chart, axis) in charts.items() if len(_places(chart[1])) > 1]


def by_tokens(results: Sequence[CellResult]) -> tuple[str, Series]:
    """Cells of one encoder at several image sizes, one block, one batch size; and a title."""

    def group(result: CellResult) -> tuple[str, ...]:
        return (result.cell.host.partition("@")[0], _block(result), f"batch {result.cell.batch}")

    return _most(results, group, lambda result: result.tokens)


def by_width(results: Sequence[CellResult]) -> tuple[str, Series]:
    """Cells of one encoder and one batch size with blocks of several LLMs; and a title."""

    def group(result: CellResult) -> tuple[str, ...]:
        return (result.cell.host, f"{result.tokens} tokens", f"batch {result.cell.batch}")

    return _most(results, group, lambda result: result.llm_width)


def _most(
    results: Sequence[CellResult], group: Callable[[CellResult], tuple[str, ...]], x: Callable[[CellResult], int]
) -> tuple[str, Series]:
    """The group whose cells lie at most places of the axis; of equal ones the first measured."""
    groups: dict[Hashable, list[CellResult]] = defaultdict(list)
    for result in results:
        rest = (result.cell.dtype, result.cell.device, result.cell.compiled, str(result.context))
        groups[group(result), rest].append(result)
    if not groups:
        return "", {}
    best = max(groups.values(), key=lambda ones: len({x(one) for one in ones}))
    series: dict[tuple[str, str], dict[int, Spread]] = defaultdict(dict)
    for result in best:
        for form in result.grafted():
            series[result.cell.phase, form][x(result)] = result.ratio(form)
    title = f"{', '.join(group(best[0]))}; {best[0].context['machine']}"
    stored = {(result.cell.storage, result.llm_width) for result in best if result.cell.storage != "float32"}
    if stored:
        title += "; 16-bit weights at " + ", ".join(f"{width:,}" for _, width in sorted(stored))
    return title, {key: sorted(points.items()) for key, points in sorted(series.items(), reverse=True)}


def _block(result: CellResult) -> str:
    return f"{result.cell.block} block, {result.llm_width} wide"


def _write(path: Path, title: str, series: Series, axis: str) -> Path:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 4.6), layout="constrained")
        axes = figure.subplots()
        for number, ((phase, form), points) in enumerate(series.items()):
            beside = 1.012 ** (number - (len(series) - 1) / 2)  # bars at one place would hide each other
            places, ratios = [x * beside for x, _ in points], [ratio for _, ratio in points]
            middle = [ratio.median for ratio in ratios]
            spread = [[r.median - r.q1 for r in ratios], [r.q3 - r.median for r in ratios]]
            axes.errorbar(
                places,
                middle,
                yerr=spread,
                color=_COLORS[phase],
                linestyle=_LINES.get(form, ":"),
                marker="o" if phase == "train" else "s",
                markersize=4.5,
                linewidth=1.6,
                elinewidth=1,
                capsize=2,
                label=f"{_NAMES[phase]}, {_FORMS.get(form, form)}",
            )
        axes.axhline(1, color=SOFT, linewidth=1)
        _scale(axes, series)
        axes.set_xlabel(axis)
        axes.set_ylabel("time of a step, plain encoder = 1")
        axes.set_title(title)
        axes.grid(alpha=0.25)
        figure.legend(loc="outside lower center", ncols=2)
    write_png(figure, path, dpi=150)
    return path


_NAMES = {"train": "training step", "eval": "evaluation"}
_FORMS = {"auto": "planned form", "dense": "dense form, as published"}


def _places(series: Series) -> list[int]:
    return sorted({x for points in series.values() for x, _ in points})


def _scale(axes: Any, series: Series) -> None:
    """Both axes logarithmic, with plain numbers: the places that were measured, and round ratios."""
    places = _places(series)
    ends = [end for points in series.values() for _, ratio in points for end in (ratio.q1, ratio.q3)]
    low, high = min(0.95, *ends) * 0.97, max(1.3, *ends) * 1.05
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(places))
    axes.set_xlim(places[0] / 1.25, places[-1] * 1.25)
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    round_ones = [1, 1.1, 1.2, 1.3, 1.5, 1.7] if high < 2 else [1, 1.25, 1.5, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 100]
    axes.yaxis.set_major_locator(FixedLocator([one for one in round_ones if low <= one <= high]))
    for side in (axes.xaxis, axes.yaxis):
        side.set_minor_locator(NullLocator())
        side.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
