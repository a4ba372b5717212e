"""Which layer of which LLM: the metric against the layer, as the paper's Fig. 2, and against the block's size."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from lmgraft.report.drawing import FURTHER, INK, MARKERS, SOFT, bar, legend, short
from lmgraft.report.study.tables import reference_arm
from lmgraft.studies.study.results import ArmResult, StudyResult
from lmgraft.words import numbers as write

Group = tuple[str, list[ArmResult]]


def layers_figure(result: StudyResult) -> Figure | None:
    """The metric against the layer, a line for each LLM; None with fewer than three arms that differ in it."""
    groups = by_layer(result)
    if not groups:
        return None
    figure = Figure(figsize=(7.8, 4.2), layout="constrained")
    ax = figure.subplots()
    handles: list[Line2D] = []
    layers = sorted({layer_of(arm) for _, arms in groups for arm in arms})
    for number, (name, arms) in enumerate(groups):
        beside = 0.012 * (layers[-1] - layers[0]) * (number - (len(groups) - 1) / 2)
        places = [layer_of(arm) + beside for arm in arms]
        handles.append(_points(ax, result, places, arms, name, number, line=True))
    handles += _reference(ax, result)
    if len(layers) <= 20 and all(b - a > (layers[-1] - layers[0]) / 30 for a, b in pairwise(layers)):
        ax.set_xticks(layers)
    else:
        ax.xaxis.set_major_locator(MaxNLocator(12, integer=True))
    ax.set_xlabel("layer of the LLM, the first is 0")
    _finish(figure, ax, result, handles)
    return figure


def by_layer(result: StudyResult) -> list[Group]:
    """LLM arms that differ in their layer alone, in its order: one group for each LLM (and each other difference)."""
    found: dict[str, list[ArmResult]] = defaultdict(list)
    for arm in _pretrained(result):
        if len((arm.block or {}).get("layers") or ()) == 1:
            found[_name(arm, result)].append(arm)
    groups = [(name, sorted(arms, key=layer_of)) for name, arms in found.items()]
    groups = [(name, arms) for name, arms in groups if len({layer_of(arm) for arm in arms}) == len(arms) >= 2]
    return groups if any(len(arms) >= 3 for _, arms in groups) else []


def layer_of(arm: ArmResult) -> int:
    """The one layer of its block."""
    return int((arm.block or {})["layers"][0])


def scale_figure(result: StudyResult) -> Figure | None:
    """The metric against the frozen parameters, a colour for each LLM; None where all blocks are of one."""
    sources: dict[str, list[ArmResult]] = defaultdict(list)
    for arm in _pretrained(result):
        if arm.cost.frozen_params > 0:
            sources[str((arm.block or {}).get("source"))].append(arm)
    if len(sources) < 2:
        return None
    figure = Figure(figsize=(7.8, 4.2), layout="constrained")
    ax = figure.subplots()
    handles: list[Line2D] = []
    for number, (source, arms) in enumerate(sources.items()):
        several = [1.02 ** (i - (len(arms) - 1) / 2) for i in range(len(arms))]
        places = [arm.cost.frozen_params * beside for arm, beside in zip(arms, several, strict=True)]
        handles.append(_points(ax, result, places, arms, source, number, line=False))
    handles += _reference(ax, result)
    sizes = [arm.cost.frozen_params for arms in sources.values() for arm in arms]
    ax.set_xscale("log")
    ax.set_xlim(min(sizes) / 1.6, max(sizes) * 1.6)
    decades = math.log10(max(sizes) / min(sizes))
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2.5 else (1,)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: write.short_count(x)))
    ax.set_xlabel("frozen parameters")
    _finish(figure, ax, result, handles)
    return figure


def _pretrained(result: StudyResult) -> list[ArmResult]:
    return [
        arm
        for arm in result.arms
        if arm.arm == "llm" and arm.block and not arm.block.get("control") and math.isfinite(arm.mean)
    ]


def _name(arm: ArmResult, result: StudyResult) -> str:
    """The LLM, and what else the arm changes."""
    others = {key: value for key, value in arm.overrides.items() if key not in ("graft.layer", "graft.llm")}
    source = str((arm.block or {}).get("source"))
    return f"{source}, {write.settings(others)}" if others else source


def _points(
    ax: Axes,
    result: StudyResult,
    places: Sequence[float],
    arms: Sequence[ArmResult],
    name: str,
    number: int,
    line: bool,
) -> Line2D:
    scale, color = result.metric.scale, FURTHER[number % len(FURTHER)]
    marker = MARKERS[number % len(MARKERS)]
    for x, arm in zip(places, arms, strict=True):
        bar(ax, x, arm.interval, scale, upright=True, width=1.6, color=color, alpha=0.6)
    style: Literal["-", "none"] = "-" if line else "none"
    middle = [scale * arm.mean for arm in arms]
    ax.plot(places, middle, color=color, marker=marker, linestyle=style, linewidth=1.4, markersize=5.5)
    return Line2D([], [], color=color, marker=marker, linestyle=style, markersize=5.5, label=short(name, 44))


def _reference(ax: Axes, result: StudyResult) -> list[Line2D]:
    """The reference arm as a band over the whole width."""
    base, scale = reference_arm(result), result.metric.scale
    if base is None or not math.isfinite(base.mean):
        return []
    if base.interval is not None and write.is_interval(base.interval):
        ax.axhspan(*(scale * end for end in base.interval), color=SOFT, alpha=0.22, linewidth=0)
    ax.axhline(scale * base.mean, color=INK, linewidth=1.2, linestyle="--")
    return [Line2D([], [], color=INK, linewidth=1.2, linestyle="--", label=f"{short(base.label)}, band: its interval")]


def _finish(figure: Figure, ax: Axes, result: StudyResult, handles: Sequence[Line2D]) -> None:
    m = result.metric
    ax.set_ylabel(write.in_unit(m.title, m.unit) + write.better(m))
    ax.grid(alpha=0.25)
    legend(figure, handles, columns=3)
