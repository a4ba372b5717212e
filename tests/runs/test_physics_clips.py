"""Physics clips: what is filmed is drawn without knowing the direction; films by PyBullet where it is installed."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lmgraft import records
from lmgraft.data.video import physics_films
from lmgraft.data.video.decoding import read_frames
from lmgraft.data.video.films import DONE, NOTHING, Film
from lmgraft.data.video.physics_clips import PhysicsClips
from lmgraft.data.video.physics_films import (
    CLASSES,
    PAIRS,
    SPLITS,
    Clip,
    PhysicsFilming,
    clips_of,
    make,
    things_of,
    write_physics_clips,
)
from lmgraft.data.video.physics_world import happened
from lmgraft.data.video.transforms import ClipAugment
from lmgraft.errors import DataError, VersionError
from lmgraft.registry import PREPARERS

FEW = PhysicsFilming(train=22, val=11, test=11, size=20, frames=4)


def drawn_film(thing: str, action: str, size: int, frames: int, rng: np.random.Generator) -> Film:
    """Stands for a simulation: every pixel is a draw, and a square moves right."""
    masks = np.zeros((frames, size, size), bool)
    for number in range(frames):
        masks[number, 8:14, 2 + 3 * number : 8 + 3 * number] = True
    return Film(rng.integers(0, 256, (frames, size, size, 3), np.uint8), masks)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(physics_films, "simulate", drawn_film)


def data_of(root: Path, **options: Any) -> PhysicsClips:
    shape = {"img_size": 20, "frames": 4, "batch_size": 6, "eval_batch_size": 22, "num_workers": 0}
    shape["augment"] = ClipAugment(scale=(1.0, 1.0), ratio=(1.0, 1.0))
    data = PhysicsClips(str(root), **(shape | options))
    data.setup()
    return data


def test_no_object_is_in_two_splits_and_every_class_has_as_many_clips() -> None:
    things = {split: set(things_of(split)) for split in SPLITS}
    assert {split: len(names) for split, names in things.items()} == {"train": 875, "val": 125, "test": 250}
    assert len(set.union(*things.values())) == 1250
    clips = list(clips_of(PhysicsFilming()))
    assert len(clips) == len(set(clips)) == 5060
    counts = Counter((clip.split, clip.label) for clip in clips)
    assert {split: {counts[split, label] for label in CLASSES} for split in SPLITS} == {
        "train": {300}, "val": {40}, "test": {120}
    }  # fmt: skip


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize("pair", PAIRS)
def test_what_is_filmed_does_not_know_the_direction(pair: tuple[str, str]) -> None:
    """So frames of both actions have one distribution: were the label another, the frames would be the same ones."""
    for number in range(3):
        (thing, one), (same, other) = (make(Clip("test", number, label), FEW) for label in pair)
        assert thing == same in things_of("test")
        assert np.array_equal(one.frames, other.frames[::-1])
        assert np.array_equal(one.masks, other.masks[::-1])
    firsts = {make(clip, FEW)[1].frames.tobytes() for clip in clips_of(FEW)}
    assert len(firsts) == 44  # no simulation makes two clips


@pytest.mark.usefixtures("drawn")
def test_nothing_is_one_frame_again_and_again() -> None:
    shown = [make(Clip("val", number, NOTHING), FEW)[1].frames for number in range(12)]
    assert all((frames == frames[:1]).all() for frames in shown)
    assert not np.array_equal(shown[0], shown[1])


def test_a_film_that_does_not_show_its_action_is_filmed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted: list[str] = []

    def seldom(thing: str, *rest: Any) -> Film | None:
        wanted.append(thing)
        return drawn_film(thing, *rest) if len(wanted) == 3 else None

    monkeypatch.setattr(physics_films, "simulate", seldom)
    assert make(Clip("train", 0, "fallen"), FEW)[0] == wanted[2]
    assert len(set(wanted)) == 3
    with pytest.raises(DataError, match="'fallen' do not show it"):
        make(Clip("train", 0, "fallen"), FEW)


def test_what_counts_as_having_happened() -> None:
    rng = np.random.default_rng(0)
    right = drawn_film("mesh000", "", 20, 4, rng)
    assert not happened("pushed left", right)
    assert happened("pushed left", right.backwards())
    assert not happened("fallen", right)
    assert happened("fallen", Film(right.frames, right.masks.swapaxes(1, 2)))
    assert happened("covered", Film(right.frames, right.masks & (np.arange(4) < 3)[:, None, None]))
    assert not happened("covered", right)
    assert happened("turned clockwise", right.still(1)._replace(frames=right.frames))
    assert not happened("turned clockwise", right.still(1))  # nothing is seen of it
    assert not happened("rolled closer", right)
    grown = right.masks.copy()
    grown[-1, 5:17, 5:17] = True
    assert happened("rolled closer", Film(right.frames, grown))
    grown[-1, :, 0] = True
    assert not happened("rolled closer", Film(right.frames, grown))  # it leaves the picture


@pytest.mark.usefixtures("drawn")
def test_a_prepared_set_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(physics_films, "models", lambda: tmp_path)
    real = physics_films.metadata.version
    monkeypatch.setattr(physics_films.metadata, "version", lambda name: "3" if name == "pybullet" else real(name))
    for clip in clips_of(FEW):
        physics_films.write_clip(clip, tmp_path, FEW)
    with pytest.raises(DataError, match="lmgraft prepare physics-clips"):
        data_of(tmp_path)
    write_physics_clips(tmp_path, FEW)  # all is there: no process is started
    assert records.read_json(tmp_path / DONE)["versions"] == {"pybullet": "3"}
    monkeypatch.setattr(physics_films, "models", None)  # a whole set asks for nothing
    assert write_physics_clips(tmp_path, FEW) == tmp_path
    with pytest.raises(DataError, match="other settings"):
        write_physics_clips(tmp_path)
    data = data_of(tmp_path)
    assert data.class_names == tuple(sorted(CLASSES))
    items = data.split("test")
    batch = items.batch(range(len(items)))
    assert batch.inputs.shape == (11, 3, 4, 20, 20)
    objects = {items.place(index).rpartition("-")[2] for index in items.indices.tolist()}
    assert len(batch.group.unique()) == len(objects)
    labels = [data.class_names[label] for label in batch.labels.tolist()]
    moved = dict(zip(labels, batch.truth, strict=True))
    assert torch.equal(moved["fallen"], torch.from_numpy(drawn_film("", "", 20, 4, np.random.default_rng()).masks))
    assert torch.equal(moved["lifted"], moved["fallen"].flip(0))


def test_without_pybullet_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pybullet_data", None)
    with pytest.raises(VersionError, match=r"lmgraft\[physics\]"):
        PREPARERS.load("physics-clips")(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_films_of_pybullet_show_what_they_are_called(tmp_path: Path) -> None:
    pytest.importorskip("pybullet")
    films = PhysicsFilming(train=11, val=11, test=22, size=32, frames=4)
    write_physics_clips(tmp_path, films)
    about = records.read_json(tmp_path / DONE)
    assert about["versions"]["pybullet"]
    assert "zlib" in about["licence"]
    data = data_of(tmp_path, img_size=32)
    items = data.split("test")
    batch = items.batch(range(len(items)))
    for row, label in enumerate(batch.labels.tolist()):
        name, file = data.class_names[label], items.place(int(items.indices[row]))
        shown = Film(np.stack([np.asarray(image) for image in read_frames(file, range_of)]), batch.truth[row].numpy())
        first = next((one for one, other in PAIRS if name in (one, other)), "")
        if name == NOTHING:
            assert (shown.frames == shown.frames[:1]).all()
        elif name == first:
            assert happened(first, shown)
        else:
            assert happened(first, shown.backwards())
            assert first == "turned clockwise" or not happened(first, shown)
    clip = Clip("test", 0, "fallen")
    thing, film = make(clip, films)
    assert np.array_equal(film.masks, np.unpackbits(np.load(tmp_path / "truth" / f"{clip.place}-{thing}.npy"), axis=-1))


def range_of(times: Any) -> range:
    return range(len(times))
