"""Strips of frames under each other, each with its title above it; short strips share a line."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lmgraft.report.drawing import STYLE, short

MOST = 8
"""Frames in a line: more are too small on a phone."""
COLOURS = "magma"
"""Dark is little and bright is much, also without colours."""
_STRIPS_A_LINE = 4
_WIDTH, _MARGIN, _GAP = 6.4, 0.1, 0.2  # inches, as all below
_LARGEST = 1.4
_HEADING, _TITLE, _TICKS, _FOOT = 0.32, 0.2, 0.18, 0.08
_LETTER, _TEXT_LINE = 0.058, 0.15
_FONT = 8.0


@dataclass(frozen=True)
class Strip:
    """A row of panels, one a frame, or one chart as wide as they are."""

    title: str
    paint: Callable[[Axes, int], None]
    """Draws into (axes, number of the panel)."""
    is_chart: bool = False
    """Whether it is one panel over all frames, with room for ticks below."""


@dataclass(frozen=True)
class _Line:
    heading: str
    strips: Sequence[Strip]

    def height(self, tall: float) -> float:
        ticks = _TICKS if any(strip.is_chart for strip in self.strips) else 0.0
        return (_HEADING if self.heading else 0.0) + _TITLE + tall + ticks + _FOOT


def strips_figure(blocks: Mapping[str, Sequence[Strip]], columns: int, aspect: float, legend: str) -> Figure:
    """A figure as wide as a phone shows legibly, and as tall as it must be.

    Args:
        blocks: Heading, empty for none -> strips below it.
        columns: Panels a strip, up to `MOST`.
        aspect: Height of a panel over its width.
        legend: Sentences on top, above a bar of what the colours mean.
    """
    a_line = max(1, min(_STRIPS_A_LINE, MOST // columns))
    side = min(_LARGEST, (_WIDTH - 2 * _MARGIN - (a_line - 1) * _GAP) / (a_line * columns))
    tall = side * aspect
    lines = [
        _Line(heading if first == 0 else "", strips[first : first + a_line])
        for heading, strips in blocks.items()
        for first in range(0, len(strips), a_line)
    ]
    explained = textwrap.wrap(legend, 114)
    top = _MARGIN + _TEXT_LINE * len(explained) + _FOOT
    height = top + sum(line.height(tall) for line in lines)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, height))
        figure.text(_MARGIN / _WIDTH, 1 - _MARGIN / height, "\n".join(explained), va="top", fontsize=_FONT - 0.5)
        _draw_colour_bar(figure, top)
        for line in lines:
            _draw_line(figure, line, top, side, tall, columns)
            top += line.height(tall)
    return figure


def _draw_line(figure: Figure, line: _Line, top: float, side: float, tall: float, columns: int) -> None:
    if line.heading:
        _write(figure, _MARGIN, top + _HEADING - 0.05, short(line.heading, 60), _FONT + 2, "bold")
        top += _HEADING
    step = columns * side + _GAP
    letters = int((step if len(line.strips) > 1 else _WIDTH) / _LETTER)
    for place, strip in enumerate(line.strips):
        left = _MARGIN + place * step
        _write(figure, left, top + _TITLE - 0.05, short(strip.title, letters), _FONT)
        panels = 1 if strip.is_chart else columns
        width = side * columns / panels
        for panel in range(panels):
            ax = _axes(figure, left + panel * width, top + _TITLE, width - 0.03, tall)
            ax.set_label(strip.title)
            strip.paint(ax, panel)


def _draw_colour_bar(figure: Figure, top: float) -> None:
    """In the line of the first title, at the right."""
    ax = _axes(figure, _WIDTH - 1.3, top + 0.06, 0.9, 0.1)
    ax.imshow(np.linspace(0, 1, 64)[None], cmap=COLOURS, aspect="auto")
    ax.set(xticks=[], yticks=[])
    _write(figure, _WIDTH - 1.42, top + 0.15, "0", _FONT)
    _write(figure, _WIDTH - 0.36, top + 0.15, "1", _FONT)


def _axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    whole_width, whole_height = figure.get_size_inches()
    box = (left / whole_width, 1 - (top + height) / whole_height, width / whole_width, height / whole_height)
    ax: Axes = figure.add_axes(box)
    ax.spines[:].set_visible(False)
    return ax


def _write(figure: Figure, left: float, base: float, text: str, size: float, weight: str = "normal") -> None:
    width, height = figure.get_size_inches()
    figure.text(left / width, 1 - base / height, text, fontsize=size, fontweight=weight, va="baseline")
