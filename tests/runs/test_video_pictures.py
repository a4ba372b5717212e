"""Frames with heat maps: what stands out lies where it was put, in space and in time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

import lmgraft
from lmgraft.analysis.activations import magnitude
from lmgraft.analysis.masks import mask_of_tokens
from lmgraft.analysis.observe import observe
from lmgraft.errors import DataError
from lmgraft.report.drawing import write_png
from lmgraft.report.pictures.frames import draw_clip, frames_figure, picked_steps
from tiny import random_block
from tiny_hosts import make_videomae, pictures


def test_tokens_of_a_clip_as_maps_of_time_and_place() -> None:
    model = make_videomae().eval()
    clips = pictures("videomae")
    seen = observe(model, clips).at["encoder"]
    grid = seen.grid
    assert (seen.tokens.shape, grid) == ((2, 12, 48), (2, 2, 3))
    tokens = torch.zeros(1, 12, 4)
    tokens[0, 7] = 5  # the second time, the first row, the second column
    found = magnitude(tokens, grid)
    assert found.shape == (1, 2, 2, 3)
    assert found[0].argmax() == 7
    lmgraft.graft(model, random_block())
    assert observe(model, clips).at["mapper_out"].tokens.shape == (2, 12, 48)
    mask = torch.zeros(1, 4, 16, 24, dtype=torch.bool)
    mask[0, 2:, :8, 16:] = True  # the second time, the first row, the last column
    assert mask_of_tokens(mask, grid)[0].nonzero().flatten().tolist() == [8]


def test_frames_with_heat_maps(tmp_path: Path) -> None:
    clip = torch.zeros(3, 4, 16, 24)
    heat = torch.zeros(2, 2, 3)
    heat[1, 0, 2] = 1
    figure = frames_figure(clip, {"magnitude": heat, "nothing": torch.zeros(2, 2, 3)}, seconds=0.1)
    assert len(figure.axes) == 6
    assert [ax.get_title(loc="left") for ax in figure.axes[:2]] == ["0.10 s", "0.30 s"]
    assert [len(ax.images) for ax in figure.axes] == [1, 1, 2, 2, 2, 2]  # frames alone, then with each map over them
    first, second = (ax.images[1] for ax in figure.axes[2:4])
    assert np.asarray(first.get_array()).max() == 0
    assert np.array_equal(np.asarray(second.get_array()), heat[1].numpy())
    assert tuple(second.get_extent()) == (0, 24, 16, 0)  # over the whole frame, the first row on top
    write_png(figure, tmp_path / "x.png", dpi=80)
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.size[0] > 100
    with pytest.raises(DataError, match=r"maps of \[2, 3\] steps"):
        frames_figure(clip, {"a": heat, "b": torch.zeros(3, 2, 3)})
    with pytest.raises(DataError, match=r"maps of \[\] steps"):
        frames_figure(clip, {})


GRID = (4, 2, 3)


def a_clip(frames: int = 8, channels: int = 3) -> torch.Tensor:
    return torch.rand(channels, frames, 16, 24, generator=torch.Generator().manual_seed(0))


def titles_of(figure: Figure) -> list[str]:
    """Of all strips, without the legend and the ends of the bar of colours."""
    return [text.get_text() for text in figure.texts[1:] if text.get_text() not in {"0", "1"}]


def panels_of(figure: Figure, title: str) -> list[Axes]:
    """The axes below a title, from left to right."""
    return [ax for ax in figure.axes if ax.get_label() == title]


def layer(ax: Axes, number: int) -> Any:
    return np.asarray(ax.images[number].get_array())


def gallery_maps() -> dict[str, torch.Tensor]:
    """What the gallery of an analysis has of a grafted run, in its order."""
    titles = ["encoder", "W1", "W2", "attention of the encoder", "attention of the block", "needed"]
    draw = torch.Generator().manual_seed(1)
    return {title: torch.rand(24, generator=draw) for title in titles}


def test_a_clip_shows_attention_and_what_is_needed() -> None:
    maps = gallery_maps()
    figure = draw_clip(a_clip(), {"llm": maps, "plain": {"encoder": maps["encoder"], "needed": maps["needed"]}}, GRID)
    titles = titles_of(figure)
    first, second = (titles[titles.index(run) : end] for run, end in (("llm", titles.index("plain")), ("plain", None)))
    assert [title.split(":")[0] for title in first] == [
        "llm", "stands out", "above 0.3", "above 0.7", "when", "attention of the encoder", "attention of the block",
        "needed",
    ]  # fmt: skip
    assert [title.split(":")[0] for title in second] == [
        "plain",
        "stands out",
        "above 0.3",
        "above 0.7",
        "when",
        "needed",
    ]
    for title, of in (("stands out: W2", "W2"), ("attention of the block", "attention of the block")):
        panels = panels_of(figure, title)
        assert len(panels) == 4
        for ax, values in zip(panels, maps[of].reshape(GRID), strict=True):
            assert np.array_equal(layer(ax, 1), values.numpy())


def test_tokens_under_a_threshold_are_greyed_out() -> None:
    values = torch.zeros(24)
    values[0], values[7], values[8] = 1.0, 0.5, 0.3  # 0.3 itself is not above 0.3
    figure = draw_clip(a_clip(), {"llm": {"W2": values}}, GRID)
    assert {"above 0.3: 2 of 24", "above 0.7: 1 of 24"} <= set(titles_of(figure))
    low, high = panels_of(figure, "above 0.3: 2 of 24"), panels_of(figure, "above 0.7: 1 of 24")
    assert [(layer(ax, 1)[..., 3] == 0).sum() for ax in low] == [1, 1, 0, 0]
    assert [(layer(ax, 1)[..., 3] == 0).sum() for ax in high] == [1, 0, 0, 0]
    assert layer(low[1], 1)[0, 1, 3] == 0
    (edges,) = low[1].collections  # round the first row's second token, in pixels of the frame
    corners = {tuple(corner) for line in edges.get_segments() for corner in line.tolist()}
    assert corners == {(8.0, 0.0), (16.0, 0.0), (8.0, 8.0), (16.0, 8.0)}


def test_the_frames_that_a_map_picks_have_stars() -> None:
    values = torch.zeros(GRID)
    values[2], values[3, 0, 0] = 0.5, 0.9
    figure = draw_clip(a_clip(), {"llm": {"W2": values.flatten()}}, GRID)
    (chart,) = panels_of(figure, "when: W2, averaged")
    assert [bar.get_height() for bar in chart.patches] == pytest.approx([0, 0, 0.5, 0.15])
    assert [text.get_text() for text in chart.texts] == ["0.00", "0.00", "0.50", "0.15"]
    assert [line.get_xdata()[0] for line in chart.lines] == [2]
    assert [label.get_text() for label in chart.get_xticklabels()] == ["0–1", "2–3", "4–5", "6–7"]  # noqa: RUF001
    assert picked_steps([0.1, 0.4, 0.2, 0.4, 0.3, 0.1, 0.1, 0.1]).nonzero()[0].tolist() == [1, 3]
    assert picked_steps([0.791, 0.789]).sum() == 0  # both are written 0.79
    assert picked_steps([0.0, 0.3, 0.3, 0.1]).nonzero()[0].tolist() == [1, 2]


def test_the_object_is_outlined_where_it_is_to_be_seen() -> None:
    truth = torch.zeros(8, 16, 24, dtype=torch.bool)
    truth[4:, 4:8, :6] = True  # from the third step on, cut by the left edge
    figure = draw_clip(a_clip(), {"llm": gallery_maps()}, GRID, truth=truth)
    assert figure.texts[0].get_text().startswith("Blue line: the object.")
    for title in ("the clip, by the numbers of its frames", "needed: lost if masked"):
        outlines = [ax.collections for ax in panels_of(figure, title)]
        assert [len(lines) for lines in outlines] == [0, 0, 1, 1]
        (path,) = outlines[2][0].get_paths()
        assert path.get_extents().extents == pytest.approx([0, 4, 6, 8], abs=0.5)
    without = draw_clip(a_clip(), {"llm": gallery_maps()}, GRID)
    assert "object" not in without.texts[0].get_text()


@pytest.mark.parametrize(("times", "panels"), [(1, 1), (2, 2), (3, 3), (8, 8), (16, 8), (20, 8)])
def test_no_line_has_more_than_eight_frames(times: int, panels: int, tmp_path: Path) -> None:
    values = torch.rand(times * 6)
    clip = a_clip(frames=2 * times, channels=1)
    figure = draw_clip(clip, {"llm": {"W2": values, "needed": values}}, (times, 2, 3))
    tops = [round(ax.get_position().y1, 6) for ax in figure.axes if len(ax.images) == 2]
    assert max(tops.count(top) for top in tops) <= 8
    assert len(panels_of(figure, "stands out: W2")) == panels
    charts = [ax for ax in figure.axes if ax.patches]
    assert [len(chart.patches) for chart in charts] == ([times] if times > 1 else [])
    boxes = [ax.get_position() for ax in figure.axes]
    assert min(box.x0 for box in boxes) > 0
    assert max(box.x1 for box in boxes) < 1
    assert min(box.y0 for box in boxes) > 0
    shown = [title for title in titles_of(figure) if "by the numbers" in title]
    assert ("shown" in shown[0]) == (times > 8)
    write_png(figure, tmp_path / "x.png", dpi=110)
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.size[0] == 704  # as wide for any clip


def test_a_threshold_that_was_chosen_elsewhere_takes_the_place_of_both() -> None:
    values = torch.rand(24, generator=torch.Generator().manual_seed(2))
    above = (values > 0.5).float()
    figure = draw_clip(a_clip(), {"llm": {"mean of heads": values, "above 0.50": above}}, GRID)
    kept = f"above 0.50: {int(above.sum())} of 24"
    assert titles_of(figure)[1:] == ["llm", "stands out: mean of heads", kept, "when: mean of heads, averaged"]


def test_a_clip_without_a_grid_of_times_is_refused() -> None:
    maps = {"llm": {"W2": torch.rand(24)}}
    for grid in (None, (4, 6)):
        with pytest.raises(ValueError, match="times, rows and columns"):
            draw_clip(a_clip(), maps, grid)
    with pytest.raises(DataError, match=r"9 frames, and maps of \[4\] steps"):
        draw_clip(a_clip(frames=9), maps, GRID)
    other = draw_clip(a_clip(), {"llm": {"W2": torch.rand(24), "W1": torch.rand(7), "needed": torch.rand(7)}}, GRID)
    assert not any(title.startswith(("needed", "stands out: W1")) for title in titles_of(other))
