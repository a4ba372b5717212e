"""lmgraft check-data: every fault of a folder of images is found, named and counted, whatever the number of workers."""

import json
import os

import pytest
from image_trees import WNIDS, encoded, picture, write_folder, write_shards, write_tar

from lmgraft.cli.main import main
from lmgraft.data.image import verify
from lmgraft.data.image.image_files import ImageFiles
from lmgraft.data.image.imagenet_sets import wnids
from lmgraft.data.image.layouts import find_splits
from lmgraft.data.image.reading import Reading
from lmgraft.data.image.twins import twins
from lmgraft.data.image.verify import Looking
from lmgraft.errors import DataError


def quiet(more, bad):
    """Says nothing of the progress."""


def spoil(root):
    """Three unreadable files, and some odd ones."""
    train = root / "train" / WNIDS[0]
    file = train / f"{WNIDS[0]}_1.JPEG"
    file.write_bytes(file.read_bytes()[:500])
    (train / "empty.png").touch()
    (root / "val" / WNIDS[1] / "text.jpg").write_text("not an image")
    (train / "twin.JPEG").write_bytes((train / f"{WNIDS[0]}_0.JPEG").read_bytes())
    (root / "val" / WNIDS[2] / "leak.JPEG").write_bytes((train / f"{WNIDS[0]}_2.JPEG").read_bytes())
    frames = [picture(1, (20, 300)), picture(2, (20, 300))]
    frames[0].save(train / "moving.gif", save_all=True, append_images=frames[1:])


@pytest.mark.parametrize("workers", ["0", "2"])
def test_every_fault_is_named(tmp_path, capsys, workers):
    root = write_folder(tmp_path / "photos", {"train": 70, "val": 2})
    spoil(root)
    assert main(["check-data", str(root), "--workers", workers, "--json", str(tmp_path / "found.json")]) == 1
    out, err = capsys.readouterr()
    for line in (
        f"unreadable: train: {WNIDS[0]}/empty.png: not an image",
        f"unreadable: train: {WNIDS[0]}/{WNIDS[0]}_1.JPEG: ",
        f"unreadable: val: {WNIDS[1]}/text.jpg: not an image",
        "note: 2 images to be seen more than once, equal in every pixel: train: ",
        "note: 1 of them in more than one split",
        "note: 1 of them with different labels",
        "note: train: 1 image with a side of less than 32 pixels",
        "note: train: 1 image with one side more than 5 times the other",
        "note: train: 1 image that made PIL warn or have several frames: ",
        "What to do: copy or fetch 3 unreadable files again",
        "found.json lists them",
        "give --data.max_corrupt 2 --data.max_corrupt_test 1.",
    ):
        assert line in out
    assert "[train] 213 of 213 images" in err
    said = json.loads((tmp_path / "found.json").read_text())
    assert said["wrong"]
    names = [fault["file"] for fault in said["splits"]["train"]["unreadable"]]
    assert names == [f"{WNIDS[0]}/empty.png", f"{WNIDS[0]}/{WNIDS[0]}_1.JPEG"]
    assert said["splits"]["train"]["classes"] == {WNIDS[0]: 73, WNIDS[1]: 70, WNIDS[2]: 70}
    assert said["splits"]["train"]["median_size"] == [50, 40]
    assert sorted(map(sorted, said["duplicates"])) == [
        [f"train: {WNIDS[0]}/{WNIDS[0]}_0.JPEG", f"train: {WNIDS[0]}/twin.JPEG"],
        [f"train: {WNIDS[0]}/{WNIDS[0]}_2.JPEG", f"val: {WNIDS[2]}/leak.JPEG"],
    ]


def test_a_good_folder_of_ones_own(tmp_path, capsys):
    root = write_folder(tmp_path, {"": 4}, classes=("cat", "dog"))
    assert main(["check-data", str(root), "--workers", "0"]) == 0
    out = capsys.readouterr().out
    assert "All images can be read" in out
    assert "unreadable:" not in out


def test_one_class_files_of_other_types_and_other_totals_are_said(tmp_path, capsys):
    root = write_folder(tmp_path / "cats", {"": 4}, classes=("cat",))
    (root / "cat" / "1.heic").write_bytes(b"x")
    (root / "cat" / "broken.jpg").write_bytes(b"x")
    assert main(["check-data", str(root), "--workers", "0", "--json", str(tmp_path / "found.json")]) == 1
    out = capsys.readouterr().out
    assert "cats has one class only: cat" in out
    assert f"note: {root}: 1 file ignored: .heic 1" in out
    assert "--data.max_corrupt 1 --data.max_corrupt_test 1." in out  # which will be held out is not known here
    assert json.loads((tmp_path / "found.json").read_text())["splits"]["train"]["ignored"] == {".heic": 1}
    write_tar(tmp_path / "train.tar", {f"{name}/{name}_1.JPEG": b"x" for name in wnids()})
    main(["check-data", str(tmp_path / "train.tar"), "--classes", "imagenet", "--workers", "0"])
    assert "train.tar has 1,000 images; ImageNet's training split has 1,281,167" in capsys.readouterr().out


def test_classes_that_do_not_agree_are_wrong_but_images_are_looked_at_all_the_same(tmp_path, capsys):
    root = write_folder(tmp_path, {"train": 2, "val": 1})
    (root / "val" / WNIDS[1]).rename(root / "val" / "stray")
    assert main(["check-data", str(root), "--workers", "0"]) == 1
    out = capsys.readouterr().out
    assert f"lacks 1 of 3 classes: {WNIDS[1]}" in out
    assert "mend what is named above" in out
    assert "│ train" in out
    assert main(["check-data", str(root), "--workers", "0", "--classes", "4"]) == 1
    assert "data.classes says 4" in capsys.readouterr().out


def test_a_table_with_missing_files(tmp_path, capsys):
    root = write_folder(tmp_path, {"": 2}, classes=("cat",))
    (tmp_path / "labels.csv").write_text("path,label\ncat/cat_0.JPEG,cat\ncat/9.jpg,cat\n")
    assert main(["check-data", str(root), "--csv", str(tmp_path / "labels.csv"), "--workers", "0"]) == 1
    assert "names 1 file not in" in capsys.readouterr().out


def test_shards_and_recipes(tmp_path, capsys):
    write_shards(tmp_path / "shards", "train", shards=1, each=6)
    write_shards(tmp_path / "shards", "validation", shards=1, each=3)
    assert main(["check-data", str(tmp_path / "shards"), "--dataset", "wds/", "--workers", "0"]) == 0
    assert "RGB 6" in capsys.readouterr().out
    root = write_folder(tmp_path / "photos", {"train": 3, "val": 1})
    (tmp_path / "recipe.yaml").write_text("data: {class_path: lmgraft.data.image.image_files.ImageFiles}\n")
    recipe = str(tmp_path / "recipe.yaml")
    assert main(["check-data", "--recipe", recipe, "--data.root", str(root), "--workers", "0"]) == 0
    assert main(["check-data", "--recipe", recipe, "--data.root", str(root), "--data.classes=4", "--workers", "0"]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "there is no such folder"),
        ([], "no folder was given"),
        (["--recipe", "image/fashion_vitt"], "there is no recipe 'image/fashion_vitt'"),
        ([".", "--crop-pct", "much"], "crop_pct='much' does not fit; it takes float"),
        ([".", "--crp-pct", "1"], "'crop_pct'"),
        ([".", "--workers", "-1"], "--workers -1 is no whole number of at least 0"),
    ],
)
def test_mistakes_in_what_was_asked(arguments, message, capsys):
    assert main(["check-data", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_help_has_examples(capsys):
    assert main(["check-data", "--help"]) == 0
    assert "lmgraft check-data photos" in capsys.readouterr().out
    assert main(["check-data", "--kind", "images", "--help"]) == 0
    assert "--train_split" in capsys.readouterr().out


def test_a_process_that_dies_is_no_hang(tmp_path, monkeypatch):
    root = write_folder(tmp_path, {"train": 2, "val": 1})
    found = find_splits(ImageFiles(root=str(root)).settings)
    monkeypatch.setattr(verify, "_look_at_one", lambda *_: os._exit(1))
    with pytest.raises(DataError, match=r"a process died while it decoded images of .*train"):
        verify.look(found["train"], Looking(found["train"].files, Reading(3)), 1, quiet)


def test_equal_pixels_in_another_file_format_are_twins(tmp_path):
    root = write_folder(tmp_path, {"": 1}, classes=("a", "b"))
    image = picture(5)
    for name in ("x.png", "y.bmp"):
        image.save(root / "a" / name)
    (root / "b" / "z.jpg").write_bytes(encoded(77))
    found = find_splits(ImageFiles(root=str(root)).settings)
    seen = {"train": verify.look(found["train"], Looking(found["train"].files, Reading(3)), 0, quiet)}
    (group,) = twins(found, {"train": seen["train"].digests})
    assert group.names == ("train: a/x.png", "train: a/y.bmp")
