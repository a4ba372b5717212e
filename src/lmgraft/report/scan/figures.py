"""A scan's figures: each score against the layer, as the paper's Fig. 2, and against what training gave."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from lmgraft.contracts import Metric
from lmgraft.report.drawing import INK, MARKERS, PLAIN_STYLE, SOFT, legend, short
from lmgraft.report.figures import FURTHER
from lmgraft.report.scan.tables import with_unit
from lmgraft.studies.scan.candidates import short_name
from lmgraft.studies.scan.known import Known
from lmgraft.studies.scan.ranking import column, columns
from lmgraft.studies.scan.results import GAIN, Scan, Scanned, is_difference, unit_of
from lmgraft.studies.scan.scores.measured import Measured

FIGURES = ("layers", "against_short_training", "against_known")

Line = tuple[str, str]
"""LLM and position: what one line of a figure is of."""


def draw_all(scan: Scan, known: Known | None) -> dict[str, Figure]:
    """The figures for which there is something to show."""
    figures = {"layers": layers_figure(scan)}
    own = {label: s.gain for label, s in scan.candidates.items() if s.gain is not None}
    figures["against_short_training"] = against_figure(scan, own, "gain after short training", scan.metric)
    if known is not None:
        measured = {label: Measured(value=gain) for label, gain in known.gains.items()}
        figures["against_known"] = against_figure(scan, measured, "gain of known training", known.metric)
    return {name: figure for name, figure in figures.items() if figure is not None}


def layers_figure(scan: Scan) -> Figure | None:
    """Each score, and the gain, against depth in the LLM; a line for each LLM and position."""
    names, lines = columns(scan), _lines(scan)
    if not names or all(len(group) < 2 for group in lines.values()):
        return None
    with matplotlib.rc_context(PLAIN_STYLE):
        figure, axes = _charts(len(names))
        for ax, name in zip(axes, names, strict=False):
            for number, group in enumerate(lines.values()):
                found = [(s.candidate.layer, m) for s in group if (m := column(s, name)) and m.value is not None]
                beside = 0.1 * (number - (len(lines) - 1) / 2)
                _points(ax, [(layer + beside, m) for layer, m in found], unit_of(scan, name).scale, number, line="-")
            zero = [0.0] if is_difference(name) else []
            if zero:
                ax.axhline(0, color=SOFT, linewidth=0.8)
            ax.set(xlabel="layer of the LLM, the first is 0", ylabel=with_unit(scan, name))
            ax.xaxis.set_major_locator(MaxNLocator(10, integer=True))
            values = [m.value for s in scan.chosen() if (m := column(s, name)) and m.value is not None]
            _cut(ax.set_ylim, [*zero, *(value * unit_of(scan, name).scale for value in values)])
            ax.grid(alpha=0.25)
        figure.suptitle(_OF_LINES, fontsize=8, color=INK)
        legend(figure, _handles(lines))
    return figure


def against_figure(scan: Scan, truth: Mapping[str, Measured], axis: str, metric: Metric) -> Figure | None:
    """Each cheap score against the gains in `truth`, with both intervals; None with fewer than two candidates."""
    names = [name for name in columns(scan) if name != GAIN]
    lines = _lines(scan)
    units = {name: unit_of(scan, name) for name in names}
    if not names or sum(m.value is not None for m in truth.values()) < 2:
        return None
    with matplotlib.rc_context(PLAIN_STYLE):
        figure, axes = _charts(len(names))
        for ax, name in zip(axes, names, strict=False):
            xs, ys = [], []
            for number, group in enumerate(lines.values()):
                for scanned in group:
                    score, gain = column(scanned, name), truth.get(scanned.candidate.label)
                    if score is None or gain is None or score.value is None or gain.value is None:
                        continue
                    x, y = score.value * units[name].scale, gain.value * metric.scale
                    _cross(ax, (x, y), score, gain, (units[name].scale, metric.scale), number)
                    label = str(scanned.candidate.layer)
                    ax.annotate(label, (x, y), xytext=(4, 4), textcoords="offset points", fontsize=8)
                    xs.append(x)
                    ys.append(y)
            ax.axhline(0, color=SOFT, linewidth=0.8)
            ax.set(xlabel=with_unit(scan, name), ylabel=f"{axis}, {metric.difference_unit}")
            _cut(ax.set_xlim, xs)
            _cut(ax.set_ylim, [0.0, *ys])
            ax.grid(alpha=0.25)
        figure.suptitle(_OF_LINES, fontsize=8, color=INK)
        legend(figure, _handles(lines))
    return figure


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
    return figure, axes


def _points(ax: Axes, points: list[tuple[float, Measured]], scale: float, number: int, line: str) -> None:
    color, marker = FURTHER[number % len(FURTHER)], MARKERS[number % len(MARKERS)]
    values = [(x, m.value * scale, m.interval) for x, m in points if m.value is not None]
    ax.plot([x for x, *_ in values], [y for _, y, _ in values], line, color=color, marker=marker, markersize=4.5)
    for x, _, interval in values:
        if interval is not None:
            ax.plot([x, x], [end * scale for end in interval], color=color, linewidth=1, alpha=0.6)


def _cross(
    ax: Axes, at: tuple[float, float], score: Measured, gain: Measured, scales: tuple[float, float], number: int
) -> None:
    color, marker = FURTHER[number % len(FURTHER)], MARKERS[number % len(MARKERS)]
    if score.interval is not None:
        ax.plot([end * scales[0] for end in score.interval], [at[1]] * 2, color=color, linewidth=0.8, alpha=0.45)
    if gain.interval is not None:
        ax.plot([at[0]] * 2, [end * scales[1] for end in gain.interval], color=color, linewidth=0.8, alpha=0.45)
    ax.plot(*at, marker, color=color, markersize=5)


def _handles(lines: Mapping[Line, list[Scanned]]) -> list[Line2D]:
    return [
        Line2D(
            [],
            [],
            color=FURTHER[i % len(FURTHER)],
            marker=MARKERS[i % len(MARKERS)],
            label=short(f"{llm}, {place}", 40),
        )
        for i, (llm, place) in enumerate(lines)
    ]
