"""Maps of one item beside each other: a row for each model, a column for each map."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lmgraft.report.drawing import STYLE, short


def panels(
    maps: Mapping[str, Mapping[str, Any]],
    first: Mapping[str, Any],
    side: float,
    paint: Callable[[Axes, str, Any], None],
) -> Figure:
    """A figure of panels without axes; a model that lacks a map has an empty place there.

    Args:
        maps: Model -> title -> what is painted.
        first: Title -> what is painted in every row before the maps.
        side: Of a panel, in inches.
        paint: Draws (axes, title, what is painted).
    """
    titles = [*first, *dict.fromkeys(title for of in maps.values() for title in of)]
    with matplotlib.rc_context(STYLE):
        rows = max(1, len(maps))
        figure = Figure(figsize=(side * len(titles), side * rows + 0.35), layout="constrained")
        axes = figure.subplots(rows, len(titles), squeeze=False)
        for row, (model, of) in enumerate(maps.items()):
            shown = {**first, **of}
            for ax, title in zip(axes[row], titles, strict=True):
                ax.set(xticks=[], yticks=[])
                ax.spines[:].set_visible(False)
                if row == 0:
                    ax.set_title(title.replace("block's ", "block's\n").replace("of the", "of\nthe"), fontsize=8)
                if title in shown:
                    paint(ax, title, shown[title])
            axes[row, 0].set_ylabel(short(model), fontsize=8)
    return figure
