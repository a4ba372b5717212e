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
from lmgraft.report.drawing import INK, OUTCOMES, PLAIN_STYLE, SOFT, colors, legend, markers, short
from lmgraft.report.study import format as write
from lmgraft.report.study.breakdown import class_figure, corruption_figure
from lmgraft.report.study.depth import layers_figure, scale_figure
from lmgraft.studies.study.results import Band, StudyResult


def arms_figure(result: StudyResult) -> Figure | None:
    """Every arm's mean with its interval, and every seed as a dot."""
    arms = [arm for arm in result.arms if math.isfinite(arm.mean)]
    if not arms:
        return None
    m, own = result.metric, colors(result)
    figure, axes = _rows([len(arms)])
    ax = axes[0]
    for row, arm in enumerate(arms):
        _interval(ax, row, arm.interval, m.scale, own[arm.label])
        ax.plot(arm.mean * m.scale, row, "D", color=own[arm.label], markersize=6)
        seeds = [one * m.scale for one in arm.values.values()]
        ax.plot(seeds, [row + 0.26] * len(seeds), "o", color=own[arm.label], markersize=3.5, alpha=0.6, linewidth=0)
    _name_rows(ax, [short(arm.label) for arm in arms])
    better = "" if m.higher_is_better else "; less is better"
    ax.set_xlabel(f"{m.title}, {m.unit}{better}")
    legend(figure, [_mean_handle("D", INK, result), _seed_handle()])
    return figure


def forest_figure(result: StudyResult) -> Figure | None:
    """Contrasts with interval, margin and every seed; exploratory ones apart, and said to be."""
    finite = [[c for c in group if math.isfinite(c.mean)] for group in (result.contrasts, result.exploratory)]
    titles = ("planned before any run", "exploratory: not planned, not corrected for how many there are")
    groups = [(title, group) for title, group in zip(titles, finite, strict=True) if group]
    if not groups:
        return None
    m = result.metric
    figure, axes = _rows([len(group) for _, group in groups])
    wide = [_extent(result, group) for _, group in groups]
    for ax, (title, group), own in zip(axes, groups, wide, strict=True):
        ax.axvspan(-result.margin * m.scale, result.margin * m.scale, color=SOFT, alpha=0.18, linewidth=0)
        ax.axvline(0, color=INK, linewidth=1)
        for row, c in enumerate(group):
            color, marker = OUTCOMES[c.outcome]
            _interval(ax, row, c.interval, m.scale, color)
            filled = color if c.outcome != "not shown" else "white"
            ax.plot(c.mean * m.scale, row, marker, color=color, markerfacecolor=filled, markersize=7, zorder=4)
            seeds = [one * m.scale for one in c.differences]
            ax.plot(seeds, [row + 0.28] * len(seeds), "o", color=color, markersize=3.5, alpha=0.6, linewidth=0)
            said = f"{write.difference(c.mean, m)} ({write.contrast_interval(c, m)})"
            ax.text(
                1.02, row, said.replace("-", write.MINUS), transform=ax.get_yaxis_transform(), va="center", fontsize=9
            )
        _name_rows(ax, [f"{short(c.arm)} {write.MINUS} {short(c.reference)}" for c in group])
        ax.set_title(title)
        # Far differences of arms that were only looked at would squeeze the planned ones.
        extent = own if own > 3 * min(wide) else max(one for one in wide if one <= 3 * min(wide))
        ax.set_xlim(-extent, extent)
    if len({ax.get_xlim() for ax in axes}) > 1:
        axes[-1].set_title(f"{titles[1]}; another scale")
    side = "right" if m.higher_is_better else "left"
    axes[-1].set_xlabel(f"difference in {m.title}, {m.difference_unit}; {side} of zero, the first arm is better")
    handles = [Line2D([], [], color=c, marker=k, linewidth=3, label=o, alpha=0.9) for o, (c, k) in OUTCOMES.items()]
    handles[-1].set_markerfacecolor("white")
    margin = f"equal within {write.size(result.margin, m)}"
    legend(figure, [*handles, _seed_handle(), Patch(color=SOFT, alpha=0.3, linewidth=0, label=margin)], columns=5)
    return figure


def curves_figure(result: StudyResult) -> Figure | None:
    """Training loss and validation accuracy: means over seeds, with bands."""
    own, kinds = colors(result), {arm.label: arm.arm for arm in result.arms}
    shown = [
        (name, ylabel, scale)
        for name, ylabel, scale in (
            ("train/loss", "training loss", 1.0),
            ("val/accuracy", "validation accuracy, %", 100.0),
        )
        if any(metrics.get(name) for metrics in result.curves.values())
    ]
    if not shown:
        return None
    figure = Figure(figsize=(4.7 * max(len(shown), 1.3), 3.7), layout="constrained")
    drawn: dict[str, Line2D] = {}
    for ax, (name, ylabel, scale) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        for arm, metrics in result.curves.items():
            if points := [point for point in metrics.get(name, []) if math.isfinite(point.mean)]:
                dashed = "--" if kinds.get(arm) == "plain" else "-"
                drawn[arm] = _curve(ax, points, scale, own.get(arm, SOFT), dashed, len(result.curves))
        _limit(ax, [p for curves in result.curves.values() for p in curves.get(name, [])], scale)
        ax.set(xlabel="step", ylabel=ylabel)
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
        ax.grid(alpha=0.25)
    handles = [
        Line2D([], [], color=d.get_color(), linestyle=d.get_linestyle(), label=short(a)) for a, d in drawn.items()
    ]
    legend(figure, handles, columns=5)
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
    low, high = ([scale * getattr(point, end) for point in points] for end in ("low", "high"))
    ax.fill_between(steps, low, high, color=color, alpha=0.16 if arms <= 6 else 0.07, linewidth=0)
    middle = [scale * point.mean for point in points]
    marker = "o" if len(points) <= 12 else ""
    return ax.plot(steps, middle, color=color, linestyle=line, linewidth=1.5, marker=marker, markersize=3.5)[0]


def cost_figure(result: StudyResult) -> Figure | None:
    """Gain over the reference arm against what a training step costs, in counted operations if they are known."""
    base, found, m = write.reference_arm(result), write.gains(result), result.metric
    if base is None:
        return None
    arms = [arm for arm in result.arms if arm.label in found and math.isfinite(found[arm.label].mean)]
    counted = base.cost.train_flops is not None and all(arm.cost.train_flops is not None for arm in arms)
    costs = {
        arm.label: write.divide(arm.cost.train_flops, base.cost.train_flops)
        if counted
        else write.divide(arm.cost.seconds, base.cost.seconds)
        for arm in arms
    }
    arms = [arm for arm in arms if costs[arm.label] is not None]
    if not arms:
        return None
    own, shapes = colors(result), markers(result)
    ratios = {label: ratio for label, ratio in costs.items() if ratio is not None}
    logarithmic = max(ratios.values()) > 8 * min(1, *ratios.values())
    figure = Figure(figsize=(7.4, 4.2 + 0.16 * (len(arms) // 3)), layout="constrained")
    ax = figure.subplots()
    ax.axhline(0, color=INK, linewidth=1)
    handles = []
    for arm, x in zip(arms, _beside([ratios[arm.label] for arm in arms], logarithmic), strict=True):
        c = found[arm.label]
        handles.append(_point(ax, x, c, m.scale, own[arm.label], shapes[arm.label], short(arm.label)))
    ax.plot(1, 0, "+", color=INK, markersize=12, markeredgewidth=2, zorder=5)
    handles.append(Line2D([], [], color=INK, marker="+", linewidth=0, markersize=10, label=short(base.label)))
    if logarithmic:
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        ax.xaxis.set_minor_formatter(FuncFormatter(lambda x, _: f"{x:g}" if f"{x:e}"[0] in "25" else ""))
    what = "operations of a training step" if counted else "seconds of training"
    ax.set_xlabel(f"{what}, {short(base.label)} = 1")
    better = "" if m.higher_is_better else "; less is better"
    ax.set_ylabel(f"{m.title}, {m.difference_unit}\nagainst {short(base.label)}{better}")
    ax.margins(x=0.12, y=0.1)
    ax.grid(alpha=0.25)
    legend(figure, handles, columns=4)
    return figure


def _point(ax: Axes, x: float, c: Contrast, scale: float, color: str, marker: str, label: str) -> Line2D:
    if write.finite_ends(c.interval):
        ax.plot([x, x], [scale * end for end in c.interval], color=color, linewidth=1.6, alpha=0.7)
    ax.plot(x, scale * c.mean, marker, color=color, markersize=6.5)
    return Line2D([], [], color=color, marker=marker, linewidth=1.6, markersize=6, label=label)


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


def _name_rows(ax: Axes, names: Sequence[str]) -> None:
    ax.set_yticks(range(len(names)), list(names))
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.grid(axis="x", alpha=0.25)
    ax.tick_params(axis="y", length=0)


def _interval(ax: Axes, row: float, ends: tuple[float, float] | None, scale: float, color: str) -> None:
    if write.finite_ends(ends):
        ax.plot([scale * end for end in ends], [row, row], color=color, linewidth=3, solid_capstyle="butt", alpha=0.5)


def _extent(result: StudyResult, group: Sequence[Contrast]) -> float:
    """How far from zero the group reaches, in what is written."""
    ends = [result.margin, *(end for c in group for end in (c.mean, *c.differences, *(c.interval or (0.0,))))]
    return float(1.08 * result.metric.scale * max(abs(end) for end in ends if math.isfinite(end)))


def _mean_handle(marker: str, color: str, result: StudyResult) -> Line2D:
    label = f"mean, {write.share(result.confidence)} interval over seeds"
    return Line2D([], [], color=color, marker=marker, linewidth=3, alpha=0.7, label=label)


def _seed_handle() -> Line2D:
    return Line2D([], [], color=INK, marker="o", linewidth=0, markersize=3.5, alpha=0.6, label="one seed")


FIGURES: dict[str, Callable[[StudyResult], Figure | None]] = {
    "arms": arms_figure,
    "contrasts": forest_figure,
    "curves": curves_figure,
    "cost": cost_figure,
    "layers": layers_figure,
    "scale": scale_figure,
    "breakdown_class": class_figure,
    "breakdown_corruption": corruption_figure,
}
"""Name of the file -> what draws it."""


def draw_all(result: StudyResult) -> dict[str, Figure]:
    """The figures that this study has something for."""
    with matplotlib.rc_context(PLAIN_STYLE):
        made = {name: draw(result) for name, draw in FIGURES.items()}
    return {name: figure for name, figure in made.items() if figure is not None}
