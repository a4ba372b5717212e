"""How a study's figures look: style, colours of arms, SVG and PNG files, and SVG that follows a page's theme."""

from __future__ import annotations

import colorsys
import io
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from lmgraft import records
from lmgraft.report.figures import COLORS, FURTHER, STYLE
from lmgraft.studies.study.results import StudyResult

INK = "#3a3f47"
SOFT = "#8a8f98"
PLAIN_STYLE: Any = {
    **STYLE,
    "text.color": INK,
    "text.parse_math": False,  # a label is text, whatever is in it
    "axes.axisbelow": True,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "legend.fontsize": 9,
    "legend.frameon": False,
    "errorbar.capsize": 2.5,
}
"""Of every chart of a study."""

OUTCOMES = {"better": ("#2f6f9f", "^"), "worse": ("#b23a1e", "v"), "not shown": ("#6d737c", "o")}
"""Outcome -> colour, and a marker for those who do not see it."""

MARKERS = "osD^vPX*<>hp"


def colors(result: StudyResult) -> dict[str, str]:
    """Arm -> its colour: its kind's where it is alone of its kind, shades in a row where there are several."""
    kinds = Counter(arm.arm for arm in result.arms)
    taken = {COLORS[kind] for kind in kinds if kind in COLORS}
    free = cycle([color for color in FURTHER if color not in taken] or FURTHER)
    shades = {
        kind: iter([to_hex(matplotlib.colormaps["viridis"](0.88 * i / (number - 1))) for i in range(number)])
        for kind, number in kinds.items()
        if number > 1
    }
    made: dict[str, str] = {}
    for arm in result.arms:
        if arm.arm in shades:
            made[arm.label] = next(shades[arm.arm])
        else:
            made[arm.label] = COLORS[arm.arm] if arm.arm in COLORS else next(free)
    return made


def markers(result: StudyResult) -> dict[str, str]:
    """Arm -> its marker."""
    return {arm.label: MARKERS[i % len(MARKERS)] for i, arm in enumerate(result.arms)}


def short(text: str, most: int = 30) -> str:
    """`text` for a figure: on one line, its middle left out where it is long."""
    clean = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if len(clean) <= most:
        return clean
    head = (most - 1) * 2 // 3
    return f"{clean[:head]}…{clean[head + 1 - most :]}"


def legend(figure: Figure, handles: Sequence[Any], columns: int = 4) -> None:
    """A legend under the charts, where it covers nothing."""
    longest = max((len(str(handle.get_label())) for handle in handles), default=0)
    fitting = max(1, int(figure.get_figwidth() * 13 / (longest + 6)))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(columns, fitting, len(handles)))


def write_figures(figures: Mapping[str, Figure], folder: Path, known: Sequence[str]) -> dict[str, str]:
    """Write NAME.svg and NAME.png of each figure; returns the SVG texts.

    Figures of `known` names that are not among these are removed: they belong to an earlier result.
    """
    made = {}
    for name, figure in figures.items():
        with matplotlib.rc_context(PLAIN_STYLE), warnings.catch_warnings():
            # A letter that the font of the PNG lacks is a box there; in the SVG it is text.
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            made[name] = svg_text(figure)
            records.write_text(folder / f"{name}.svg", made[name])
            with records.atomic_path(folder / f"{name}.png") as temporary:
                figure.savefig(temporary, format="png", dpi=200, facecolor="white", metadata={"Software": None})
    for name in known:
        if name not in figures:
            for ending in ("svg", "png"):
                (folder / f"{name}.{ending}").unlink(missing_ok=True)
    return made


def svg_text(figure: Figure) -> str:
    """The figure as a whole SVG file, its letters as text."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, facecolor="white")
    return buffer.getvalue()


_COLOR = re.compile(r"(?<=[ :])#([0-9a-f]{6})(?=[;\" ])")
_PAPER = "ffffff"


def inline(svg: str) -> str:
    """An SVG file's text to be put into a page: scaled by its box, its colours taken from the page's variables."""
    head, rest = svg[svg.index("<svg") :].split(">", 1)
    head = re.sub(r' (?:width|height)="[^"]*"', "", head)
    if box := re.search(r'viewBox="0 0 ([0-9.]+)', head):
        head += f' style="max-width:{1.5 * float(box[1]):.0f}px"'  # letters of one size in all figures
    rest = re.sub(r'<g id="[^"]*"', "<g", rest)  # the same in every figure, and nothing refers to them
    rest = re.sub(r'style="[^"]*"', lambda style: _COLOR.sub(_variable, style.group()), rest)
    return f"{head}>{rest}"


def _variable(color: re.Match[str]) -> str:
    return "var(--card)" if color[1] == _PAPER else f"var(--c{color[1]})"


def theme(svgs: Sequence[str], further: Sequence[str] = ()) -> str:
    """CSS that defines the variables of inline figures, and of `further` colours, in light and in dark."""
    used = sorted({found for svg in svgs for found in re.findall(r"var\(--c([0-9a-f]{6})\)", svg)})
    used = list(dict.fromkeys([*used, *(color.lstrip("#") for color in further)]))
    light = "".join(f"--c{color}:#{color};" for color in used)
    dark = "".join(f"--c{color}:{in_the_dark('#' + color)};" for color in used)
    return f":root{{{light}}}@media (prefers-color-scheme: dark){{:root{{{dark}}}}}"


def in_the_dark(color: str) -> str:
    """The colour that does on a dark ground what `color` does on a light one: greys turned, others lightened."""
    red, green, blue = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    hue, lightness, saturation = colorsys.rgb_to_hls(red, green, blue)
    lightness = min(0.88, 1 - lightness) if saturation < 0.2 else 0.45 + 0.5 * lightness
    return to_hex(colorsys.hls_to_rgb(hue, lightness, saturation))
