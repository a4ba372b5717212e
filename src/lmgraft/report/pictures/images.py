"""An image with maps over its tokens laid beside it, a row for each model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from lmgraft.report.pictures.panels import panels


def draw_image(
    image: Tensor,
    maps: Mapping[str, Mapping[str, Tensor]],
    grid: tuple[int, ...] | None,
    places: Mapping[str, Tensor] | None = None,
    truth: Tensor | None = None,
    predictions: Mapping[str, Mapping[str, Any]] | None = None,
) -> Figure:
    """A row of maps for each model behind the image, and where it is known its object.

    Args:
        image: (C, H, W) float; colours are spread between its least and its largest value.
        maps: Model -> title -> (T,) in [0, 1], or another image (C, H, W).
        grid: (rows, columns) of the tokens.
        places: Not used: an image's tokens lie in a grid.
        truth: (H, W) bool.
        predictions: Not used: these are in words.

    Raises:
        ValueError: If the tokens lie in no grid.
    """
    if grid is None or len(grid) != 2:
        raise ValueError(f"an image's tokens lie in rows and columns, not in {grid}")
    first: dict[str, Any] = {"image": _pixels(image)} | ({} if truth is None else {"object": truth.float()})
    placed = {
        model: {t: _pixels(v) if v.dim() == 3 else v.reshape(grid) for t, v in of.items()} for model, of in maps.items()
    }
    return panels(placed, first, 1.35, _paint)


def _paint(ax: Axes, title: str, values: Any) -> None:
    ax.imshow(
        np.asarray(values), cmap="gray" if title == "object" else "viridis", vmin=0, vmax=1
    )  # colours have no map


def _pixels(image: Tensor) -> npt.NDArray[np.float32]:
    """(H, W, 3) in [0, 1]; of more or two channels the first is shown."""
    colours = image if image.shape[0] == 3 else image[:1].expand(3, -1, -1)
    low, high = colours.min(), colours.max()
    scaled: npt.NDArray[np.float32] = ((colours - low) / (high - low).clamp(min=1e-12)).permute(1, 2, 0).numpy()
    return scaled
