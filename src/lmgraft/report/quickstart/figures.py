"""The quickstart's figures: curves and intervals as SVG, small pictures as PNG data addresses."""

from __future__ import annotations

import io
from collections.abc import Mapping

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from torch import Tensor

from lmgraft.contracts import Metric
from lmgraft.report.drawing import COLORS, STYLE, bar, data_address, name_rows, svg_text
from lmgraft.words import numbers as write

Curves = Mapping[str, Mapping[str, list[tuple[int, float]]]]
"""Arm -> name of the metric -> (step, value)."""


def curves_svg(curves: Curves, metric: Metric) -> str:
    """Training loss and the validation metric over steps, a line for each arm."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 3.2), layout="constrained")
        charts = zip(
            figure.subplots(1, 2),
            (("train/loss", "training loss", 1.0, ""), (f"val/{metric.name}", _validation(metric), metric.scale, "o")),
            strict=True,
        )
        for ax, (name, title, scale, marker) in charts:
            for arm, metrics in curves.items():
                if points := metrics.get(name):
                    x, y = [step for step, _ in points], [scale * value for _, value in points]
                    ax.plot(x, y, color=COLORS.get(arm), marker=marker, markersize=4, linewidth=1.4, label=arm)
            ax.set(xlabel="step", ylabel=title)
            ax.grid(alpha=0.25)
        ax.legend(loc="best")
        return svg_text(figure)


def _validation(metric: Metric) -> str:
    return write.in_unit(f"validation {metric.title.removeprefix('test ')}", metric.unit)


def intervals_svg(values: Mapping[str, float], intervals: Mapping[str, tuple[float, float]], metric: Metric) -> str:
    """A dot with its interval for each arm."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 0.55 + 0.42 * len(values)), layout="constrained")
        ax = figure.subplots()
        for row, (arm, value) in enumerate(values.items()):
            bar(ax, row, intervals.get(arm), metric.scale, color=COLORS.get(arm))
            ax.plot(metric.scale * value, row, "o", color=COLORS.get(arm), markersize=7)
        name_rows(ax, list(values))
        ax.set_xlabel(f"{metric.title} in {metric.unit}, with the 95 % interval over test images")
        return svg_text(figure)


def grey_png(image: Tensor) -> str:
    """A data address of a grey picture (H, W) uint8."""
    return _png(np.stack([image.numpy()] * 3, axis=-1))


def heat_png(values: Tensor) -> str:
    """A data address of a map (rows, columns) in [0, 1], one pixel a token."""
    colors = matplotlib.colormaps["magma"](values.clamp(0, 1).numpy())
    return _png((colors[..., :3] * 255).round().astype(np.uint8))


def _png(pixels: npt.NDArray[np.uint8]) -> str:
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    imsave(buffer, pixels, format="png")
    return data_address(buffer.getvalue())
