"""A scan's figures: each score against the layer, as the paper's Fig. 2, and against what training gave."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from lmgraft.contracts import Metric
from lmgraft.report.drawing import FURTHER, INK, MARKERS, SOFT, STYLE, bar, legend, short
from lmgraft.report.scan.tables import written_as
from lmgraft.studies.scan.candidates import short_name
from lmgraft.studies.scan.known import Known
from lmgraft.studies.scan.ranking import column, columns
from lmgraft.studies.scan.results import GAIN, Scan, Scanned, is_difference
from lmgraft.studies.scan.scores.measured import Measured
from lmgraft.words import numbers as write

Line = tuple[str, str]
"""LLM and position: what one line of a figure is of."""


def draw_all(scan: Scan, known: Known | None) -> dict[str, Figure | None]:
    """The figures by name; None for those that there is nothing for."""
    short_training = {label: s.gain for label, s in scan.candidates.items() if s.gain is not None}
    measured = {label: Measured(value=gain) for label, gain in known.gains.items()} if known is not None else {}
    with matplotlib.rc_context(STYLE):
        return {
            "layers": layers_figure(scan),
            "against_short_training": against_figure(scan, short_training, "gain after short training", scan.metric),
            "against_known": None
            if known is None
            else against_figure(scan, measured, "gain of known training", known.metric),
        }


def layers_figure(scan: Scan) -> Figure | None:
    """Each score, and the gain, against depth in the LLM; a line for each LLM and position."""
    names, lines = columns(scan), _lines(scan)
    if not names or all(len(group) < 2 for group in lines.values()):
        return None
    figure, axes = _charts(len(names))
    for ax, name in zip(axes, names, strict=False):
        m = written_as(scan, name)
        values = []
        for number, group in enumerate(lines.values()):
            beside = 0.1 * (number - (len(lines) - 1) / 2)
            found = [(s.candidate.layer + beside, c) for s in group if (c := column(s, name)) and c.value is not None]
            color, marker = _look(number)
            for x, one in found:
                bar(ax, x, one.interval, m.scale, upright=True, width=1, color=color, alpha=0.6)
            ys = [one.value * m.scale for _, one in found if one.value is not None]
            ax.plot([x for x, _ in found], ys, "-", color=color, marker=marker, markersize=4.5)
            values += ys
        zero = [0.0] if is_difference(name) else []
        if zero:
            ax.axhline(0, color=SOFT, linewidth=0.8)
        ax.set(xlabel="layer of the LLM, the first is 0", ylabel=write.in_unit(m.title, m.unit))
        ax.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        _cut(ax.set_ylim, [*zero, *values])
    return _finished(figure, axes, lines)


def against_figure(scan: Scan, truth: Mapping[str, Measured], axis: str, metric: Metric) -> Figure | None:
    """Each cheap score against the gains in `truth`, with both intervals; None with fewer than two candidates."""
    names = [name for name in columns(scan) if name != GAIN]
    lines = _lines(scan)
    if not names or sum(m.value is not None for m in truth.values()) < 2:
        return None
    figure, axes = _charts(len(names))
    for ax, name in zip(axes, names, strict=False):
        m = written_as(scan, name)
        xs, ys = [], [0.0]
        for number, group in enumerate(lines.values()):
            color, marker = _look(number)
            for scanned in group:
                score, gain = column(scanned, name), truth.get(scanned.candidate.label)
                if score is None or gain is None or score.value is None or gain.value is None:
                    continue
                x, y = score.value * m.scale, gain.value * metric.scale
                bar(ax, y, score.interval, m.scale, width=0.8, color=color, alpha=0.45)
                bar(ax, x, gain.interval, metric.scale, upright=True, width=0.8, color=color, alpha=0.45)
                ax.plot(x, y, marker, color=color, markersize=5)
                label = str(scanned.candidate.layer)
                ax.annotate(label, (x, y), xytext=(4, 4), textcoords="offset points", fontsize=8)
                xs.append(x)
                ys.append(y)
        ax.axhline(0, color=SOFT, linewidth=0.8)
        ax.set(xlabel=write.in_unit(m.title, m.unit), ylabel=write.in_unit(axis, metric.difference_unit))
        _cut(ax.set_xlim, xs)
        _cut(ax.set_ylim, ys)
    return _finished(figure, axes, lines)


_OF_LINES = "lines at points: 95 % intervals; those that leave a chart are cut at its edge"


def _cut(limit: Callable[[float, float], object], values: list[float]) -> None:
    """Show the values and half as much again: an interval of two seeds would leave nothing else to see."""
    if not values:
        return
    low, high = min(values), max(values)
    room = 0.5 * (high - low) or 0.1 * abs(high) or 1.0
    limit(low - room, high + room)


def _lines(scan: Scan) -> dict[Line, list[Scanned]]:
    lines: dict[Line, list[Scanned]] = {}
    for scanned in sorted(scan.chosen(), key=lambda s: s.candidate.layer):
        lines.setdefault((short_name(scanned.candidate.llm), scanned.candidate.position), []).append(scanned)
    return dict(sorted(lines.items()))


def _charts(count: int) -> tuple[Figure, list[Axes]]:
    columns = 1 if count == 1 else 2
    rows = -(-count // columns)
    figure = Figure(figsize=(4.6 * columns if columns > 1 else 7.8, 3.3 * rows + 0.4), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in axes[count:]:
        ax.remove()
    return figure, axes[:count]


def _look(number: int) -> tuple[str, str]:
    """Colour and marker of a line."""
    return FURTHER[number % len(FURTHER)], MARKERS[number % len(MARKERS)]


def _finished(figure: Figure, axes: list[Axes], lines: Mapping[Line, list[Scanned]]) -> Figure:
    for ax in axes:
        ax.grid(alpha=0.25)
    figure.suptitle(_OF_LINES, fontsize=8, color=INK)
    handles = []
    for number, (llm, place) in enumerate(lines):
        color, marker = _look(number)
        handles.append(Line2D([], [], color=color, marker=marker, label=short(f"{llm}, {place}", 40)))
    legend(figure, handles)
    return figure
