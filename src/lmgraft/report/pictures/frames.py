"""Frames of a clip with what stands out in them: pictures of maps that were computed elsewhere."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patheffects import Normal, Stroke
from torch import Tensor

from lmgraft.errors import DataError
from lmgraft.report.drawing import INK, SOFT, STYLE, short
from lmgraft.report.pictures.strips import COLOURS, MOST, Strip, strips_figure

LOW, HIGH = 0.3, 0.7
"""Of a map that is scaled to [0, 1], as the paper's Fig. 5 shows a low and a high threshold."""
_ATTENTION, _NEEDED, _ABOVE = "attention", "needed", "above"
_OUTLINE, _PICKED = "#56b4e9", "#2f6f9f"
_DIGITS = 2  # of means


def frames_figure(clip: Tensor, maps: Mapping[str, Tensor], seconds: float | None = None) -> Figure:
    """A row of frames, one from the middle of each step in time of the maps, and a row for each map laid over them.

    Args:
        clip: (C, T, H, W) float; colours are spread between its least and its largest value.
        maps: Title -> (times, rows, columns) in [0, 1], as `analysis.activations.magnitude` gives of one clip.
        seconds: Between two frames, to be written above them; None writes their numbers.

    Raises:
        DataError: If there is no map, or they do not have one number of steps that the frames fall into.
    """
    count = _steps(clip.shape[1], {len(values) for values in maps.values()})
    shown = [_middle(step, count, clip.shape[1]) for step in range(count)]
    pixels = _pixels(clip)
    height, width = pixels.shape[1:3]
    with matplotlib.rc_context(STYLE):
        figure = Figure(
            figsize=(1.1 * count + 0.4, (1.1 * height / width + 0.22) * (1 + len(maps))), layout="constrained"
        )
        axes = figure.subplots(1 + len(maps), count, squeeze=False)
        for column, frame in enumerate(shown):
            top = f"{frame}" if seconds is None else f"{frame * seconds:.2f} s"
            axes[0, column].set_title(top, fontsize=8)
            for row, values in enumerate([None, *maps.values()]):
                ax = axes[row, column]
                ax.imshow(pixels[frame], extent=(0, width, height, 0))
                if values is not None:
                    heat = values[column].clamp(0, 1).cpu().numpy()
                    ax.imshow(heat, cmap="magma", vmin=0, vmax=1, alpha=0.6, extent=(0, width, height, 0))
                ax.set(xticks=[], yticks=[])
                for spine in ax.spines.values():
                    spine.set_visible(False)
        for row, title in enumerate(maps, 1):
            lines = [short(part, most=20) for part in title.rsplit(", ", 1)]
            axes[row, 0].set_ylabel("\n".join(lines), fontsize=8)
    return figure


def draw_clip(
    clip: Tensor,
    maps: Mapping[str, Mapping[str, Tensor]],
    grid: tuple[int, ...] | None,
    places: Mapping[str, Tensor] | None = None,
    truth: Tensor | None = None,
    predictions: Mapping[str, Mapping[str, Any]] | None = None,
) -> Figure:
    """Frames of a clip, and for each model its maps over them, what of the last map is above thresholds, and when.

    Of each model are shown: the map of what stands out last; the frames with all tokens greyed out that are not above a
    low and a high threshold of it; its mean over the tokens of each tubelet's time, the highest quarter marked; its
    attention; and what is lost when a token alone is masked. The object is outlined.

    Args:
        clip: (C, T, H, W) float; colours are spread between its least and its largest value.
        maps: Model -> title -> (T,) in [0, 1]. Of what is neither "attention ..." nor "needed", the last is shown, or
            both where there are two. One that is called "above ..." is 1 at tokens that are kept, and stands in for the
            two thresholds. Maps of other tokens than the grid's are left out.
        grid: (times, rows, columns) of the tubelets; of more than eight times eight are shown.
        places: Not used: tubelets lie in a grid.
        truth: (T, H, W) bool.
        predictions: Not used: these are in words.

    Raises:
        ValueError: If the tokens lie in no such grid.
        DataError: If the frames do not fall into its times.
    """
    if grid is None or len(grid) != 3:
        raise ValueError(f"a clip's tokens lie in times, rows and columns, not in {grid}")
    film = _Film(clip, grid[0], truth)
    left_out = "" if len(film.shown) == grid[0] else f" ({len(film.shown)} of {grid[0]} steps in time shown)"
    blocks = {"": [Strip(f"the clip, by the numbers of its frames{left_out}", film.paint_frames)]}
    for model, of in maps.items():
        fitting = {title: values.reshape(grid) for title, values in of.items() if values.shape == (math.prod(grid),)}
        blocks[model] = _strips(film, fitting)
    return strips_figure(blocks, len(film.shown), film.aspect, _legend(truth is not None))


class _Film:
    """Frames of a clip with its object, by the steps in time of its tubelets."""

    def __init__(self, clip: Tensor, times: int, truth: Tensor | None) -> None:
        _steps(clip.shape[1], {times})
        self.pixels, self.times = _pixels(clip), times
        self.truth = None if truth is None else truth.float().cpu().numpy()
        count = min(times, MOST)
        self.shown = [_middle(column, count, times) for column in range(count)]
        """Steps that there is a panel of."""

    @property
    def aspect(self) -> float:
        """Height over width."""
        height, width = self.pixels.shape[1:3]
        return float(height / width)

    def label(self, step: int) -> str:
        """The numbers of a step's frames, from 0."""
        first, end = (len(self.pixels) * at // self.times for at in (step, step + 1))
        return f"{first}" if end == first + 1 else f"{first}\N{EN DASH}{end - 1}"

    def paint_frames(self, ax: Axes, column: int) -> None:
        """The frame in the middle of the step, with the numbers of the step's frames."""
        self._paint(ax, column)
        ax.text(
            0.04, 0.95, self.label(self.shown[column]), transform=ax.transAxes, fontsize=7.5, va="top", color="white",
            path_effects=[Stroke(linewidth=1.6, foreground="black"), Normal()],
        )  # fmt: skip

    def paint_map(self, values: Tensor, ax: Axes, column: int) -> None:
        """A map (times, rows, columns) over the frame, whose own colours are taken from it."""
        self._paint(ax, column, is_grey=True)
        heat = values[self.shown[column]].clamp(0, 1).cpu().numpy()
        ax.imshow(heat, cmap=COLOURS, vmin=0, vmax=1, alpha=0.75, extent=self._extent)

    def paint_kept(self, kept: Tensor, ax: Axes, column: int) -> None:
        """The frame where tokens are kept (times, rows, columns), with an edge round them, and grey elsewhere."""
        self._paint(ax, column)
        here = kept[self.shown[column]].cpu().numpy()
        veil = np.full((*here.shape, 4), 0.8)
        veil[..., 3] = 0.9 * ~here
        ax.imshow(veil, extent=self._extent)
        height, width = self.pixels.shape[1:3]
        token = (width / here.shape[1], height / here.shape[0])
        # Without an edge what is kept of a pale clip looks like what is not.
        ax.add_collection(LineCollection(_edges(here) * token, colors=INK, linewidths=0.7))

    def paint_times(self, values: Tensor, ax: Axes, column: int) -> None:
        """A bar for each step, the mean of the map (times, rows, columns) over it; the highest quarter has stars."""
        means = values.flatten(1).mean(1).cpu().numpy()
        picked = picked_steps(means)
        bars = ax.bar(range(self.times), means, width=0.7, color=[_PICKED if one else SOFT for one in picked])
        top = max(float(means.max()), 1e-6)
        is_few = self.times <= MOST
        for bar, mean, is_picked in zip(bars, means, picked, strict=True):
            middle = bar.get_x() + bar.get_width() / 2
            if is_few:
                ax.text(middle, mean + 0.03 * top, f"{mean:.{_DIGITS}f}", ha="center", fontsize=7)
            if is_picked:
                ax.plot(middle, mean + (0.3 if is_few else 0.12) * top, "*", color=_PICKED, markersize=7)
        ax.set(xlim=(-0.5, self.times - 0.5), ylim=(0, 1.45 * top), yticks=[])
        ax.set_xticks(self.shown, [self.label(step) for step in self.shown], fontsize=7.5)
        ax.tick_params(axis="x", length=0, pad=2)
        ax.spines["bottom"].set_visible(True)

    @property
    def _extent(self) -> tuple[float, float, float, float]:
        height, width = self.pixels.shape[1:3]
        return (0, width, height, 0)

    def _paint(self, ax: Axes, column: int, is_grey: bool = False) -> None:
        step = self.shown[column]
        frame = self.pixels[_middle(step, self.times, len(self.pixels))]
        ax.imshow(frame.mean(2) if is_grey else frame, cmap="gray", vmin=0, vmax=1, extent=self._extent)
        ax.set(xticks=[], yticks=[])
        if self.truth is not None:
            self._outline(ax, self.truth[_middle(step, self.times, len(self.truth))])

    def _outline(self, ax: Axes, mask: npt.NDArray[np.float32]) -> None:
        """The edge of the object; nothing where it is not to be seen."""
        if not mask.any():
            return
        around = np.pad(mask, 1)  # closes the line of an object that is cut by the frame
        x, y = (
            (np.arange(-1, of_mask + 1) + 0.5) * of_frame / of_mask
            for of_mask, of_frame in zip(mask.shape[::-1], self.pixels.shape[2:0:-1], strict=True)
        )
        lines = ax.contour(x, y, around, levels=[0.5], colors=[_OUTLINE], linewidths=1.0)
        lines.set_path_effects([Stroke(linewidth=2.0, foreground=INK), Normal()])
        ax.set(xlim=self._extent[:2], ylim=self._extent[2:])


def picked_steps(means: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Which steps in time a map picks: the quarter with the highest means, as these are written.

    Of steps that are equal there all are picked, but none where no step has less.

    Args:
        means: (times,).
    """
    values = np.round(np.asarray(means, float), _DIGITS)
    least = np.sort(values)[-math.ceil(len(values) / 4)]
    picked: npt.NDArray[np.bool_] = (values >= least) & (values > values.min())
    return picked


def _strips(film: _Film, maps: Mapping[str, Tensor]) -> list[Strip]:
    """Of one model: what stands out, what of it is kept and when, then attention and what is needed."""
    beside = {title: values for title, values in maps.items() if title.startswith((_ATTENTION, _NEEDED))}
    kept = {title: values > 0.5 for title, values in maps.items() if title.startswith(_ABOVE)}
    standing = {title: values for title, values in maps.items() if title not in {*beside, *kept}}
    titles = [*standing]
    titles = titles[-1 if len(titles) > 2 else 0 :]
    strips = [Strip(f"stands out: {short(title)}", partial(film.paint_map, standing[title])) for title in titles]
    if titles:
        last = standing[titles[-1]]
        chosen = kept or {f"above {threshold}": last > threshold for threshold in (LOW, HIGH)}
        for title, tokens in chosen.items():
            counted = f"{title}: {int(tokens.sum())} of {tokens.numel()}"
            strips.append(Strip(counted, partial(film.paint_kept, tokens)))
        if film.times > 1:
            strips.append(
                Strip(f"when: {short(titles[-1], 16)}, averaged", partial(film.paint_times, last), is_chart=True)
            )
    for title, values in beside.items():
        named = f"{title}: lost if masked" if title == _NEEDED else title
        strips.append(Strip(short(named), partial(film.paint_map, values)))
    return strips


def _legend(has_truth: bool) -> str:
    sentences = [
        "Colours: each map from 0 to 1 of its own range.",
        "Above a threshold: all other tokens are greyed out; the numbers say how many are left.",
        "Stars: the quarter of frames with the map's highest means.",
    ]
    return " ".join([*(["Blue line: the object."] if has_truth else []), *sentences])


def _edges(kept: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Lines (N, 2, 2) of x and y, in tokens, between those that are kept (rows, columns) and all else."""
    around = np.pad(kept, 1)
    y, x = np.nonzero(around[1:-1, 1:] != around[1:-1, :-1])
    upright = np.stack([np.stack([x, y], -1), np.stack([x, y + 1], -1)], 1)
    y, x = np.nonzero(around[1:, 1:-1] != around[:-1, 1:-1])
    level = np.stack([np.stack([x, y], -1), np.stack([x + 1, y], -1)], 1)
    return np.concatenate([upright, level]).astype(float)


def _steps(frames: int, steps: set[int]) -> int:
    if len(steps) != 1 or frames % max(steps, default=1):
        raise DataError(
            f"{frames} frames, and maps of {sorted(steps)} steps in time", "give maps of one grid of tubelets"
        )
    (count,) = steps
    return count


def _middle(part: int, parts: int, whole: int) -> int:
    """What is in the middle of one of equal parts."""
    return int((part + 0.5) * whole / parts)


def _pixels(clip: Tensor) -> npt.NDArray[np.float32]:
    """(T, H, W, 3) in [0, 1]; of more or two channels the first is shown."""
    colours = clip if clip.shape[0] == 3 else clip[:1].expand(3, -1, -1, -1)
    low, high = colours.min(), colours.max()
    scaled: npt.NDArray[np.float32] = (
        ((colours - low) / (high - low).clamp(min=1e-12)).permute(1, 2, 3, 0).float().cpu().numpy()
    )
    return scaled
