"""Motion clips: real mp4 files whose pairs of actions have equal sets of frames, and differ in their order alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binom
from video_trees import pictures_of

from lmgraft.data.loader import Draw
from lmgraft.data.video import motion_clips
from lmgraft.data.video.decoding import read_frames
from lmgraft.data.video.motion_clips import CLASSES, PAIRS, Filming, MotionClips, write_motion_clips
from lmgraft.data.video.sampling import ordered
from lmgraft.data.video.transforms import ClipAugment

FILMS = Filming(train=36, val=6, test=12, size=32, frames=8)


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only."""
    with pytest.MonkeyPatch.context() as patch:
        pictures_of(tmp_path_factory.mktemp("pictures"), patch)
        return write_motion_clips(tmp_path_factory.mktemp("clips"), FILMS)


def frames_of(file: Path) -> np.ndarray[Any, Any]:
    return np.stack([np.asarray(image) for image in read_frames(str(file), lambda times: range(len(times)))])


def data_of(clips: Path, **options: Any) -> MotionClips:
    shape = {"img_size": 32, "frames": 8, "batch_size": 6, "eval_batch_size": 22, "num_workers": 0}
    shape["augment"] = ClipAugment(scale=(1.0, 1.0), ratio=(1.0, 1.0))
    data = MotionClips(root=str(clips), films=FILMS, **(shape | options))
    data.setup()
    return data


@pytest.mark.parametrize("pair", PAIRS)
def test_the_actions_of_a_pair_are_each_other_s_reverse(pair: tuple[str, str], clips: Path) -> None:
    """Bit for bit, as they are decoded from the files."""
    forwards = sorted((clips / "train" / pair[0]).iterdir())
    assert len(forwards) == 6
    for file in forwards:
        one, other = frames_of(file), frames_of(clips / "train" / pair[1] / file.name)
        assert np.array_equal(one, other[::-1])
        assert len(np.unique(one.reshape(8, -1), axis=0)) == 8
        assert not np.array_equal(one, other)


def test_actions_are_what_they_are_called(clips: Path) -> None:
    masks = {name: [] for name in CLASSES}
    data = data_of(clips, val_size=0)
    items = data.split("test")
    batch = items.batch(range(len(items)))
    for label, truth in zip(batch.labels.tolist(), batch.truth, strict=True):
        masks[data.class_names[label]].append(truth.float())

    def change(name: str, of: Any) -> list[float]:
        return [float(of(mask[-1]) - of(mask[0])) for mask in masks[name]]

    def middle(axis: int) -> Any:
        return lambda mask: (mask.sum(1 - axis) * torch.arange(32)).sum() / mask.sum()

    assert all(value < -3 for value in change("left", middle(1)))
    assert all(value > 3 for value in change("dropped", middle(0)))
    assert all(value > 20 for value in change("closer", torch.sum))
    assert all(value < -20 for value in change("covered", torch.sum))
    assert all(value == 0 for value in change("nothing", torch.sum))
    for one, other in PAIRS[:4]:
        of = {"left": middle(1), "dropped": middle(0)}.get(one, torch.sum)
        assert change(other, of) == pytest.approx([-value for value in change(one, of)])
    # A clockwise turn moves what is at the top to the right.
    first, last = masks["turned clockwise"][0][0], masks["turned clockwise"][0][-1]
    turned = Image.fromarray((first * 255).byte().numpy())
    overlap = {
        angle: float((torch.from_numpy(np.asarray(turned.rotate(angle)) > 0) & (last > 0)).sum()) for angle in (-90, 90)
    }
    assert overlap[-90] > overlap[90]


def test_splits_groups_and_truth(clips: Path) -> None:
    data = data_of(clips)
    assert data.class_names == tuple(sorted(CLASSES))
    assert {split: len(data.split(split)) for split in ("train", "val", "test")} == {"train": 66, "val": 11, "test": 22}
    batch = data.split("test").batch(range(22))
    assert batch.truth.shape == (22, 8, 32, 32)
    assert batch.truth.any(dim=(2, 3)).float().mean() > 0.9
    assert len(batch.group.unique()) == 12  # two items a film, one of "nothing"
    shown = batch.inputs[:, 0]
    inside = shown[batch.truth].mean()
    assert inside > shown[~batch.truth].mean()
    assert not hasattr(data.split("train").batch([0]), "truth")


def test_they_are_written_once(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmgraft.data.video.motion_clips.FashionMNIST", None)
    assert write_motion_clips(clips, FILMS) == clips
    monkeypatch.setattr("lmgraft.data.video.motion_clips.write_motion_clips", lambda *given: given[0])
    assert motion_clips.prepare(clips) == clips


def test_orders_that_are_controls(clips: Path) -> None:
    drawn = np.array([0.7, 0.1, 0.9, 0.3])
    assert ordered([2, 4, 6, 8], "time", drawn) == [2, 4, 6, 8]
    assert ordered([2, 4, 6, 8], "shuffled", drawn) == [4, 8, 2, 6]
    assert ordered([2, 4, 6, 8], "one", drawn) == [6, 6, 6, 6]
    still = data_of(clips, order="one").split("test").batch([0, 3])
    assert all(torch.equal(still.inputs[:, :, 0], still.inputs[:, :, t]) for t in range(8))
    mixed = data_of(clips, order="shuffled").split("train")
    one, again = (mixed.__getitems__([Draw(epoch, 0)]).batch.inputs for epoch in (0, 1))
    assert not torch.equal(one, again)
    assert torch.equal(one.sum(2), again.sum(2)) or torch.allclose(one.sum(2), again.sum(2), atol=1e-4)


def test_one_frame_does_not_tell_the_actions_of_a_pair_apart(clips: Path) -> None:
    """A rule learnt from single frames of training stays at chance; from two frames it does not."""
    data = data_of(clips)

    def frames(split: str, pair: tuple[str, str], count: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = [data.class_names.index(name) for name in pair]
        items = data.still(split)
        batch = items.batch([n for n, label in enumerate(items.labels.tolist()) if label in labels])
        if count == 1:
            shown = batch.inputs[:, :1].transpose(1, 2).flatten(0, 1).flatten(1)
            return shown, (batch.labels == labels[1]).repeat_interleave(8)
        return (batch.inputs[:, 0, -1] - batch.inputs[:, 0, 0]).flatten(1), batch.labels == labels[1]

    right = {}
    for count in (1, 2):
        hits = total = 0
        for pair in PAIRS:
            (x, y), (tx, ty) = (frames(split, pair, count) for split in ("train", "test"))
            x, tx = torch.nn.functional.normalize(x), torch.nn.functional.normalize(tx)
            gram = x @ x.T + 1e-2 * torch.eye(len(x))
            rule = torch.linalg.solve(gram, y.float() * 2 - 1)
            hits += int((((tx @ x.T) @ rule > 0) == ty).sum())
            total += len(ty)
        right[count] = (hits, total)
    hits, total = right[1]
    assert binom.cdf(hits, total, 0.5) > 0.025
    assert binom.sf(hits - 1, total, 0.5) > 0.025
    hits, total = right[2]
    assert binom.sf(hits - 1, total, 0.5) < 1e-3
