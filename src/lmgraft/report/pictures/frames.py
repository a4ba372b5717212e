"""Frames of a clip with what stands out in them: pictures of maps that were computed elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from lmgraft.errors import DataError
from lmgraft.report.drawing import STYLE, short


def frames_figure(clip: Tensor, maps: Mapping[str, Tensor], seconds: float | None = None) -> Figure:
    """A row of frames, one from the middle of each step in time of the maps, and a row for each map laid over them.

    Args:
        clip: (C, T, H, W) float; colours are spread between its least and its largest value.
        maps: Title -> (times, rows, columns) in [0, 1], as `analysis.activations.magnitude` gives of one clip.
        seconds: Between two frames, to be written above them; None writes their numbers.

    Raises:
        DataError: If there is no map, or they do not have one number of steps that the frames fall into.
    """
    steps = {len(values) for values in maps.values()}
    frames = clip.shape[1]
    if len(steps) != 1 or frames % max(steps, default=1):
        raise DataError(
            f"{frames} frames, and maps of {sorted(steps)} steps in time", "give maps of one grid of tubelets"
        )
    (count,) = steps
    shown = [int((step + 0.5) * frames / count) for step in range(count)]
    low, high = clip.min(), clip.max()
    pixels = ((clip - low) / (high - low).clamp(min=1e-12)).permute(1, 2, 3, 0).cpu().numpy()
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
                ax.imshow(np.broadcast_to(pixels[frame], (height, width, 3)), extent=(0, width, height, 0))
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
    places: Tensor | None = None,
    truth: Tensor | None = None,
    predictions: Mapping[str, Mapping[str, Any]] | None = None,
) -> Figure:
    """Frames with the object and, of each model, what stands out last laid over them.

    Args:
        clip: (C, T, H, W) float.
        maps: Model -> title -> (T,) in [0, 1]; attention is left out, and of more than two others all but the last.
        grid: (times, rows, columns) of the tubelets.
        places: Not used: tubelets lie in a grid.
        truth: (T, H, W) bool.
        predictions: Not used: these are in words.

    Raises:
        ValueError: If the tokens lie in no such grid.
    """
    if grid is None or len(grid) != 3:
        raise ValueError(f"a clip's tokens lie in times, rows and columns, not in {grid}")
    rows: dict[str, Tensor] = {}
    if truth is not None:
        steps = [int((step + 0.5) * len(truth) / grid[0]) for step in range(grid[0])]
        rows["object"] = truth[steps].float()
    for model, of in maps.items():
        titles = [title for title in of if not title.startswith(("attention", "needed"))]
        rows |= {f"{model}, {title}": of[title].reshape(grid) for title in titles[-1 if len(titles) > 2 else 0 :]}
    return frames_figure(clip, rows)
