"""A room from above: its objects, where the asker stands and looks, the values of its tokens, question and answers."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from lmgraft.geometry.poses import gaze
from lmgraft.report.drawing import INK, SOFT
from lmgraft.report.pictures.panels import panels

_ASKER, _TRUTH = "#c2571a", "#2f7d6b"
_MEAN_COLOUR = np.array([109.8, 97.2, 83.8])  # what is taken off red, green and blue before they are divided by 256
_ROOM = "room"
_SIDE = 2.4  # inches


def draw_room(
    room: Any,
    maps: Mapping[str, Mapping[str, Tensor]],
    grid: tuple[int, ...] | None = None,
    places: Mapping[str, Tensor] | None = None,
    truth: Tensor | None = None,
    predictions: Mapping[str, Mapping[str, Any]] | None = None,
) -> Figure:
    """A room from above for each model, and its tokens in the colours of each map; the question stands above.

    The asker is an orange dot with an arrow to where they look; points of the objects that are asked about are green;
    boxes and their names are the data's. Below the room stands what the model answers, with its beliefs.

    Args:
        room: `points` (N, 3 + F) in metres, of which the first three features may be colours, `boxes` (K, 6),
            `box_classes` (K,), `pose` (7,), `situation` and `question` (L,) word numbers; `words` and `classes` by
            number.
        maps: Model -> title -> (T,) in [0, 1].
        grid: Not used: tokens lie in none.
        places: Model -> (T, K, 3), the seeds that its tokens are made of, or (T, 3) where they lie; NaN for tokens that
            are no objects, which are not drawn.
        truth: (N,) bool.
        predictions: Model -> answer -> belief.

    Raises:
        ValueError: If it is not said where the tokens lie.
    """
    if places is None:
        raise ValueError("a room's maps need the places of its tokens")
    cloud = room.points.numpy()
    cloud = cloud[cloud[:, 2].argsort()]  # what is high lies in front
    colours = _colours(cloud[:, 3:])
    asked = None if truth is None else room.points.numpy()[truth.numpy()]

    def paint(ax: Axes, title: str, painted: Any) -> None:
        ax.scatter(cloud[:, 0], cloud[:, 1], c=colours, s=2, linewidths=0, alpha=1.0 if title == _ROOM else 0.25)
        _draw_boxes(ax, room, named=title == _ROOM)
        if title == _ROOM:
            if asked is not None:
                ax.scatter(asked[:, 0], asked[:, 1], color=_TRUTH, s=3, linewidths=0)
        else:
            values, where = painted
            order = values.argsort()  # the largest in front
            ax.scatter(
                where[order, 0], where[order, 1], c=values[order], s=9, cmap="viridis", vmin=0, vmax=1, linewidths=0
            )
        _draw_asker(ax, room.pose)
        ax.set_aspect("equal")

    rows = {
        model: {title: _points_of(values, places[model]) for title, values in of.items()} for model, of in maps.items()
    }
    figure = panels(rows, {_ROOM: None}, _SIDE, paint)
    columns = len(figure.axes) // max(1, len(maps))
    for row, model in enumerate(maps):
        figure.axes[row * columns].set_xlabel(_answers((predictions or {}).get(model, {})), fontsize=6)
    text = " ".join(filter(None, (_text(room.situation, room.words), _text(room.question, room.words))))
    figure.suptitle(textwrap.fill(text, 32 * columns), fontsize=7)
    return figure


def _points_of(values: Tensor, places: Tensor) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Values (M,) and places (M, 3) of all points that tokens are drawn as, those that lie nowhere left out."""
    where = places.reshape(len(places), -1, 3)
    of_points = values[:, None].expand(where.shape[:2])
    there = where.isfinite().all(2)
    return of_points[there].numpy(), where[there].numpy()


def _colours(features: npt.NDArray[np.float32]) -> Any:
    if features.shape[1] < 3:
        return SOFT
    return ((features[:, :3] * 256 + _MEAN_COLOUR) / 255).clip(0, 1)


def _draw_boxes(ax: Axes, room: Any, named: bool) -> None:
    """Outlines of the objects; where `named`, their names at the upper edges."""
    for (x, y, _, width, depth, _), kind in zip(room.boxes.tolist(), room.box_classes.tolist(), strict=True):
        if kind < 0:
            continue
        ax.add_patch(Rectangle((x - width / 2, y - depth / 2), width, depth, fill=False, ec=INK, lw=0.5))
        if named:
            ax.text(x, y + depth / 2, room.classes[kind], fontsize=5, color=INK, ha="center", va="bottom")


def _draw_asker(ax: Axes, pose: Tensor) -> None:
    """Where they are, and where they look; nothing where that is not known."""
    if not pose.isfinite().all():
        return
    x, y = pose[:2].tolist()
    dx, dy = (0.6 * gaze(pose)).tolist()
    ax.annotate("", (x + dx, y + dy), (x, y), arrowprops={"arrowstyle": "->", "color": _ASKER, "lw": 1.2})
    ax.plot(x, y, "o", color=_ASKER, markersize=3)


def _answers(beliefs: Mapping[str, float]) -> str:
    return ", ".join(f"{answer} {belief:.0%}" for answer, belief in list(beliefs.items())[:3])


def _text(ids: Tensor, words: Sequence[str]) -> str:
    return " ".join(words[number] or "?" for number in ids.tolist() if number)
