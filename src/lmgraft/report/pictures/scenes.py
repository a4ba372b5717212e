"""A traffic scene from above: lanes, where agents were, where the target went, and where each model says it may go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from torch import Tensor

from lmgraft.report.drawing import INK, SOFT
from lmgraft.report.pictures.panels import panels

_FORECAST = "forecast"
_TRUTH, _PREDICTED, _TARGET = "#2f7d6b", "#c2571a", "#2f6f9f"
_MARGIN = 8.0  # metres around what moves
_Lines = list[npt.NDArray[np.float32]]


def draw_scene(
    scene: Any,
    maps: Mapping[str, Mapping[str, Tensor]],
    grid: tuple[int, ...] | None = None,
    places: Mapping[str, Tensor] | None = None,
    truth: Tensor | None = None,
    predictions: Mapping[str, Mapping[str, Any]] | None = None,
) -> Figure:
    """A scene for each model, with its forecast first and then lanes and agents in the colours of each map.

    The target is blue, what it did green, what a model says orange, the darker the more probable; agents that it
    interacts with have a ring.

    Args:
        scene: `agents` (A, S, 2), `agent_valid` (A, S), `lanes` (L, P, 2), `lane_valid` (L, P) and `future` (T, 2), in
            metres; the target is the first agent.
        maps: Model -> title -> (N,) in [0, 1]: the last values are of the lanes, before them those of agents; where
            the target is left out, of the others.
        grid: Not used: tokens lie in none.
        places: Not used: the scene has them.
        truth: (A,) bool, agents that the target interacts with.
        predictions: Model -> what its task says: "trajectories" (K, T, 2) and "probabilities" (K,).
    """
    paths = [path[valid].numpy() for path, valid in zip(scene.agents, scene.agent_valid, strict=True)]
    lanes = [lane[valid].numpy() for lane, valid in zip(scene.lanes, scene.lane_valid, strict=True)]
    future, forecasts = scene.future.numpy(), predictions or {}
    rows = {
        model: ({_FORECAST: forecasts[model]} if "trajectories" in forecasts.get(model, {}) else {}) | dict(of)
        for model, of in maps.items()
    }
    ends = [np.asarray(of["trajectories"]).reshape(-1, 2) for of in forecasts.values() if "trajectories" in of]
    low, high = _box([*paths, future, *ends])
    ringed = (
        [] if truth is None else [path[-1] for path, is_it in zip(paths, truth, strict=True) if is_it and len(path)]
    )

    def paint(ax: Axes, title: str, shown: Any) -> None:
        is_forecast = title == _FORECAST
        values = None if is_forecast else shown.numpy()
        _draw(ax, lanes, paths, values)
        ax.plot(*future.T, color=_TRUTH, linewidth=1.2, linestyle=":" if is_forecast else "-")
        if is_forecast:
            _draw_forecast(ax, shown["trajectories"], shown["probabilities"])
        for x, y in ringed:
            ax.plot(x, y, "o", markersize=9, markerfacecolor="none", markeredgecolor=_TARGET, markeredgewidth=0.8)
        ax.set(aspect="equal", xlim=(low[0], high[0]), ylim=(low[1], high[1]))

    return panels(rows, {}, 2.2, paint)


def _draw(ax: Axes, lanes: _Lines, paths: _Lines, values: npt.NDArray[np.float32] | None) -> None:
    """Lanes and histories: in the colours of their values, or lanes pale, agents dark and the target blue."""
    if values is None:
        of_lanes: Sequence[Any] = [SOFT] * len(lanes)
        of_agents: Sequence[Any] = [_TARGET] + [INK] * (len(paths) - 1)
    else:
        of_tokens = list(matplotlib.colormaps["viridis"](values))
        of_lanes = of_tokens[len(values) - len(lanes) :]
        missing = len(paths) + len(lanes) - len(values)  # the target, where it is no token of the map
        of_agents = [_TARGET] * missing + of_tokens[: len(paths) - missing]
    there = [(lane, colour) for lane, colour in zip(lanes, of_lanes, strict=True) if len(lane)]
    colours = [colour for _, colour in there]
    width = 0.6 if values is None else 1.0
    ax.add_collection(LineCollection([lane for lane, _ in there], colors=colours, linewidths=width, alpha=0.8))
    for path, colour in zip(paths, of_agents, strict=True):
        if len(path):
            ax.plot(*path.T, color=colour, linewidth=1.2)
            ax.plot(*path[-1], "o", color=colour, markersize=3)


def _draw_forecast(ax: Axes, trajectories: Any, probabilities: Sequence[float]) -> None:
    for path, belief in zip(trajectories, probabilities, strict=True):
        xs, ys = zip(*([(0.0, 0.0), *path]), strict=True)
        ax.plot(xs, ys, color=_PREDICTED, linewidth=1.0, alpha=0.25 + 0.75 * belief)
        ax.annotate(f"{belief:.0%}", (xs[-1], ys[-1]), fontsize=4.5, color=_PREDICTED, annotation_clip=True)


def _box(paths: _Lines) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """The corners of a square around all paths, with a margin: beside a straight road one sees something too."""
    points = np.concatenate(paths)
    points = points[np.isfinite(points).all(1)]  # a scene that ends with the present has no future
    low, high = points.min(0), points.max(0)
    middle, reach = (low + high) / 2, float((high - low).max()) / 2 + _MARGIN
    return middle - reach, middle + reach
