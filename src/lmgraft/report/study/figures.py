"""Figures of every study: arms, contrasts, learning curves, cost against gain. None where there is nothing to draw."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from lmgraft.analysis.paired import Contrast
from lmgraft.report.drawing import INK, MARKERS, OUTCOMES, SOFT, STYLE, bar, colors, legend, name_rows, short
from lmgraft.report.study.breakdown import breakdown_figure
from lmgraft.report.study.depth import layers_figure, scale_figure
from lmgraft.report.study.tables import breakdown_kinds, reference_arm
from lmgraft.studies.study.results import Band, StudyResult
from lmgraft.words import numbers as write


def arm_colors(result: StudyResult) -> dict[str, str]:
    """Arm -> its colour."""
    return colors({arm.label: arm.arm for arm in result.arms})


def arms_figure(result: StudyResult) -> Figure | None:
    """Every arm's mean with its interval, and every seed as a dot."""
    arms = [arm for arm in result.arms if math.isfinite(arm.mean)]
    if not arms:
        return None
    m, of_arm = result.metric, arm_colors(result)
    figure, (ax,) = _rows([len(arms)])
    for row, arm in enumerate(arms):
        color = of_arm[arm.label]
        bar(ax, row, arm.interval, m.scale, color=color)
        ax.plot(arm.mean * m.scale, row, "D", color=color, markersize=6)
        _seeds(ax, row + 0.26, list(arm.values.values()), m.scale, color)
    name_rows(ax, [short(arm.label) for arm in arms])
    ax.set_xlabel(write.in_unit(m.title, m.unit) + write.better(m))
    label = f"mean, {write.share(result.confidence)} interval over seeds"
    legend(figure, [_handle(label, INK, "D", linewidth=3, alpha=0.7), _seed_handle()])
    return figure


_GROUPS = ("planned before any run", "exploratory: not planned, not corrected for how many there are")


def forest_figure(result: StudyResult) -> Figure | None:
    """Contrasts with interval, margin and every seed; exploratory ones apart, and said to be."""
    finite = [[c for c in group if math.isfinite(c.mean)] for group in (result.contrasts, result.exploratory)]
    groups = [(title, group) for title, group in zip(_GROUPS, finite, strict=True) if group]
    if not groups:
        return None
    m = result.metric
    figure, axes = _rows([len(group) for _, group in groups])
    extents = [_extent(result, group) for _, group in groups]
    for ax, (title, group), extent in zip(axes, groups, extents, strict=True):
        ax.axvspan(-result.margin * m.scale, result.margin * m.scale, color=SOFT, alpha=0.18, linewidth=0)
        ax.axvline(0, color=INK, linewidth=1)
        for row, c in enumerate(group):
            _forest_row(ax, row, c, result)
        name_rows(ax, [f"{short(c.arm)} {write.MINUS} {short(c.reference)}" for c in group])
        ax.set_title(title)
        # Far differences of arms that were only looked at would squeeze the planned ones.
        near = [one for one in extents if one <= 3 * min(extents)]
        reach = extent if extent > 3 * min(extents) else max(near)
        ax.set_xlim(-reach, reach)
    if len({ax.get_xlim() for ax in axes}) > 1:
        axes[-1].set_title(f"{_GROUPS[1]}; another scale")
    axes[-1].set_xlabel(f"{write.in_unit(f'difference in {m.title}', m.difference_unit)}; {write.better_side(m)}")
    handles = [_handle(outcome, color, marker, linewidth=3, alpha=0.9) for outcome, (color, marker) in OUTCOMES.items()]
    handles[-1].set_markerfacecolor("white")
    margin = f"equal within {write.size(result.margin, m)}"
    legend(figure, [*handles, _seed_handle(), Patch(color=SOFT, alpha=0.3, linewidth=0, label=margin)], columns=5)
    return figure


def _forest_row(ax: Axes, row: int, c: Contrast, result: StudyResult) -> None:
    m, (color, marker) = result.metric, OUTCOMES[c.outcome]
    ends = None if c.sd == 0 else c.interval
    bar(ax, row, ends, m.scale, color=color)
    filled = color if c.outcome != "not shown" else "white"
    ax.plot(c.mean * m.scale, row, marker, color=color, markerfacecolor=filled, markersize=7, zorder=4)
    _seeds(ax, row + 0.28, c.differences, m.scale, color)
    text = f"{write.difference(c.mean, m)} ({write.interval(ends, m, signed=True)})".replace("-", write.MINUS)
    ax.text(1.02, row, text, transform=ax.get_yaxis_transform(), va="center", fontsize=9)


def curves_figure(result: StudyResult) -> Figure | None:
    """Training loss and the validation metric: means over seeds, with bands."""
    of_arm, kinds, m = arm_colors(result), {arm.label: arm.arm for arm in result.arms}, result.monitor
    charts = [("train/loss", "training loss", 1.0)]
    if m is not None:
        title = write.in_unit(f"validation {m.title.removeprefix('test ')}", m.unit)
        charts.append((f"val/{m.name}", title, m.scale))
    charts = [chart for chart in charts if any(metrics.get(chart[0]) for metrics in result.curves.values())]
    if not charts:
        return None
    figure = Figure(figsize=(4.7 * max(len(charts), 1.3), 3.7), layout="constrained")
    drawn: dict[str, Line2D] = {}
    for ax, (name, ylabel, scale) in zip(figure.subplots(1, len(charts), squeeze=False)[0], charts, strict=True):
        for arm, metrics in result.curves.items():
            if points := [point for point in metrics.get(name, []) if math.isfinite(point.mean)]:
                dashed = "--" if kinds.get(arm) == "plain" else "-"
                drawn[arm] = _curve(ax, points, scale, of_arm.get(arm, SOFT), dashed, len(result.curves))
        _limit(ax, [p for curves in result.curves.values() for p in curves.get(name, [])], scale)
        ax.set(xlabel="step", ylabel=ylabel)
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
        ax.grid(alpha=0.25)
    lines = [_handle(short(arm), d.get_color(), None, linestyle=d.get_linestyle()) for arm, d in drawn.items()]
    legend(figure, lines, columns=5)
    return figure


def _limit(ax: Axes, points: Sequence[Band], scale: float) -> None:
    """Bands over two seeds can be many times as wide as all that the means do: they run out of the chart."""
    means = [scale * point.mean for point in points if math.isfinite(point.mean)]
    ends = [scale * end for point in points for end in (point.low, point.high) if math.isfinite(end)]
    room = 0.5 * (max(means) - min(means)) or 1.0
    low, high = max(min(means) - room, min([*ends, *means])), min(max(means) + room, max([*ends, *means]))
    ax.set_ylim(low - 0.04 * (high - low), high + 0.04 * (high - low))


def _curve(ax: Axes, points: Sequence[Band], scale: float, color: str, line: str, arms: int) -> Line2D:
    steps = [point.step for point in points]
    low, middle, high = ([scale * getattr(point, end) for point in points] for end in ("low", "mean", "high"))
    ax.fill_between(steps, low, high, color=color, alpha=0.16 if arms <= 6 else 0.07, linewidth=0)
    marker = "o" if len(points) <= 12 else ""
    return ax.plot(steps, middle, color=color, linestyle=line, linewidth=1.5, marker=marker, markersize=3.5)[0]


def cost_figure(result: StudyResult) -> Figure | None:
    """Gain over the reference arm against what a training step costs, in counted operations if they are known."""
    base, m = reference_arm(result), result.metric
    gains = {c.arm: c for c in (*result.exploratory, *result.contrasts) if c.reference == result.reference}
    if base is None:
        return None
    arms = [arm for arm in result.arms if arm.label in gains and math.isfinite(gains[arm.label].mean)]
    counted = base.cost.train_flops is not None and all(arm.cost.train_flops is not None for arm in arms)
    costs = {
        arm.label: write.divide(arm.cost.train_flops, base.cost.train_flops)
        if counted
        else getattr(arm.cost.time, "ratio", None)
        for arm in arms
    }
    ratios = {label: ratio for label, ratio in costs.items() if ratio is not None}
    if not ratios:
        return None
    of_arm, labels = arm_colors(result), [arm.label for arm in result.arms]
    logarithmic = max(ratios.values()) > 8 * min(1, *ratios.values())
    figure = Figure(figsize=(7.4, 4.2 + 0.16 * (len(ratios) // 3)), layout="constrained")
    ax = figure.subplots()
    ax.axhline(0, color=INK, linewidth=1)
    handles = []
    for label, x in zip(ratios, _beside(list(ratios.values()), logarithmic), strict=True):
        c, color, marker = gains[label], of_arm[label], MARKERS[labels.index(label) % len(MARKERS)]
        bar(ax, x, c.interval, m.scale, upright=True, width=1.6, color=color, alpha=0.7)
        ax.plot(x, m.scale * c.mean, marker, color=color, markersize=6.5)
        handles.append(_handle(short(label), color, marker, linewidth=1.6, markersize=6))
    ax.plot(1, 0, "+", color=INK, markersize=12, markeredgewidth=2, zorder=5)
    handles.append(_handle(short(base.label), INK, "+", linewidth=0, markersize=10))
    if logarithmic:
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        ax.xaxis.set_minor_formatter(FuncFormatter(lambda x, _: f"{x:g}" if f"{x:e}"[0] in "25" else ""))
    what = "operations of a training step" if counted else "time of training"
    ax.set_xlabel(f"{what}, {short(base.label)} = 1")
    title = write.in_unit(m.title, m.difference_unit)
    ax.set_ylabel(f"{title}\nagainst {short(base.label)}{write.better(m)}")
    ax.margins(x=0.12, y=0.1)
    ax.grid(alpha=0.25)
    legend(figure, handles, columns=4)
    return figure


def _beside(places: Sequence[float], logarithmic: bool) -> list[float]:
    """Places moved a little where several are nearly the same: bars at one place hide each other."""
    scale: Callable[[float], float] = math.log if logarithmic else float
    wide = max(map(scale, [*places, 1])) - min(map(scale, [*places, 1])) or 1.0
    order = sorted(range(len(places)), key=lambda i: places[i])
    groups: list[list[int]] = []
    for i in order:
        near = groups and scale(places[i]) - scale(places[groups[-1][0]]) < 0.02 * wide
        groups[-1].append(i) if near else groups.append([i])
    moved = list(places)
    for group in groups:
        step = min(0.025, 0.2 / len(group)) * wide
        for rank, i in enumerate(sorted(group)):
            by = step * (rank - (len(group) - 1) / 2)
            moved[i] = math.exp(scale(places[i]) + by) if logarithmic else places[i] + by
    return moved


def _rows(sizes: Sequence[int]) -> tuple[Figure, list[Axes]]:
    """Charts above each other, with so many named rows."""
    height = 1.0 + sum(0.42 * size + 0.35 for size in sizes)
    figure = Figure(figsize=(9.2, height), layout="constrained")
    ratios = [size + 0.4 for size in sizes]
    return figure, list(figure.subplots(len(sizes), 1, squeeze=False, height_ratios=ratios)[:, 0])


def _extent(result: StudyResult, group: Sequence[Contrast]) -> float:
    """How far from zero the group reaches, in what is written."""
    ends = [result.margin, *(end for c in group for end in (c.mean, *c.differences, *(c.interval or ())))]
    reach: float = max(abs(end) for end in ends if math.isfinite(end))
    return 1.08 * result.metric.scale * reach


def _seeds(ax: Axes, row: float, values: Sequence[float], scale: float, color: str) -> None:
    places = [scale * one for one in values]
    ax.plot(places, [row] * len(places), "o", color=color, markersize=3.5, alpha=0.6, linewidth=0)


def _handle(label: str, color: object, marker: str | None, **style: object) -> Line2D:
    return Line2D([], [], label=label, color=color, marker=marker, **style)  # type: ignore[arg-type]


def _seed_handle() -> Line2D:
    return _handle("one seed", INK, "o", linewidth=0, markersize=3.5, alpha=0.6)


FIGURES: dict[str, Callable[[StudyResult], Figure | None]] = {
    "arms": arms_figure,
    "contrasts": forest_figure,
    "curves": curves_figure,
    "cost": cost_figure,
    "layers": layers_figure,
    "scale": scale_figure,
}
"""Name of the file -> what draws it; with one more for each kind of breakdown."""


def draw_all(result: StudyResult) -> dict[str, Figure | None]:
    """The figures of a study by name; None for those that there is nothing for."""
    with matplotlib.rc_context(STYLE):
        figures = {name: draw(result) for name, draw in FIGURES.items()}
        return figures | {f"breakdown_{kind}": breakdown_figure(result, kind) for kind in breakdown_kinds(result)}
