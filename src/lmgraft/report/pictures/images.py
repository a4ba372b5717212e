"""An image with maps over its tokens laid beside it, a row for each model."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from torch import Tensor

from lmgraft.report.drawing import STYLE, short


def draw_image(
    image: Tensor,
    maps: Mapping[str, Mapping[str, Tensor]],
    grid: tuple[int, ...] | None,
    places: Tensor | None = None,
    truth: Tensor | None = None,
) -> Figure:
    """A row of maps for each model behind the image, and where it is known its object.

    Args:
        image: (C, H, W) float; colours are spread between its least and its largest value.
        maps: Model -> title -> (T,) in [0, 1].
        grid: (rows, columns) of the tokens.
        places: Not used: an image's tokens lie in a grid.
        truth: (H, W) bool.

    Raises:
        ValueError: If the tokens lie in no grid.
    """
    if grid is None or len(grid) != 2:
        raise ValueError(f"an image's tokens lie in rows and columns, not in {grid}")
    titles = list(dict.fromkeys(title for of in maps.values() for title in of))
    first = ["image", *(["object"] if truth is not None else [])]
    with matplotlib.rc_context(STYLE):
        columns, rows = len(first) + len(titles), max(1, len(maps))
        figure = Figure(figsize=(1.35 * columns, 1.35 * rows + 0.35), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
        pixels = _pixels(image)
        for row, (model, of) in enumerate(maps.items()):
            shown: dict[str, npt.NDArray[np.float32] | None] = {"image": pixels}
            if truth is not None:
                shown["object"] = truth.float().numpy()
            shown |= {title: of[title].reshape(grid).numpy() if title in of else None for title in titles}
            for ax, (title, values) in zip(axes[row], shown.items(), strict=True):
                if values is None:
                    ax.set_axis_off()
                    continue
                if values.ndim == 3:
                    ax.imshow(values)
                else:
                    ax.imshow(values, cmap="gray" if title == "object" else "viridis", vmin=0, vmax=1)
                ax.set(xticks=[], yticks=[])
                ax.spines[:].set_visible(False)
                if row == 0:
                    ax.set_title(title.replace("block's ", "block's\n").replace("of the", "of\nthe"), fontsize=8)
            axes[row, 0].set_ylabel(short(model), fontsize=8)
    return figure


def _pixels(image: Tensor) -> npt.NDArray[np.float32]:
    """(H, W, 3) in [0, 1]; of more or two channels the first is shown."""
    colours = image if image.shape[0] == 3 else image[:1].expand(3, -1, -1)
    low, high = colours.min(), colours.max()
    scaled: npt.NDArray[np.float32] = ((colours - low) / (high - low).clamp(min=1e-12)).permute(1, 2, 0).numpy()
    return scaled
