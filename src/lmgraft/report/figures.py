"""Figures for pages: vector charts as inline SVG, small pictures as PNG data addresses."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from torch import Tensor

from lmgraft.recipes.arms import ARMS

COLORS = {name: arm.color for name, arm in ARMS.items()}
"""One colour an arm, told apart also without red-green vision."""

FURTHER = ("#2f6f9f", "#c2571a", "#2f7d6b", "#7a5195", "#b0882a", "#5b6b7f", "#b3446c", "#4d4d4d")
"""Of what is not called like an arm."""

STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a8f98",
    "axes.labelcolor": "#3a3f47",
    "xtick.color": "#3a3f47",
    "ytick.color": "#3a3f47",
    "svg.fonttype": "none",
    "svg.hashsalt": "lmgraft",
}
"""Of every chart."""


def curves_svg(curves: Mapping[str, Mapping[str, list[tuple[int, float]]]]) -> str:
    """Training loss and validation accuracy over steps, a line for each arm."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 3.2), layout="constrained")
        loss, accuracy = figure.subplots(1, 2)
        for arm, metrics in curves.items():
            color = COLORS.get(arm)
            if steps := metrics.get("train/loss"):
                x, y = zip(*steps, strict=True)
                loss.plot(x, y, color=color, linewidth=1.2, alpha=0.9, label=arm)
            if epochs := metrics.get("val/accuracy"):
                x, y = zip(*epochs, strict=True)
                accuracy.plot(x, y, color=color, marker="o", markersize=4, linewidth=1.6, label=arm)
        loss.set(xlabel="step", ylabel="training loss")
        accuracy.set(xlabel="step", ylabel="validation accuracy")
        for axes in (loss, accuracy):
            axes.grid(alpha=0.25)
        accuracy.legend(frameon=False, loc="lower right")
        return _svg(figure)


def intervals_svg(values: Mapping[str, tuple[float, float, float]]) -> str:
    """A dot with its interval for each arm: (value, low, high)."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 0.55 + 0.42 * len(values)), layout="constrained")
        axes = figure.subplots()
        for row, (arm, (value, low, high)) in enumerate(values.items()):
            value, low, high = 100 * value, 100 * low, 100 * high
            axes.plot([low, high], [row, row], color=COLORS.get(arm), linewidth=3, solid_capstyle="round", alpha=0.45)
            axes.plot(value, row, "o", color=COLORS.get(arm), markersize=7)
        axes.set_yticks(range(len(values)), list(values))
        axes.set_ylim(len(values) - 0.5, -0.5)
        axes.set_xlabel("test accuracy in %, with the 95 % interval over test images")
        axes.grid(axis="x", alpha=0.25)
        return _svg(figure)


def grey_png(image: Tensor) -> str:
    """A data address of a grey picture (H, W) uint8."""
    pixels = image.numpy()
    return _png(np.stack([pixels] * 3, axis=-1))


def heat_png(values: Tensor) -> str:
    """A data address of a map (rows, columns) in [0, 1], one pixel a token."""
    colors = matplotlib.colormaps["magma"](values.clamp(0, 1).numpy())
    return _png((colors[..., :3] * 255).round().astype(np.uint8))


def _png(pixels: npt.NDArray[np.uint8]) -> str:
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    imsave(buffer, pixels, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    head, rest = text.split(">", 1)
    # Width and height in points would fix the size; the page scales it by viewBox.
    return re.sub(r' (?:width|height)="[^"]*"', "", head) + ">" + rest
