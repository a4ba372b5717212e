"""How figures look: style, colours and markers, intervals, legends; and SVG and PNG files of them."""

from __future__ import annotations

import base64
import io
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from lmgraft import records
from lmgraft.words.numbers import is_interval

COLORS = {
    "plain": "#5b6b7f",
    "llm": "#c2571a",
    "random_frozen": "#2f7d6b",
    "shuffled": "#18a6f2",
    "spectrum": "#0b3c5d",
    "random_trained": "#7fb2a3",
    "llm_finetuned": "#7a3510",
    "llm_lora": "#e39a6a",
    "mlp": "#6a4c93",
    "linear": "#a89bc4",
    "attention_only": "#d9a404",
    "mlp_only": "#5a1e18",
    "random_attention_only": "#2323eb",
    "random_mlp_only": "#5f19a6",
    "two_blocks": "#be7f65",
    "plain_equal_flops": "#1f2933",
}
"""One colour a kind of arm, told apart also without red-green vision."""

FURTHER = ("#2f6f9f", "#c2571a", "#2f7d6b", "#7a5195", "#b0882a", "#5b6b7f", "#b3446c", "#4d4d4d")
"""Colours of what is not called like an arm."""

OUTCOMES = {"better": ("#2f6f9f", "^"), "worse": ("#b23a1e", "v"), "not shown": ("#6d737c", "o")}
"""Outcome -> colour, and a marker for those who do not see it."""

MARKERS = "osD^vPX*<>hp"
INK = "#3a3f47"
SOFT = "#8a8f98"
STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "text.parse_math": False,  # a label is text, whatever is in it
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.axisbelow": True,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "lmgraft",
}
"""The style of every chart."""


def colors(kinds: Mapping[str, str]) -> dict[str, str]:
    """Arm -> its colour: its kind's where it is alone of its kind, shades in a row where there are several.

    Args:
        kinds: Arm -> its kind.
    """
    counts = Counter(kinds.values())
    taken = {COLORS[kind] for kind in counts if kind in COLORS}
    free = cycle([color for color in FURTHER if color not in taken] or FURTHER)
    shades = {
        kind: iter([to_hex(matplotlib.colormaps["viridis"](0.88 * i / (number - 1))) for i in range(number)])
        for kind, number in counts.items()
        if number > 1
    }
    return {
        arm: next(shades[kind]) if kind in shades else COLORS[kind] if kind in COLORS else next(free)
        for arm, kind in kinds.items()
    }


def short(text: str, most: int = 30) -> str:
    """`text` for a figure: on one line, its middle left out where it is long."""
    clean = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if len(clean) <= most:
        return clean
    head = (most - 1) * 2 // 3
    return f"{clean[:head]}…{clean[head + 1 - most :]}"


def bar(
    ax: Axes,
    place: float,
    ends: Sequence[float] | None,
    scale: float,
    *,
    upright: bool = False,
    width: float = 3,
    **style: Any,
) -> None:
    """An interval as a line, along x or upright along y; nothing where there is none."""
    if ends is None or not is_interval(ends):
        return
    along, across = [scale * end for end in ends], [place, place]
    look: dict[str, Any] = {"alpha": 0.5, "solid_capstyle": "butt", "linewidth": width} | style
    ax.plot(*((across, along) if upright else (along, across)), **look)


def name_rows(ax: Axes, names: Sequence[str]) -> None:
    """Names at the left of rows, the first on top."""
    ax.set_yticks(range(len(names)), list(names))
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.grid(axis="x", alpha=0.25)
    ax.tick_params(axis="y", length=0)


def legend(figure: Figure, handles: Sequence[Any], columns: int = 4) -> None:
    """A legend under the charts, where it covers nothing."""
    longest = max((len(str(handle.get_label())) for handle in handles), default=0)
    fitting = max(1, int(figure.get_figwidth() * 13 / (longest + 6)))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(columns, fitting, len(handles)))


def write_figures(figures: Mapping[str, Figure | None], folder: Path) -> dict[str, str]:
    """Write NAME.svg and NAME.png (200 dpi) of each figure; returns the SVG texts.

    Those of a figure that is None are removed: they belong to an earlier result.
    """
    made = {}
    for name, figure in figures.items():
        files = {ending: folder / f"{name}.{ending}" for ending in ("svg", "png")}
        if figure is None:
            for file in files.values():
                file.unlink(missing_ok=True)
            continue
        made[name] = svg_text(figure)
        records.write_text(files["svg"], made[name])
        write_png(figure, files["png"])
    return made


def png_bytes(figure: Figure, dpi: int = 200) -> bytes:
    """The figure as a PNG file's content."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # A letter that the font of the PNG lacks is a box there; in the SVG it is text.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(buffer, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def write_png(figure: Figure, path: Path, dpi: int = 200) -> None:
    """Write the figure as PNG, atomically."""
    with records.atomic_path(path) as temporary:
        temporary.write_bytes(png_bytes(figure, dpi))


def data_address(png: bytes) -> str:
    """An address that holds a PNG file's content, for a page that fetches nothing."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def svg_text(figure: Figure) -> str:
    """The figure as a whole SVG file, its letters as text."""
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, facecolor="white")
    return buffer.getvalue()


def inline(svg: str) -> str:
    """An SVG file's text to be put into a page, scaled by its box, on a card that is white in the dark too."""
    head, rest = svg[svg.index("<svg") :].split(">", 1)
    head = re.sub(r' (?:width|height)="[^"]*"', "", head)
    if box := re.search(r'viewBox="0 0 ([0-9.]+)', head):
        head += f' style="max-width:{1.5 * float(box[1]):.0f}px"'  # letters of one size in all figures
    rest = re.sub(r'<g id="[^"]*"', "<g", rest)  # the same in every figure, and nothing refers to them
    return f"{head}>{rest}"
