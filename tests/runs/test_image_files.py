"""Images in files: layouts, classes, held-out shares, and what is refused before training."""

import csv
import io
import json
import os
import shutil
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from image_trees import WNIDS, encoded, image_files, shown, tar_of, write_folder, write_shards, write_tar
from PIL import Image
from timm.data.readers.reader_image_folder import ReaderImageFolder
from timm.data.readers.reader_image_in_tar import ReaderImageInTar

from lmgraft.data.files import as_names
from lmgraft.data.holdout import hold_out, name_hashes
from lmgraft.data.image.image_files import ImageFiles
from lmgraft.data.image.imagenet_sets import IMAGES, wnids
from lmgraft.data.image.layouts import find_splits
from lmgraft.data.image.tables import ImageTable
from lmgraft.data.image.tars import members
from lmgraft.data.image.transforms import Augment
from lmgraft.errors import DataError, VersionError
from lmgraft.recipes.recipe import parse_recipe


def test_imagenets_layout_is_read_as_timm_reads_it(tmp_path):
    root = write_folder(tmp_path, {"train": 12, "val": 2})
    data = image_files(root, val_size=0)
    assert data.class_names == WNIDS
    assert (data.num_classes, data.in_chans, data.img_size) == (3, 3, (32, 32))
    for split, folder in (("train", "train"), ("test", "val")):
        theirs = ReaderImageFolder(str(root / folder))
        assert shown(data, split) == theirs.filenames()
        assert data.split(split).labels.tolist() == [label for _, label in theirs.samples]


def test_class_folders_in_natural_order_and_ties_that_do_not_depend_on_the_file_system(tmp_path):
    root = write_folder(tmp_path, {"train": 1, "val": 1}, classes=("class10", "Class2", "class2"))
    for key, name in enumerate(("01.jpg", "1.jpg", "001.jpg", "10.png", "9.webp")):
        (root / "train" / "class2" / name).write_bytes(encoded(10 + key))
    data = image_files(root, val_size=0)
    assert data.class_names == ("Class2", "class2", "class10")
    assert shown(data, "train")[:5] == [f"class2/{n}" for n in ("001.jpg", "01.jpg", "1.jpg", "9.webp", "10.png")]


def test_a_tar_a_split_with_three_levels_of_names(tmp_path):
    for split, count in (("train", 4), ("val", 1)):
        files = {f"x/{name}/{name}_{i}.JPEG": encoded(i) for name in reversed(WNIDS) for i in range(count)}
        write_tar(tmp_path / f"{split}.tar", files | {"x/readme.txt": b"not an image"})
    data = image_files(tmp_path, val_size=0)
    theirs = ReaderImageInTar(str(tmp_path / "train.tar"))
    assert data.class_names == WNIDS == tuple(theirs.class_name_to_idx)
    assert shown(data, "train") == theirs.filenames()
    assert data.split("train").labels.tolist() == theirs.targets.tolist()
    images = data.split("test")
    assert np.array_equal(np.asarray(images.table.files.open(1)), np.asarray(data.raw_test()[1][0]))


def test_tars_in_a_tar_and_a_tar_a_class_as_imagenet_is_distributed(tmp_path):
    classes = {
        name: tar_of({f"{name}_{i}.JPEG": encoded(i + 10 * k) for i in range(5)}) for k, name in enumerate(WNIDS)
    }
    nested = write_tar(tmp_path / "ILSVRC2012_img_train.tar", {f"{name}.tar": inner for name, inner in classes.items()})
    (tmp_path / "folder").mkdir()
    for name, inner in classes.items():
        (tmp_path / "folder" / f"{name}.tar").write_bytes(inner)
    a, b = (image_files(root, val_size=0.2, test_size=0.2) for root in (nested, tmp_path / "folder"))
    theirs = ReaderImageInTar(str(nested))
    assert a.class_names == b.class_names == tuple(theirs.class_name_to_idx)
    assert a.split("train").table.labels.tolist() == b.split("train").table.labels.tolist() == theirs.targets.tolist()
    for i in range(len(theirs)):
        table, name = a.split("train").table, theirs.filename(i)
        key = int(name.removesuffix(".JPEG").partition("_")[2]) + 10 * int(table.labels[i])
        assert np.array_equal(np.asarray(table.files.open(i)), np.asarray(create_from(encoded(key))))


def test_a_damaged_tar_is_named(tmp_path):
    files = {f"{name}/{i}.JPEG": encoded(i) for name in WNIDS for i in range(5)}
    whole = write_tar(tmp_path / "whole.tar", files).read_bytes()
    middle = whole.index(WNIDS[1].encode())  # a header
    broken = {
        "in_data.tar": whole[: middle - 600],
        "in_header.tar": whole[: middle + 100],
        "between.tar": whole[:middle],
        "flipped.tar": whole[:middle] + b"x" + whole[middle + 1 :],
        "gzip.tar": b"\x1f\x8b" + whole[2:],
    }
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"{name} is no whole tar file"):
            list(members(tmp_path / name))


@pytest.mark.parametrize("as_json", [False, True])
def test_webdatasets_shards_by_pattern_glob_name_and_info(tmp_path, as_json):
    write_shards(tmp_path, "train", shards=3, each=6, as_json=as_json)
    write_shards(tmp_path, "validation", shards=1, each=6, as_json=as_json)
    info = {"splits": {"training": {"filenames": [f"imagenet-train-{i:04d}.tar" for i in range(3)]}}}
    (tmp_path / "_info.json").write_text(json.dumps(info))
    fingerprints = set()
    for named in ("train", "imagenet-train-{0000..0002}.tar|18", "imagenet-train-*.tar", "training"):
        data = image_files(tmp_path, dataset="wds/", train_split=named, val_size=3, classes=["a", "b", "c"])
        assert data.class_names == ("a", "b", "c")
        assert data.split("train").table.labels.tolist() == [key % 3 for key in range(18)]
        assert (len(data.split("train")), len(data.split("val")), len(data.split("test"))) == (15, 3, 6)
        fingerprints.add(json.dumps(data.fingerprint()))
    assert len(fingerprints) == 1
    image, label = data.raw_test()[4]
    assert label == 1
    assert np.array_equal(np.asarray(image), np.asarray(create_from(encoded(4))))


def create_from(content):
    return Image.open(io.BytesIO(content)).convert("RGB")


def test_shards_that_are_missing_remote_or_without_labels(tmp_path):
    write_shards(tmp_path, "train", shards=2, each=3)
    for options, message in (
        ({"train_split": "imagenet-train-{0000..0003}.tar"}, "lacks 2 of 4 shards: imagenet-train-0002.tar"),
        ({"train_split": "other"}, "no shards of 'other'"),
        ({"train_split": "https://host/train-{0..9}.tar"}, "on this machine's disks"),
        ({}, "no shards of 'validation'"),
    ):
        with pytest.raises(DataError, match=message):
            image_files(tmp_path, dataset="wds/", **options)
    write_tar(tmp_path / "imagenet-validation-0.tar", {"k.jpg": encoded(0), "k.txt": b"a dog"})
    with pytest.raises(DataError, match=r"the sample k has neither a number in \.cls nor a label"):
        image_files(tmp_path, dataset="wds/")


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")  # theirs
def test_webdataset_package_reads_the_same_samples(tmp_path):
    """The format's own reader as the oracle."""
    wds = pytest.importorskip("webdataset")
    write_shards(tmp_path, "train", shards=1, each=6)
    write_shards(tmp_path, "validation", shards=1, each=3)
    data = image_files(tmp_path, dataset="wds/", val_size=0)
    theirs = list(wds.WebDataset(str(tmp_path / "imagenet-train-0000.tar"), shardshuffle=False).decode("pil"))
    assert [int(sample["cls"]) for sample in theirs] == data.split("train").labels.tolist()
    for i, sample in enumerate(theirs):
        assert np.array_equal(np.asarray(sample["jpg"]), np.asarray(data.split("train").table.files.open(i)))


def test_hugging_face_data_sets(tmp_path):
    datasets = pytest.importorskip("datasets")
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    names = ["dog", "cat", "ant"]  # not in natural order: the data set's own order counts
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    folder = tmp_path / "set"
    folder.mkdir()
    for split, count in (("train", 9), ("test", 3)):
        rows = [{"image": {"bytes": encoded(i), "path": f"{i}.jpg"}, "label": i % 3} for i in range(count)]
        table = arrow.Table.from_pylist(rows, schema=features.arrow_schema)
        parquet.write_table(table, folder / f"{split}-00000-of-00001.parquet")
    data = image_files(tmp_path / "cache", dataset=f"hfds/{folder}", test_split="test", val_size=3)
    assert data.class_names == tuple(names)
    assert data.split("test").labels.tolist() == [0, 1, 2]
    assert np.array_equal(np.asarray(data.raw_test()[2][0]), np.asarray(create_from(encoded(2))))
    # Told apart by the images' sizes, wherever they lie; rows that name files, by the set's own fingerprint.
    assert data.split("test").table.sizes.tolist() == [len(encoded(i)) for i in range(3)]
    copy = shutil.copytree(folder, tmp_path / "copy")
    again = image_files(tmp_path / "cache", dataset=f"hfds/{copy}", test_split="test", val_size=3)
    assert again.fingerprint()["sha256"] == data.fingerprint()["sha256"]
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_bytes(encoded(i))
    rows = [{"image": {"bytes": None, "path": str(tmp_path / f"{i}.jpg")}, "label": i} for i in range(3)]
    parquet.write_table(
        arrow.Table.from_pylist(rows, schema=features.arrow_schema), copy / "test-00000-of-00001.parquet"
    )
    named = find_splits(replace(again.settings, root=str(tmp_path / "other")))["test"]
    assert named.sizes.tolist() == [-1, -1, -1]
    assert named.contents


def test_a_hugging_face_data_set_without_the_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(VersionError, match=r"(?s)needs the package 'datasets'.*pip install datasets"):
        image_files(None, dataset="hfds/beans")


@pytest.mark.parametrize(
    ("dataset", "message"),
    [("hfids/beans", "is a stream"), ("tfds/x", "is a stream"), ("x/y", "no reader x/"), ("y", "no such kind")],
)
def test_readers_that_cannot_repeat_a_draw_are_refused(tmp_path, dataset, message):
    with pytest.raises(DataError, match=message):
        image_files(tmp_path, dataset=dataset)


def test_torchvisions_data_sets(tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for half, size in (("train", 40), ("t10k", 10)):
        pixels = rng.integers(0, 255, (size, 28, 28))
        for name, array in (("images-idx3-ubyte", pixels), ("labels-idx1-ubyte", np.arange(size) % 10)):
            head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape)
            (raw / f"{half}-{name}").write_bytes(head + array.astype(np.uint8).tobytes())
    data = image_files(tmp_path, dataset="torch/fashion_mnist", in_chans=1, val_size=10)
    assert data.class_names[:2] == ("T-shirt/top", "Trouser")
    assert data.split("test").labels.tolist() == list(range(10))
    assert np.array_equal(np.asarray(data.raw_test()[3][0]), pixels[3])
    for name, message in (("cifar10", "torch/cifar10"), ("nonsense", "torch/nonsense.*Unknown")):
        with pytest.raises(DataError, match=message):
            image_files(tmp_path, dataset=f"torch/{name}")


class TestCsv:
    def write(self, tmp_path, rows, header=("path", "label"), images=30):
        (tmp_path / "photos").mkdir(exist_ok=True)
        for i in range(images):
            (tmp_path / "photos" / f"{i}.jpg").write_bytes(encoded(i))
        with open(tmp_path / "labels.csv", "w", newline="") as file:
            csv.writer(file).writerows([header, *rows])
        return str(tmp_path / "labels.csv")

    def rows(self, count=30):
        return [(f"photos/{i}.jpg", ("cat", "dog")[i % 2]) for i in range(count)]

    def test_paths_beside_the_table_or_below_root(self, tmp_path):
        table = self.write(tmp_path, self.rows())
        data = image_files(None, csv=table)
        assert data.class_names == ("cat", "dog")
        sizes = {split: len(data.split(split)) for split in ("train", "val", "test")}
        assert sum(sizes.values()) == 30
        (tmp_path / "elsewhere").mkdir()
        moved = tmp_path / "elsewhere" / "labels.csv"
        os.rename(table, moved)
        assert image_files(tmp_path, csv=str(moved)).fingerprint() == data.fingerprint()

    def test_a_split_column_is_followed(self, tmp_path):
        splits = ["train"] * 20 + ["validation"] * 4 + ["test"] * 6
        rows = [(*row, split) for row, split in zip(self.rows(), splits, strict=True)]
        data = image_files(None, csv=self.write(tmp_path, rows, ("path", "label", "split")))
        assert [len(data.split(split)) for split in ("train", "val", "test")] == [20, 4, 6]
        assert data.selection == "val"

    def test_a_small_test_split_of_a_table_may_lack_classes_but_has_no_new_ones(self, tmp_path):
        splits = ["train"] * 28 + ["test"] * 2
        rows = [
            (name, "cat" if split == "test" else label, split)
            for (name, label), split in zip(self.rows(), splits, strict=True)
        ]
        table = self.write(tmp_path, rows, ("path", "label", "split"))
        assert image_files(None, csv=table).split("test").labels.tolist() == [0, 0]
        rows[-1] = (rows[-1][0], "cow", "test")
        with pytest.raises(DataError, match=r"has 1 that are not among them: cow"):
            image_files(None, csv=self.write(tmp_path, rows, ("path", "label", "split")))

    def test_numbers_with_a_list_of_names(self, tmp_path):
        rows = [(name, str(i % 2)) for i, (name, _) in enumerate(self.rows())]
        data = image_files(None, csv=self.write(tmp_path, rows), classes=["cat", "dog"])
        assert data.class_names == ("cat", "dog")
        assert set(data.split("train").table.labels.tolist()) == {0, 1}

    @pytest.mark.parametrize(
        ("rows", "header", "message"),
        [
            (["0.jpg,cat", "0.jpg,dog"], "path,label", r"0\.jpg in line 2 and again in line 3"),
            (
                ["0.jpg,cat", "n/1.jpg,cat", "n/2.jpg,x"],
                "path,label",
                r"names 2 files not in .*n/1.jpg, n/2.jpg",
            ),
            (["0.jpg,"], "path,label", r"line 2: a path and a label are needed"),
            (["0.jpg,a,b"], "path,label", r"line 2: a path and a label are needed"),
            (["0.jpg"], "path,label", r"line 2: a path and a label are needed"),
            (["0.jpg,a,dev"], "path,label,split", r"line 2: there is no split 'dev'"),
            (["0.jpg,a,test"], "path,label,split", r"has no images for training"),
            (["0.jpg,a"], "file,class", r"has the columns class, file"),
            ([], "path,label", r"names no image"),
            ([], "", r"has the columns \(none\)"),
        ],
    )
    def test_a_table_that_is_not_right(self, tmp_path, rows, header, message):
        (tmp_path / "0.jpg").write_bytes(encoded(0))
        (tmp_path / "labels.csv").write_text("\n".join([header, *rows]))
        with pytest.raises(DataError, match=message):
            image_files(None, csv=str(tmp_path / "labels.csv"))

    def test_a_table_that_cannot_be_read(self, tmp_path):
        with pytest.raises(DataError, match=r"cannot be read: No such file"):
            image_files(None, csv=str(tmp_path / "none.csv"))
        (tmp_path / "utf16.csv").write_text("path,label\n", encoding="utf-16")
        with pytest.raises(DataError, match=r"no comma-separated table in UTF-8"):
            image_files(None, csv=str(tmp_path / "utf16.csv"))


class TestClasses:
    def test_a_stray_or_missing_class_folder_is_named(self, tmp_path):
        root = write_folder(tmp_path, {"train": 2, "val": 1})
        (root / "val" / WNIDS[1]).rename(root / "val" / "n99999999")
        with pytest.raises(
            DataError,
            match=rf"(?s)val are not those of .*train; it lacks 1 of 3 classes: {WNIDS[1]} and has 1 .*n99999999",
        ):
            image_files(root)

    def test_a_class_folder_without_images_is_named(self, tmp_path):
        root = write_folder(tmp_path, {"train": 2, "val": 1})
        for split in ("train", "val"):
            (root / split / "n02000000").mkdir()
        with pytest.raises(DataError, match=r"train has 1 class folder without an image: n02000000"):
            image_files(root)

    def test_images_outside_of_class_folders_and_hidden_folders(self, tmp_path):
        root = write_folder(tmp_path, {"train": 2, "val": 1})
        stray = root / "train" / "stray.jpg"
        stray.write_bytes(encoded(0))
        with pytest.raises(DataError, match=r"outside of any class folder: stray\.jpg"):
            image_files(root)
        stray.unlink()
        for split in ("train", "val"):
            (root / split / ".ipynb_checkpoints").mkdir()
            (root / split / ".ipynb_checkpoints" / "a.jpg").write_bytes(encoded(0))
        data = image_files(root, batch_size=3, val_size=0.3)
        assert data.class_names == WNIDS

    def test_imagenets_list(self, tmp_path):
        root = write_folder(tmp_path, {"train": 2, "val": 1})
        with pytest.raises(
            DataError, match=r"not those of data\.classes; it lacks 997 of 1,000 classes: n01491361, .*992 more"
        ):
            image_files(root, classes="imagenet")
        assert ImageFiles(root="nowhere", classes="imagenet").num_classes == 1000  # known without the files

    def test_how_many_names_in_order_and_a_file_of_them(self, tmp_path):
        root = write_folder(tmp_path / "data", {"train": 4, "val": 1})
        assert image_files(root, classes=3).class_names == WNIDS
        with pytest.raises(DataError, match=r"has 3 classes, data\.classes says 4"):
            image_files(root, classes=4)
        backwards = list(reversed(WNIDS))
        (tmp_path / "classes.txt").write_text("\n".join(backwards) + "\n")
        for said in (backwards, str(tmp_path / "classes.txt")):
            data = image_files(root, classes=said)
            assert data.class_names == tuple(backwards)
            assert data.split("test").labels.tolist() == [2, 1, 0]
        with pytest.raises(DataError, match=r"classes names a class twice: a"):
            image_files(root, classes=["a", "a"])

    def test_a_stray_folder_with_a_number_for_a_name_is_no_class(self, tmp_path):
        root = write_folder(tmp_path, {"train": 4, "val": 1})
        (root / "train" / "1").mkdir()
        (root / "train" / "1" / "a.jpg").write_bytes(encoded(0))
        with pytest.raises(DataError, match=r"has 1 that are not among them: 1"):
            image_files(root, classes=list(WNIDS))

    def test_a_class_map_leaves_folders_out_and_joins_others(self, tmp_path):
        root = write_folder(tmp_path, {"train": 4, "val": 1})
        data = image_files(root, class_map={WNIDS[2]: 0, WNIDS[0]: 1}, val_size=0)
        assert data.class_names == (WNIDS[2], WNIDS[0])
        assert [name.split("/")[0] for name in shown(data, "test")] == [WNIDS[0], WNIDS[2]]
        assert data.split("test").labels.tolist() == [1, 0]
        joined = image_files(root, class_map={WNIDS[0]: 0, WNIDS[1]: 0, WNIDS[2]: 1}, val_size=0)
        assert joined.class_names == (f"{WNIDS[0]}+{WNIDS[1]}", WNIDS[2])
        (root / "map.txt").write_text(f"{WNIDS[1]}\n{WNIDS[0]}\n")
        assert image_files(root, class_map="map.txt", val_size=0).class_names == (WNIDS[1], WNIDS[0])
        with pytest.raises(DataError, match=r"train has no image of absent, which data\.class_map names"):
            image_files(root, class_map={WNIDS[0]: 0, "absent": 1})
        with pytest.raises(DataError, match=r"number from 0"):
            image_files(root, class_map={WNIDS[0]: 1})


class TestHeldOut:
    def test_a_bare_folder_is_split_and_adding_files_moves_none(self, tmp_path):
        root = write_folder(tmp_path, {"": 20}, classes=("cat", "dog"))
        before = image_files(root, val_size=0.2, test_size=0.2)
        parts = {split: set(shown(before, split)) for split in ("train", "val", "test")}
        assert not parts["train"] & parts["val"]
        assert not (parts["train"] | parts["val"]) & parts["test"]
        assert sum(map(len, parts.values())) == 40
        for name in ("cat", "dog"):
            for i in range(20):
                (root / name / f"added_{i}.jpg").write_bytes(encoded(100 + i + 20 * (name == "dog")))
        after = image_files(root, val_size=0.2, test_size=0.2)
        for split, names in parts.items():
            assert names <= set(shown(after, split))

    def test_the_same_wherever_it_lies_and_whatever_the_seed(self, tmp_path):
        a, b = (write_folder(tmp_path / name, {"": 12}, classes=("cat", "dog")) for name in "ab")
        first, second = (
            ImageFiles(root=str(a), num_workers=0, batch_size=4),
            ImageFiles(root=str(b), num_workers=0, batch_size=4),
        )
        second.seed = 7
        for data in (first, second):
            data.setup()
        assert first.fingerprint() == second.fingerprint()
        assert shown(first, "val") == shown(second, "val")

    def test_zero_chooses_the_epoch_by_the_test_images_as_the_paper_does(self, tmp_path):
        root = write_folder(tmp_path, {"train": 4, "val": 2})
        data = image_files(root, val_size=0)
        assert data.selection == data.fingerprint()["selection"] == "test"
        assert shown(data, "val") == shown(data, "test")
        assert image_files(root, val_size=2).selection == "val"

    def test_val_and_test_folders_are_both_used(self, tmp_path):
        root = write_folder(tmp_path, {"train": 4, "val": 2, "test": 1})
        data = image_files(root)
        assert [len(data.split(split)) for split in ("train", "val", "test")] == [12, 6, 3]

    def test_names_of_splits(self, tmp_path):
        root = write_folder(tmp_path, {"fit": 4, "look": 2, "val": 1})
        data = image_files(root, train_split="fit", test_split="look", val_split="val")
        assert [len(data.split(split)) for split in ("train", "val", "test")] == [12, 3, 6]
        with pytest.raises(DataError, match=r"neither a folder absent nor absent\.tar"):
            image_files(root, train_split="absent")
        with pytest.raises(DataError, match=r"has val but no train folder"):
            image_files(root)

    def test_every_class_keeps_an_image_for_training_and_gives_one_if_it_can(self):
        names = as_names([f"{i}.jpg" for i in range(300)])
        labels = np.repeat(np.arange(100), 3)
        parts = hold_out(names, labels, {"test": 0.1, "val": 0.1}, tuple(map(str, range(100))), "here")
        assert set(labels[parts["train"]]) == set(labels[parts["test"]]) == set(range(100))
        assert sorted(np.concatenate(list(parts.values()))) == list(range(300))

    def test_shares_and_counts(self):
        names = as_names([f"{i}.jpg" for i in range(5000)])
        parts = hold_out(names, np.zeros(5000, np.int64), {"test": 0.25, "val": 300}, ("a",), "here")
        assert 1150 < len(parts["test"]) < 1350
        assert len(parts["val"]) == 300
        hashes = name_hashes(names)
        assert 0 <= hashes.min() < hashes.max() < 1

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"val_size": -1}, r"data\.val_size=-1"),
            ({"val_size": 2.5}, r"data\.val_size=2\.5"),
            ({"val_size": 24}, r"has 21 images"),
            ({"val_size": 20}, r"with test and val held out, no training images are left of"),
            ({"test_size": 0}, r"has no test images"),
            ({"batch_size": 30}, r"batch_size=30 is more than the"),
        ],
    )
    def test_sizes_that_do_not_fit(self, tmp_path, options, message):
        root = write_folder(tmp_path, {"": 8})
        with pytest.raises(DataError, match=message):
            image_files(root, **({"test_size": 0.0001} | options))


def test_nothing_there(tmp_path):
    with pytest.raises(DataError, match=r"data\.root is missing"):
        image_files(None)
    with pytest.raises(DataError, match=r"there is no such folder"):
        image_files(tmp_path / "nowhere")
    (tmp_path / "photos").mkdir()
    with pytest.raises(DataError, match=r"holds no images"):
        image_files(tmp_path)
    (tmp_path / "file.zip").write_bytes(b"")
    with pytest.raises(DataError, match=r"is a file"):
        image_files(tmp_path / "file.zip")


def test_one_class_only_is_refused(tmp_path):
    root = write_folder(tmp_path / "cats", {"": 9}, classes=("cat",))
    with pytest.raises(DataError, match=r"cats has one class only: cat\n.*two at least"):
        image_files(root)
    with pytest.raises(DataError, match="one class only: cat"):
        image_files(root, class_map={"cat": 0})
    (root / "dog").mkdir()
    with pytest.raises(DataError, match="1 class folder without an image: dog"):
        image_files(root)


def test_files_of_other_types_are_counted_and_said_once(tmp_path, capsys):
    root = write_folder(tmp_path / "photos", {"": 20}, classes=("cat", "dog"))
    (root / "readme.md").write_text("about")
    (root / "cat" / "._cat_0.JPEG").write_bytes(b"macOS")
    (root / "cat" / ".DS_Store").write_bytes(b"macOS")
    (root / "cat" / "a.txt").write_text("one in forty")
    data = image_files(root)
    assert len(data.split("train").table) == 40
    assert find_splits(data.settings)["train"].ignored == {".txt": 1}
    assert capsys.readouterr().err == ""
    for name in ("a.HEIC", "b.heic", "c"):
        (root / "dog" / name).write_bytes(b"x")
    for _ in range(2):
        image_files(root)
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"note: {root}: 4 files ignored: .heic 2, no extension 1, .txt 1"
    (tmp_path / "phone" / "cat").mkdir(parents=True)
    (tmp_path / "phone" / "cat" / "1.heic").write_bytes(b"x")
    with pytest.raises(DataError, match=r"no images .* but files of other types: \.heic 1"):
        image_files(tmp_path / "phone")
    write_tar(
        tmp_path / "x.tar",
        {f"{n}/{i}.jpg": encoded(i) for n in "ab" for i in range(9)} | {"a/._1.jpg": b"x", "a/b.avif": b"x"},
    )
    found = find_splits(image_files(tmp_path / "x.tar").settings)["train"]
    assert len(found.names) == 18
    assert found.ignored == {".avif": 1}


def test_imagenet_of_another_size_is_said_and_taken(tmp_path, capsys, monkeypatch):
    for split in ("train", "val"):
        write_tar(tmp_path / f"{split}.tar", {f"{n}/{n}_1.JPEG": f"{split} {n}".encode() for n in wnids()})
    data = ImageFiles(root=str(tmp_path), classes="imagenet", val_size=0)
    for _ in range(2):
        data.splits()
    assert capsys.readouterr().err.splitlines() == [
        f"note: {tmp_path}/train.tar has 1,000 images; ImageNet's training split has 1,281,167",
        f"note: {tmp_path}/val.tar has 1,000 images; ImageNet's validation split has 50,000",
    ]
    monkeypatch.setitem(IMAGES, "imagenet_train", 1000)
    monkeypatch.setitem(IMAGES, "imagenet", 1000)
    assert ImageFiles(root=str(tmp_path), classes="imagenet", val_size=0).splits().notices == ()


def test_tables_without_file_sizes_are_told_apart_by_what_the_source_says():
    row = {"where": "x", "names": as_names(["0"]), "labels": np.zeros(1, np.int64), "sizes": -np.ones(1, np.int64)}
    one, other, plain = (ImageTable(**row, files=None, contents=contents) for contents in ("a", "b", ""))
    assert len({table.digest() for table in (one, other, plain)}) == 3
    assert one.digest() == ImageTable(**row, files=None, contents="a").digest()


def test_files_of_zero_bytes_are_named_before_training(tmp_path):
    root = write_folder(tmp_path, {"train": 8, "val": 2})
    (root / "train" / WNIDS[0] / "a.jpg").touch()
    (root / "train" / WNIDS[0] / "b.jpg").touch()
    with pytest.raises(DataError, match=rf"train has 2 files of zero bytes: {WNIDS[0]}/a\.jpg, {WNIDS[0]}/b\.jpg"):
        image_files(root, max_corrupt=1)
    image_files(root, max_corrupt=2)


def test_the_fingerprint_notices_names_sizes_and_labels_but_not_the_place(tmp_path):
    a, b = (write_folder(tmp_path / name, {"train": 4, "val": 1}) for name in "ab")
    base = image_files(a).fingerprint()
    assert image_files(b).fingerprint() == base
    file = b / "train" / WNIDS[0] / f"{WNIDS[0]}_0.JPEG"
    content = file.read_bytes()
    file.write_bytes(content + b"\0")
    assert image_files(b).fingerprint() != base
    file.write_bytes(content)
    file.rename(file.with_name("other.JPEG"))
    assert image_files(b).fingerprint() != base
    file.with_name("other.JPEG").rename(b / "train" / WNIDS[1] / f"{WNIDS[0]}_0.JPEG")
    assert image_files(b).fingerprint() != base


def test_a_recipe_with_deits_augmentation(tmp_path):
    root = write_folder(tmp_path, {"train": 4, "val": 1})
    text = f"""
data:
  class_path: lmgraft.data.image.image_files.ImageFiles
  init_args:
    root: {root}
    augment: {{auto_augment: rand-m9-mstd0.5-inc1, re_prob: 0.25}}
"""
    recipe = parse_recipe(text, ["--data.repeats", "3", "--data.augment.scale=[0.08,1]", "--data.val_size=0"])
    assert (recipe.data.repeats, recipe.data.settings.augment.scale, recipe.data.settings.val_size) == (
        3,
        (0.08, 1.0),
        0,
    )
    assert parse_recipe(recipe.yaml).yaml == recipe.yaml
    with pytest.raises(DataError, match=r"timm cannot build"):
        parse_recipe(text, ["--data.augment.auto_augment", "nonsense"])


def test_channels_and_statistics(tmp_path):
    root = write_folder(tmp_path, {"train": 8, "val": 2})
    deit = Augment(auto_augment="rand-m9-mstd0.5-inc1", re_prob=1.0)
    grey = image_files(root, in_chans=1, augment=deit)
    images, *_ = grey.split("train").batch(range(20))
    assert images.shape == (20, 1, 32, 32)
    with pytest.raises(DataError, match=r"data\.mean has 3 numbers for data\.in_chans=1"):
        image_files(root, in_chans=1, mean=(0.5, 0.5, 0.5))
    plain = image_files(root, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    assert 0 <= plain.split("test").batch([0])[0].min() <= plain.split("test").batch([0])[0].max() <= 1
    assert torch.equal(plain.prepare(plain.raw_test()[3][0]), plain.split("test").batch([3])[0][0])
