"""Folders as people have them: links, copies, what systems leave behind, and trees of another shape."""

import json
import unicodedata

import numpy as np
import pytest
import torch
from image_trees import encoded, image_files, picture, shown, write_folder, write_tar
from PIL import Image

from lmgraft.cli.main import main
from lmgraft.data.files import as_names, say_once
from lmgraft.data.holdout import name_hashes
from lmgraft.data.image.layouts import find_splits
from lmgraft.data.image.twins import sketch
from lmgraft.errors import DataError

HALF = {"test_size": 0.3, "val_size": 0.3}


@pytest.fixture(autouse=True)
def _nothing_said_before():
    say_once.cache_clear()


def parts_of(data):
    return {split: set(shown(data, split)) for split in ("train", "val", "test")}


def test_copies_and_links_lie_on_one_side_of_every_split(tmp_path, capsys):
    root = write_folder(tmp_path, {"": 20}, classes=("cat", "dog"))
    for name in ("cat", "dog"):
        for i in range(20):
            original = root / name / f"{name}_{i}.JPEG"
            if i % 2:
                (root / name / f"copy_{i}.jpg").write_bytes(original.read_bytes())
            else:
                (root / name / f"link_{i}.jpg").symlink_to(original)
    parts = parts_of(image_files(root, **HALF))
    assert all(len(part) >= 8 for part in parts.values())
    for names in parts.values():
        for other in (name for name in names if "_" in name):
            stem = other.rsplit("_", 1)[1].split(".")[0]
            assert sum(name.startswith(other.split("/")[0]) and f"_{stem}." in name for name in names) == 2
    assert "80 files are copies of, or links to, 40 images: cat/cat_0.JPEG = cat/link_0.jpg" in capsys.readouterr().err


def test_the_old_split_is_made_again_by_its_version(tmp_path):
    """By a hash of each name as it is spelt on disk, whatever is in the files."""
    root = write_folder(tmp_path, {"": 40}, classes=("cat", "dog"))
    (root / "cat" / "copy.jpg").write_bytes((root / "cat" / "cat_3.JPEG").read_bytes())
    (root / "cat" / unicodedata.normalize("NFD", "ö.jpg")).write_bytes(encoded(1000))
    data = image_files(root, split_version=1, **HALF)
    for split, names in parts_of(data).items():
        low, high = {"test": (0, 0.3), "val": (0.3, 0.6), "train": (0.6, 1)}[split]
        assert all(low <= value < high for value in name_hashes(as_names(sorted(names))))


def test_one_image_under_two_labels_is_said(tmp_path, capsys):
    root = write_folder(tmp_path, {"": 9}, classes=("cat", "dog"))
    (root / "puma").symlink_to(root / "cat")
    data = image_files(root, **HALF)
    assert data.class_names == ("cat", "dog", "puma")
    assert "9 of these lie under different classes: one of their labels is wrong" in capsys.readouterr().err


def test_equal_files_in_splits_of_their_own_are_said(tmp_path, capsys):
    root = write_folder(tmp_path, {"train": 6, "test": 3}, classes=("cat", "dog"))
    (root / "test" / "cat" / "leak.jpg").write_bytes((root / "train" / "cat" / "cat_1.JPEG").read_bytes())
    image_files(root)
    assert "1 of these lie in several splits: accuracy on them is no evidence" in capsys.readouterr().err


def test_files_that_cannot_be_read_are_equal_to_no_other(tmp_path, capsys, monkeypatch):
    root = write_folder(tmp_path, {"train": 6, "test": 2}, classes=("cat", "dog"))
    for split in ("train", "test"):  # of one size, and the first of their split
        (root / split / "cat" / "a.jpg").write_bytes(split.ljust(500).encode())

    def unreadable(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("lmgraft.data.image.tables.read_range", unreadable)
    image_files(root)
    assert "copies of" not in capsys.readouterr().err


def test_a_link_back_to_the_root_is_not_followed(tmp_path):
    root = write_folder(tmp_path / "photos", {"": 30}, classes=("cat", "dog"))
    (root / "cat" / "all").symlink_to(root)
    (root / "again").symlink_to(root)
    found = find_splits(image_files(root, **HALF).settings)["train"]
    assert len(found.names) == 60
    assert set(found.labels) == {"cat", "dog"}
    assert found.ignored == {
        "again/ (a link back to a folder above it)": 1, "all/ (a link back to a folder above it)": 1,
    }  # fmt: skip


def test_a_mac_and_a_linux_copy_of_one_folder_have_one_split(tmp_path):
    kinds = {}
    for form in ("NFC", "NFD"):
        root = tmp_path / form
        for label in ("Käse", "Brot"):
            folder = root / unicodedata.normalize(form, label)
            folder.mkdir(parents=True)
            for i in range(20):
                key = i + 100 * (label == "Brot")
                (folder / unicodedata.normalize(form, f"{'äöü'[i % 3]}{i}.jpg")).write_bytes(encoded(key))
        kinds[form] = image_files(root, **HALF)
    assert parts_of(kinds["NFC"]) == parts_of(kinds["NFD"])
    assert kinds["NFC"].fingerprint() == kinds["NFD"].fingerprint()
    one, other = (data.split("train").batch(range(4)).inputs for data in kinds.values())
    assert torch.equal(one, other)


def test_what_systems_leave_behind_is_no_class(tmp_path, capsys):
    root = write_folder(tmp_path / "nas", {"": 9}, classes=("cat", "dog"))
    for folder in ("@eaDir/cat_0.JPEG", "cat/@eaDir/cat_1.JPEG", "__MACOSX/cat", "cat/.thumbnails", ".Trash-1000"):
        (root / folder).mkdir(parents=True)
        (root / folder / "SYNOPHOTO_THUMB.jpg").write_bytes(encoded(0))
    data = image_files(root)
    assert data.class_names == ("cat", "dog")
    ignored = find_splits(data.settings)["train"].ignored
    assert ignored == {"@eaDir/": 2, ".Trash-1000/": 1, ".thumbnails/": 1, "__MACOSX/": 1}
    assert main(["check-data", str(root), "--workers", "0"]) == 0
    assert "5 files ignored: @eaDir/ 2, .Trash-1000/ 1" in capsys.readouterr().out
    files = {f"{name}/{i}.jpg": encoded(i + 9 * (name == "b")) for name in "ab" for i in range(9)}
    write_tar(tmp_path / "x.tar", files | {"__MACOSX/a/1.jpg": b"x"})
    assert image_files(tmp_path / "x.tar").class_names == ("a", "b")


def test_a_deeper_tree_is_described_and_the_outer_folder_can_be_the_class(tmp_path, capsys):
    root = tmp_path / "photos"
    for key, name in enumerate(f"{animal}/{year}" for animal in ("cat", "dog") for year in (2019, 2020)):
        (root / name).mkdir(parents=True)
        for i in range(9):
            (root / name / f"{i}.jpg").write_bytes(encoded(9 * key + i))
    assert image_files(root).class_names == ("2019", "2020")
    line = capsys.readouterr().err
    assert "images lie 2 folders deep (36); the innermost folder is the class (2: 2019, 2020)" in line
    assert "data.class_folder=outer would make it 2 (cat, dog)" in line
    assert image_files(root, class_folder="outer").class_names == ("cat", "dog")
    assert main(["check-data", str(root), "--workers", "0", "--class-folder", "outer"]) == 0
    assert "the outermost folder is the class (2: cat, dog)" in capsys.readouterr().out


def test_classes_called_train_and_test(tmp_path, capsys):
    root = write_folder(tmp_path, {"": 9}, classes=("train", "test", "walk"))
    with pytest.raises(
        DataError, match=r"train holds images outside .*(?s:.)*if train itself is a class, give data\.layout=classes"
    ):
        image_files(root)
    assert image_files(root, layout="classes").class_names == ("test", "train", "walk")
    splits = write_folder(tmp_path / "x", {"train": 6, "test": 3, "walk": 3}, classes=("a", "b"))
    image_files(splits)
    assert "test and train are read as splits, and the folders walk are not read" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"has no split but no train folder"):
        image_files(write_folder(tmp_path / "y", {"": 3}, classes=("a", "b")), layout="splits")


def test_a_broken_link_is_called_so(tmp_path, capsys):
    root = write_folder(tmp_path, {"": 9}, classes=("cat", "dog"))
    (root / "cat" / "gone.jpg").symlink_to(tmp_path / "elsewhere.jpg")
    assert main(["check-data", str(root), "--workers", "0"]) == 1
    assert (
        f"cat/gone.jpg: a link to {tmp_path / 'elsewhere.jpg'}, which is not there: mend the link"
        in capsys.readouterr().out
    )


def test_check_data_counts_what_will_be_held_out_and_names_everything(tmp_path, capsys):
    root = write_folder(tmp_path / "photos", {"": 20}, classes=("class10", "class2"))
    for mode in ("L", "P", "RGBA", "CMYK", "1"):
        picture(7, mode=mode).save(root / "class2" / f"{mode}.{'jpg' if mode == 'CMYK' else 'png'}")
    data = image_files(root)
    assert main(["check-data", str(root), "--workers", "0", "--json", str(tmp_path / "f.json")]) == 0
    out = capsys.readouterr().out
    held_out = {split: len(data.split(split)) for split in ("test", "val")}
    found = json.loads((tmp_path / "f.json").read_text())
    assert found["held_out"] == held_out
    assert list(found["splits"]["train"]["classes"]) == ["class2", "class10"] == list(data.class_names)
    assert found["splits"]["train"]["modes"] == {"RGB": 40, "L": 1, "P": 1, "RGBA": 1, "CMYK": 1, "1": 1}
    assert "(held" in out
    assert out.index("class2") < out.index("class10")


def test_nearly_equal_images_are_found_on_request(tmp_path, capsys):
    root = write_folder(tmp_path, {"": 12}, classes=("cat", "dog"))
    original = Image.open(root / "cat" / "cat_4.JPEG")
    original.save(root / "dog" / "again.jpg", quality=60)
    original.resize((80, 64)).save(root / "dog" / "larger.png")
    assert main(["check-data", str(root), "--workers", "0"]) == 0
    assert "nearly" not in capsys.readouterr().out
    assert main(["check-data", str(root), "--workers", "0", "--near", "--json", str(tmp_path / "f.json")]) == 0
    assert (
        "images to be seen again in a picture that shows nearly the same: train: cat/cat_4.JPEG = train: dog/"
        in capsys.readouterr().out
    )
    pairs = json.loads((tmp_path / "f.json").read_text())["near_duplicates"]
    assert [sorted(pair) for pair in pairs][:2] == [
        ["train: cat/cat_4.JPEG", f"train: dog/{name}"] for name in ("again.jpg", "larger.png")
    ]
    assert len(pairs) <= 3
    assert sketch(Image.new("RGB", (50, 50))) == bytes(32)
    deep = torch.from_numpy(np.array(original.convert("L")) / 255).float()[None]
    bits = np.frombuffer(sketch(deep), np.uint8) ^ np.frombuffer(sketch(original), np.uint8)
    assert np.unpackbits(bits).sum() <= 12


def test_pillows_warnings_do_not_reach_a_training(tmp_path, recwarn):
    root = write_folder(tmp_path, {"": 9}, classes=("cat", "dog"))
    image = Image.new("P", (40, 40), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.save(root / "cat" / "palette.png", transparency=b"\x00\xff")
    for reading in ("viewer", "timm"):
        data = image_files(root, reading=reading, test_size=0.3)
        for split in ("train", "test", "val"):
            data.split(split).batch(range(len(data.split(split))))
    assert not recwarn.list
