"""A cloud coloured by a value for each token, such as an activation, seen from the front, the side and above."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from lmgraft.report.drawing import STYLE
from lmgraft.report.pictures.panels import panels

_VIEWS = (("from the front", 0, 2), ("from the side", 1, 2), ("from above", 0, 1))


def draw_cloud(
    points: npt.ArrayLike, values: npt.ArrayLike, places: npt.ArrayLike | None = None, title: str = ""
) -> Figure:
    """A figure of one cloud.

    Args:
        points: (N, 3).
        values: (N,) a number for each point, or (T,) for each token.
        places: (T, 3) where the tokens lie, as `Host.layout.places` says; a point takes the value of the nearest one.
            Tokens that lie nowhere (NaN), such as the class token, are left out. None: values are of the points.
        title: Above the figure.

    Raises:
        ValueError: If there is not a value for each point or token.
    """
    cloud, heat = np.asarray(points, float), np.asarray(values, float)
    if places is not None:
        where = np.asarray(places, float)
        if len(where) != len(heat):
            raise ValueError(f"{len(heat)} values for {len(where)} tokens")
        lies = np.isfinite(where).all(1)
        nearest = np.linalg.norm(cloud[:, None] - where[lies], axis=2).argmin(1)
        heat = heat[lies][nearest]
    if heat.shape != cloud.shape[:1]:
        raise ValueError(f"{heat.shape} values for {len(cloud)} points")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 3.2), layout="constrained")
        for axes, (view, across, up) in zip(figure.subplots(1, 3), _VIEWS, strict=True):
            order = np.argsort(heat)  # the largest in front
            drawn = axes.scatter(*cloud[order][:, [across, up]].T, c=heat[order], s=6, cmap="viridis", linewidths=0)
            axes.set(aspect="equal", xticks=[], yticks=[], title=view)
            axes.spines[:].set_visible(False)
        figure.colorbar(drawn, ax=figure.axes, shrink=0.8, label="value")
        if title:
            figure.suptitle(title)
    return figure


def draw_clouds(
    points: Tensor,
    maps: Mapping[str, Mapping[str, Tensor]],
    grid: tuple[int, ...] | None = None,
    places: Mapping[str, Tensor] | None = None,
    truth: Tensor | None = None,
    predictions: Mapping[str, Mapping[str, Any]] | None = None,
) -> Figure:
    """A cloud from the front in the colours of each map, a row for each model.

    Args:
        points: (N, 3).
        maps: Model -> title -> (T,) in [0, 1].
        grid: Not used: a cloud's tokens lie in no grid.
        places: Model -> (T, 3), where its tokens lie instead.
        truth: (N,) bool.
        predictions: Not used: these are in words.

    Raises:
        ValueError: If it is not said where the tokens lie.
    """
    if places is None:
        raise ValueError("a cloud's maps need the places of its tokens")
    nearest = {model: torch.cdist(points.float(), where.float()).argmin(1) for model, where in places.items()}
    of_points = {model: {title: values[nearest[model]] for title, values in of.items()} for model, of in maps.items()}
    _, across, up = _VIEWS[0]

    def paint(ax: Axes, title: str, values: Tensor) -> None:
        order = values.argsort()  # the largest in front
        x, y = points[order][:, [across, up]].T.numpy()
        ax.scatter(x, y, c=values[order].numpy(), s=4, cmap="viridis", vmin=0, vmax=1, linewidths=0)
        ax.set_aspect("equal")

    return panels(of_points, {} if truth is None else {"object": truth.float()}, 1.5, paint)
