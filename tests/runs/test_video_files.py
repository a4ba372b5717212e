"""Clips of videos in files: tables and folders, draws by (seed, epoch, index), views, faults, and whole runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from video_trees import frame, numbered, write_tree

from lmgraft.cli.main import main
from lmgraft.data.loader import Draw
from lmgraft.data.video.clip_set import group_numbers
from lmgraft.data.video.finding import Places, find_clips
from lmgraft.data.video.transforms import ClipAugment, ClipSize, TrainTransform, ViewTransform
from lmgraft.data.video.video_files import VideoFiles
from lmgraft.errors import DataError
from lmgraft.recipes import evaluate_run, read_result
from lmgraft.recipes.predict import load_run
from lmgraft.recipes.recipe import parse_recipe
from lmgraft.training.items import read_items

SMALL = {"img_size": 32, "frames": 4, "batch_size": 2, "eval_batch_size": 3, "num_workers": 0}
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1, 1)


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only."""
    return write_tree(tmp_path_factory.mktemp("videos"))


def data_of(**options: Any) -> VideoFiles:
    data = VideoFiles(**(SMALL | options))
    data.setup()
    return data


def table(file: Path, tree: Path, split: str, separator: str, header: str = "", number: bool = True) -> Path:
    rows = [header] if header else []
    for label, name in enumerate(("down", "up")):
        for path in sorted((tree / split / name).iterdir()):
            rows.append(f"{path.relative_to(tree)}{separator}{label if number else name}")
    file.write_text("\n".join(rows) + "\n")
    return file


class TestFinding:
    def test_folders(self, tree: Path) -> None:
        found = find_clips(Places(root=str(tree)))
        assert {split: len(part.names) for split, part in found.items()} == {"train": 8, "val": 4}
        assert found["val"].labels == ["down", "down", "up", "up"]

    def test_a_folder_linked_to_one_above_it_is_not_entered(self, tree: Path, tmp_path: Path) -> None:
        shutil.copytree(tree, tmp_path / "clips")
        (tmp_path / "clips/train/up/again").symlink_to(tmp_path / "clips/train")
        found = find_clips(Places(root=str(tmp_path / "clips")))
        assert len(found["train"].names) == 8

    @pytest.mark.parametrize(("separator", "word"), [(" ", "a space"), (",", "a comma"), ("\t", "a tab")])
    def test_separators_are_recognised_and_said(self, separator: str, word: str, tree: Path, tmp_path: Path) -> None:
        for split in ("train", "val"):
            table(tmp_path / f"{split}.csv", tree, split, separator)
        data = data_of(root=str(tmp_path), videos=str(tree), val_size=0, classes=2)
        splits = data.splits()
        assert any(word in notice for notice in splits.notices)
        assert splits.class_names == ("0", "1")
        assert {split: len(index) for split, index in splits.index.items()} == {"train": 8, "test": 4, "val": 4}
        assert data.split("test").labels.tolist() == [0, 0, 1, 1]

    def test_one_table_with_column_names(self, tree: Path, tmp_path: Path) -> None:
        rows = [f"val/{name}/0.mp4,{split},{name}" for name in ("up", "down") for split in ("test",)]
        rows += [f"train/{name}/{n}.mp4,{'train' if n else 'val'},{name}" for name in ("up", "down") for n in range(4)]
        (tmp_path / "all.csv").write_text("path,split,label\n" + "\n".join(rows))
        found = find_clips(Places(csv=str(tmp_path / "all.csv"), root=str(tree)))
        assert {split: len(part.names) for split, part in found.items()} == {"train": 6, "val": 2, "test": 2}

    def test_paths_with_spaces(self, tmp_path: Path) -> None:
        for name in ("a b", "c d"):
            numbered(tmp_path / f"{name}.mp4", 2)
        (tmp_path / "train.csv").write_text("a b.mp4 0\nc d.mp4 1\n")
        found = find_clips(Places(root=str(tmp_path)))
        assert (found["train"].names, found["train"].labels) == (["a b.mp4", "c d.mp4"], ["0", "1"])

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("a.mp4;0\nb.mp4;1\n", "no label can be told .*'a.mp4;0'"),
            ("a.mp4,0\nb.mp4 1\n", "line 2: no label"),
            ("a.mp4,0\na.mp4,1\n", "line 1 and again in line 2"),
            ("a.mp4,0\nabsent.mp4,1\n", "names 1 clip not in .*absent.mp4"),
            ("path,label,split\na.mp4,0,trian\n", "line 2: there is no split 'trian'"),
            ("path,label\na.mp4,0,train\n", "line 2: 3 values for the columns path, label"),
            ("a.mp4,0\nb.mp4,\n", "line 2: a path and a label are needed"),
            ("", "names no clip"),
        ],
    )
    def test_tables_that_are_wrong(self, text: str, words: str, tmp_path: Path) -> None:
        for name in ("a", "b"):
            (tmp_path / f"{name}.mp4").write_bytes(b"x")
        (tmp_path / "train.csv").write_text(text)
        with pytest.raises(DataError, match=words):
            find_clips(Places(root=str(tmp_path)))

    def test_labels_out_of_range(self, tree: Path, tmp_path: Path) -> None:
        table(tmp_path / "train.csv", tree, "train", " ")
        rows = table(tmp_path / "val.csv", tree, "val", " ").read_text()
        (tmp_path / "val.csv").write_text(rows.replace("0.mp4 1", "0.mp4 2"))
        with pytest.raises(DataError, match=r"classes of .*val.csv are not those of data.classes.* 2"):
            data_of(root=str(tmp_path), videos=str(tree), val_size=0, classes=2)

    def test_folders_of_frames(self, tmp_path: Path) -> None:
        for name in ("up", "down"):
            for clip in range(3):
                folder = tmp_path / name / f"clip_{clip}"
                folder.mkdir(parents=True)
                for n in range(4):
                    Image.fromarray(frame(n)).save(folder / f"{n}.jpg")
        data = data_of(root=str(tmp_path), val_size=1, test_size=1)
        assert {s: len(data.split(s)) for s in ("train", "val", "test")} == {"train": 4, "val": 1, "test": 1}
        assert data.split("test").batch([0]).inputs.shape == (1, 3, 4, 32, 32)

    def test_nothing_there(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "x.doc").write_text("")
        with pytest.raises(DataError, match=r"holds no videos .* but .doc 1"):
            find_clips(Places(root=str(tmp_path)))
        with pytest.raises(DataError, match="there is no such folder"):
            find_clips(Places(root=str(tmp_path / "absent")))
        with pytest.raises(DataError, match=r"data\.root is missing"):
            find_clips(Places())


class TestClips:
    def test_draws_depend_on_seed_epoch_and_index_alone(self, tree: Path) -> None:
        augment = ClipAugment(auto_augment="rand-m7-n4-mstd0.5-inc1", re_prob=0.5, hflip=0.5)
        data = data_of(root=str(tree), val_size=0, augment=augment)
        train = data.split("train")

        def clip(epoch: int, sample: int, among: list[int]) -> Any:
            batch = train.__getitems__([Draw(epoch, other) for other in among]).batch
            return batch.inputs[among.index(sample)]

        assert torch.equal(clip(0, 3, [3]), clip(0, 3, [1, 3, 2]))
        assert not torch.equal(clip(0, 3, [3]), clip(1, 3, [3]))
        again = train.__getitems__([Draw(0, 3, 1)]).batch.inputs[0]
        assert not torch.equal(clip(0, 3, [3]), again)
        other = data_of(root=str(tree), val_size=0, augment=augment)
        other.seed = 5
        other._sets.clear()
        other.setup()
        assert not torch.equal(other.split("train").batch([3]).inputs[0], clip(0, 3, [3]))

    def test_copies_share_frames_and_index(self, tree: Path) -> None:
        """Two clips of one item: the batch has twice as many rows; the frames are the same, the crops are not."""
        data = data_of(root=str(tree), val_size=0, augment=ClipAugment(scale=(0.3, 0.5), copies=2))
        batch = data.split("train").batch([0, 5])
        assert batch.inputs.shape == (4, 3, 4, 32, 32)
        assert batch.index.tolist() == [0, 0, 5, 5]
        assert batch.labels.tolist() == [0, 0, 1, 1]
        assert not torch.equal(batch.inputs[0], batch.inputs[1])
        levels = batch.inputs[:, 0, :, -1, -1]  # grey, which no crop changes
        assert torch.allclose(levels[0], levels[1], atol=0.02)

    def test_one_random_augment_for_all_frames(self) -> None:
        """Equal frames stay equal, whatever is done to them; and it is not always the same that is done."""
        size = ClipSize(3, 24, 24, (0.5,) * 3, (0.5,) * 3, "bilinear")
        transform = TrainTransform(
            size, ClipAugment(auto_augment="rand-m7-n4-mstd0.5-inc1", re_prob=1.0, re_mode="const")
        )
        noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8))
        clips = torch.empty(8, 3, 3, 24, 24)
        for number, clip in enumerate(clips):
            transform([noise] * 3, np.array([number, 2, 3], np.uint64), clip)
        assert all(torch.equal(clip[:, 0], clip[:, t]) for clip in clips for t in (1, 2))
        assert len({float(clip.sum()) for clip in clips}) == 8

    def test_views_of_a_test_video(self, tree: Path) -> None:
        """Two clips over time, three crops along the longer side; the shorter side is the model's."""
        data = data_of(root=str(tree), val_size=0, views=(2, 3))
        batch = data.split("test").batch([0, 2])
        assert batch.inputs.shape == (12, 3, 4, 32, 32)
        assert batch.index.tolist() == [0] * 6 + [2] * 6
        pixels = ((batch.inputs * STD + MEAN) * 255).round()
        white = [int((clip[0, 0, 2] > 200).sum()) for clip in pixels[:6]]
        assert white == [10, 4, 0] * 2  # the corner on the left, 10.75 columns wide, from the columns 0, 6 and 11 on
        starts, middles = pixels[0, 0, :, -1, -1], pixels[3, 0, :, -1, -1]
        assert not torch.equal(starts, middles)
        assert data.split("val").batch([0]).inputs.shape[0] == 1

    def test_crops(self) -> None:
        size = ClipSize(1, 10, 10, (0.0,) * 3, (1.0,) * 3, "bilinear")
        for shape, lines in (((10, 30), "columns"), ((30, 10), "rows")):
            ramp = np.indices(shape)[0 if lines == "rows" else 1].astype(np.uint8)
            image = Image.fromarray(np.stack([ramp] * 3, -1))
            for part, first in ((0.0, 0), (0.5, 10), (1.0, 20)):
                crop = np.asarray(ViewTransform(size, part).crop(image, Image.Resampling.BILINEAR))[..., 0]
                assert crop.shape == (10, 10)
                assert crop.min() == first

    def test_unreadable_ones(self, tree: Path, tmp_path: Path) -> None:
        """In training the next one stands in, with its label; in tests a blank clip keeps the place."""
        write_tree(tmp_path, train=2, test=1)
        for name in ("train/down/0.mp4", "val/up/0.mp4"):
            (tmp_path / name).write_bytes(b"no video")
        data = data_of(root=str(tmp_path), val_size=0)
        train = data.split("train").__getitems__([Draw(0, 0)])
        assert train.batch.index.tolist() == [1]
        assert [Path(fault.file).name for fault in train.faults] == ["0.mp4"]
        test = data.split("test").__getitems__([Draw(0, 1)])
        assert (test.batch.index.tolist(), test.batch.labels.tolist()) == ([1], [1])
        assert bool((test.batch.inputs == 0).all())
        assert "not a video" in test.faults[0].reason

    def test_messages_call_them_clips(self, tmp_path: Path) -> None:
        write_tree(tmp_path, train=2, test=1)
        with pytest.raises(DataError, match="has 4 clips"):
            data_of(root=str(tmp_path), val_size=4).splits()
        assert "copies of, or links to, 2 clips: " in data_of(root=str(tmp_path), val_size=0).splits().notices[0]

    def test_groups(self) -> None:
        names = ["a/v_a_g01_c01.avi", "a/v_a_g01_c02.avi", "a/v_a_g02_c01.avi", "b/other.avi"]
        assert group_numbers(names, None).tolist() == [0, 1, 2, 3]
        assert group_numbers(names, r"_(g\d+)_").tolist() == [0, 0, 2, 3]


RECIPE = """
seed: 1
arm: llm
graft: {{llm: {llm}, layer: -1}}
backbone: {{factory: videomae, name: videomae_small, kwargs: {{embed_dim: 24, depth: 2, num_heads: 2, patch_size: 16}}}}
data:
  class_path: lmgraft.data.video.video_files.VideoFiles
  init_args: {{root: {root}, img_size: 32, frames: 4, batch_size: 4, eval_batch_size: 3, views: [2, 2], num_workers: 0,
    val_size: 0.25, augment: {{copies: 2}}, max_corrupt: 1}}
task: {{init_args: {{mixup: 0.8, cutmix: 1.0, label_smoothing: 0.1, views: probabilities}}}}
optim: {{lr: 0.003, layer_decay: 0.7, warmup_epochs: 1, warmup_rise: zero_to_peak}}
train: {{epochs: 2, save_every: 1, log_every: 1, accelerator: cpu}}
"""


@pytest.mark.filterwarnings("ignore::lmgraft.data.base.UnreadableItemWarning")
def test_a_run_from_check_to_prediction(tree: Path, tmp_path: Path, llama_folder: Path, capsys: Any) -> None:
    file, run = tmp_path / "clips.yaml", tmp_path / "run"
    root = write_tree(tmp_path / "tree", train=6)
    (root / "train" / "up" / "3.mp4").write_bytes(b"no video")
    file.write_text(RECIPE.format(llm=llama_folder, root=root))
    assert main(["check-data", "--recipe", str(file), "--workers", "0", "--json", str(tmp_path / "x.json")]) == 1
    said = capsys.readouterr().out
    assert "unreadable: train:" in said
    assert "--data.max_corrupt 1" in said
    assert json.loads((tmp_path / "x.json").read_text())["splits"]["val"]["median_frames"] == 10
    assert main(["train", str(file), "--out", str(run)]) == 0
    result = read_result(run)
    assert (result.items, result.selection, set(result.by["class"])) == (4, "val", {"up", "down"})
    assert len(read_items(run)["index"]) == 4
    assert evaluate_run(run)[0].metrics == result.metrics
    rows = load_run(run).predict([tree / "val" / "up", tree / "val" / "down" / "0.mp4"])
    assert len(rows) == 3
    assert set(rows[0]) == {"file", "up", "down"}


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixup_of_clips(kind: str, tree: Path, llama_folder: Path) -> None:
    """What is mixed or cut is so in the same place of every frame."""
    recipe = parse_recipe(RECIPE.format(llm=llama_folder, root=tree), [f"--task.{kind}", "0"])
    task = recipe.task(torch.nn.Identity())
    clips = torch.zeros(2, 3, 4, 8, 8)
    clips[1] = 1
    np.random.seed(3)
    batch = recipe.data.example(2)._replace(inputs=clips)
    mixed = task.mixed(batch).inputs
    assert mixed.shape == (2, 3, 4, 8, 8)
    assert all(torch.equal(mixed[:, :, 0], mixed[:, :, t]) for t in range(1, 4))
    assert len(mixed[0].unique()) == (2 if kind == "mixup" else 1) or 0 < float(mixed[0].mean()) < 1


def test_probabilities_of_views_are_averaged(tree: Path, llama_folder: Path) -> None:
    recipe = parse_recipe(RECIPE.format(llm=llama_folder, root=tree))
    logits = torch.tensor([[0.0, 4.0], [1.0, 0.0], [1.0, 0.0], [200.0, -200.0]])
    batch = recipe.data.example(4)._replace(index=torch.tensor([0, 0, 0, 7]), labels=torch.tensor([0, 0, 0, 1]))
    for views, expected in (
        ("probabilities", logits.softmax(1)[:3].mean(0)),
        ("logits", logits[:3].mean(0).softmax(0)),
    ):
        recipe.task_options["views"] = views
        columns = recipe.task(torch.nn.Identity()).columns(batch._replace(inputs=logits))
        assert columns["nll"][0] == pytest.approx(-float(expected[0].log()), rel=1e-5)
        assert columns["index"].tolist() == [0, 7]
        assert np.isfinite(columns["nll"]).all()
