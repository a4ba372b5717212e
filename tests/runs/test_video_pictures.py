"""Frames with heat maps: what stands out lies where it was put, in space and in time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import lmgraft
from lmgraft.analysis.activations import magnitude
from lmgraft.analysis.masks import mask_of_tokens
from lmgraft.analysis.observe import observe
from lmgraft.errors import DataError
from lmgraft.report.drawing import write_png
from lmgraft.report.pictures.frames import frames_figure
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
