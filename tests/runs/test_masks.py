"""Images with true masks in the real layouts: whose mask it is, and that it follows the image to the model's pixels."""

from __future__ import annotations

import gzip
import hashlib
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_trees import emoji_packages, picture, tar_of
from PIL import Image

from lmgraft.analysis.masks import best_iou, mask_of_tokens
from lmgraft.data import npm
from lmgraft.data.image import composed_objects
from lmgraft.data.image.coco import CocoInstances, decode_counts, decode_segment
from lmgraft.data.image.composed_objects import DrawnObjects, make_set, write_drawn
from lmgraft.data.image.composing import Composing
from lmgraft.data.image.emoji import read_emoji, split_emoji
from lmgraft.data.image.mask_folders import ImageNetS, MaskFolders
from lmgraft.data.image.masked import MaskedImages
from lmgraft.data.image.masks import class_numbers
from lmgraft.data.image.voc import CLASSES, PascalVOC
from lmgraft.data.loader import Draw
from lmgraft.data.npm import Package, fetch_package, read_members
from lmgraft.errors import DataError

SMALL: dict[str, Any] = {"img_size": 32, "crop_pct": 1.0, "batch_size": 1, "eval_batch_size": 4, "num_workers": 0}


def save(file: Path, image: Any, **options: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, **options)
    return file


def palette(numbers: np.ndarray) -> Image.Image:
    shown = Image.fromarray(numbers.astype(np.uint8)).convert("P")
    shown.putdata(numbers.flatten().tolist())
    shown.putpalette(list(np.random.default_rng(0).integers(0, 256, 768)))
    return shown


def blob(key: int, size: tuple[int, int] = (40, 50), value: int = 1) -> np.ndarray:
    """(H, W) with a rectangle of one number."""
    rng = np.random.default_rng(key)
    numbers = np.zeros(size, np.int64)
    top, left = rng.integers(2, 15, 2)
    numbers[top : top + 20, left : left + 22] = value
    return numbers


def seen(data: MaskedImages, split: str = "test") -> dict[str, Any]:
    """Name -> label, truth, ignored of each image of a split."""
    data.prepare_data()
    data.setup()
    items = data.split(split)
    batch = items.batch(range(len(items)))
    return {
        items.place(int(index)): (data.class_names[label], truth, ignored)
        for index, label, truth, ignored in zip(
            batch.index, batch.labels.tolist(), batch.truth, batch.ignored, strict=True
        )
    }


def shrunk(mask: np.ndarray, size: int = 32) -> torch.Tensor:
    """A mask as evaluation shows it: its shorter side scaled, the middle cut out."""
    height, width = mask.shape
    factor = size / min(height, width)
    shown = Image.fromarray(mask.astype(np.uint8)).resize(
        (int(width * factor), int(height * factor)), Image.Resampling.NEAREST
    )
    values = np.asarray(shown)
    top, left = (round((length - size) / 2) for length in values.shape)
    return torch.from_numpy(values[top : top + size, left : left + size].copy())


@pytest.mark.parametrize("size", [(32, 32), (45, 37), (90, 131), (33, 70)])
@pytest.mark.parametrize("crop", [1.0, 0.6])
def test_a_mask_goes_where_its_image_goes(size: tuple[int, int], crop: float, tmp_path: Path) -> None:
    """An image that is its own mask: where they differ, only by the resampling of edges."""
    for label in ("a", "b"):
        for key in range(3):
            numbers = np.zeros(size, np.uint8)
            numbers[size[0] // 4 : size[0] // 4 * 3 + key, size[1] // 3 : size[1] - 4] = 255
            save(tmp_path / "images" / label / f"{label}{key}.png", numbers)
            save(tmp_path / "masks" / label / f"{label}{key}.png", numbers)
    data = MaskFolders(
        str(tmp_path / "images"), masks=str(tmp_path / "masks"), mean=(0.0,) * 3, std=(1.0,) * 3,
        split_version=1, interpolation="bilinear", test_size=2, val_size=0,
        **(SMALL | {"crop_pct": crop, "img_size": (32, 24)}),
    )  # fmt: skip
    data.setup()
    batch = data.split("test").batch([0, 1])
    white = batch.inputs[:, 0] > 0.5
    assert batch.truth.shape == (2, 32, 24)
    assert (white == batch.truth)[(batch.inputs[:, 0] < 0.01) | (batch.inputs[:, 0] > 0.99)].all()
    assert (white != batch.truth).float().mean() < 0.03
    assert not batch.ignored.any()
    tokens = mask_of_tokens(batch.truth, (4, 3))
    assert best_iou(mask_of_tokens(white, (4, 3)).float(), tokens).min() > 0.99
    assert not hasattr(data.split("train").__getitems__([Draw(0, 0)]).batch, "truth")
    assert hasattr(data.still("train").batch([0]), "truth")


def test_numbers_of_masks(tmp_path: Path) -> None:
    numbers = blob(1, value=7)
    colour = np.stack([numbers % 256, numbers * 3, numbers * 0], -1).astype(np.uint8)
    alpha = np.concatenate([colour, np.full((40, 50, 1), 255, np.uint8)], -1)
    for image, expected in (
        (palette(numbers), numbers),
        (Image.fromarray(numbers > 0), numbers > 0),
        (numbers.astype(np.uint16) * 100, numbers * 100),
        (colour, numbers + 256 * 3 * numbers),
        (alpha, numbers + 256 * 3 * numbers),
    ):
        assert np.array_equal(class_numbers(str(save(tmp_path / "mask.png", image))), expected)
    blurred = save(tmp_path / "mask.jpg", ((numbers > 0) * 255).astype(np.uint8), quality=60)
    assert ((class_numbers(str(blurred)) > 0) == (numbers > 0)).mean() > 0.98


def imagenet_s(root: Path, *splits: str) -> dict[str, np.ndarray]:
    """A tree with three classes; what each validation image's own class covers."""
    truth = {}
    for split in splits:
        for place, wnid in enumerate(("n01443537", "n01491361", "n02119022")):
            for key in range(3):
                name = f"{wnid}/ILSVRC2012_{split}_{key:08}"
                save(root / split / f"{name}.JPEG", picture(100 * len(split) + 10 * place + key))
                numbers = blob(key, value=place + 1)
                numbers[:3], numbers[3:5] = 1000, (place + 1) % 3 + 1
                if split != "train":
                    shown = np.stack([numbers % 256, numbers // 256, 0 * numbers], -1).astype(np.uint8)
                    save(root / f"{split}-segmentation" / f"{name}.png", shown)
                    truth[f"{name}.JPEG"] = numbers
    return truth


def test_imagenet_s(tmp_path: Path) -> None:
    truth = imagenet_s(tmp_path / "s", "train", "validation")
    items = seen(ImageNetS(str(tmp_path / "s"), val_size=0, **SMALL))
    assert items.keys() == truth.keys()
    classes = sorted({name.split("/")[0] for name in truth})
    for name, (label, object_, ignored) in items.items():
        assert label == name.split("/")[0]
        numbers = truth[name]
        assert torch.equal(object_, shrunk(numbers == classes.index(label) + 1) > 0)
        assert torch.equal(ignored, shrunk(numbers == 1000) > 0)
    held_out = seen(ImageNetS(str(imagenet_s(tmp_path / "v", "validation") and tmp_path / "v"), **SMALL))
    assert all(object_.any() for _, object_, _ in held_out.values())
    imagenet_s(tmp_path / "ImageNetS50", "train", "validation")
    with pytest.raises(DataError, match="3 classes, not 50"):
        ImageNetS(str(tmp_path / "ImageNetS50"), **SMALL).setup()


def voc(root: Path) -> None:
    """Two training images of dog and person each, and three test images, one of a class that training lacks."""
    lists: dict[str, list[str]] = {"train": [], "val": []}
    rows = [*[("train", "dog"), ("train", "person")] * 2, ("val", "dog"), ("val", "person"), ("val", "cat")]
    for key, (split, name) in enumerate(rows):
        numbers, objects = np.zeros((40, 50), np.int64), np.zeros((40, 50), np.int64)
        number = CLASSES.index(name) + 1
        other = CLASSES.index("sheep") + 1
        for thing, (place, of) in enumerate(
            ((np.s_[2:20, 8:30], number), (np.s_[25:35, 10:20], number), (np.s_[25:38, 25:40], other)), 1
        ):
            numbers[place], objects[place] = of, thing
        numbers[20], objects[20] = 255, 255
        stem = f"2007_{key:06}"
        lists[split].append(stem)
        save(root / "JPEGImages" / f"{stem}.jpg", picture(key))
        save(root / "SegmentationClass" / f"{stem}.png", palette(numbers))
        save(root / "SegmentationObject" / f"{stem}.png", palette(objects))
    for split, stems in lists.items():
        file = root / "ImageSets" / "Segmentation" / f"{split}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(stems) + "\n")


def test_pascal_voc(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    voc(tmp_path)
    data = PascalVOC(str(tmp_path), val_size=0, **SMALL)
    items = seen(data)
    assert data.class_names == ("dog", "person")
    assert [label for label, *_ in items.values()] == ["dog", "person"]
    assert "1 image left out" in capsys.readouterr().err
    mask = np.zeros((40, 50))
    mask[2:20, 8:30], mask[25:35, 10:20], mask[20] = 1, 2, 3
    for _, object_, ignored in items.values():
        assert torch.equal(object_, (shrunk(mask) == 1) | (shrunk(mask) == 2))
        assert torch.equal(ignored, shrunk(mask) == 3)
    largest = seen(PascalVOC(str(tmp_path), instances="largest", val_size=0, **SMALL))
    for _, object_, ignored in largest.values():
        assert torch.equal(object_, shrunk(mask) == 1)
        assert torch.equal(ignored, shrunk(mask) >= 2)


COUNTS = "b18<000INL24N900000000000000000000000000000U2K4"


def coco(root: Path) -> None:
    square = [[10, 5, 30, 5, 30, 25, 10, 25]]
    runs = {"size": [40, 50], "counts": [0, 80, 1920]}
    for split in ("train2017", "val2017"):
        images, rows = [], []
        for key in range(4 if split == "train2017" else 3):
            images.append({"id": 10 + key, "file_name": f"{key:012}.jpg", "height": 40, "width": 50})
            save(root / split / f"{key:012}.jpg", picture(key + 7))
            kind = 18 if key % 2 else 1
            parts = [(kind, square, 400, 0), (kind, [[40, 30, 46, 30, 46, 36, 40, 36]], 36, 0), (44, runs, 80, 0),
                     (kind, {"size": [40, 50], "counts": [1960, 40]}, 40, 1)]  # fmt: skip
            for category, segment, area, crowd in parts if key < 2 or split == "train2017" else []:
                rows.append({
                    "id": len(rows) + 1, "image_id": 10 + key, "category_id": category, "segmentation": segment,
                    "area": area, "iscrowd": crowd,
                })  # fmt: skip
        names = [{"id": 44, "name": "bottle"}, {"id": 1, "name": "person"}, {"id": 18, "name": "dog"}]
        file = root / "annotations" / f"instances_{split}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"images": images, "annotations": rows, "categories": names}))


def test_coco(tmp_path: Path) -> None:
    coco(tmp_path)
    data = CocoInstances(str(tmp_path), val_size=0, **SMALL)
    items = seen(data)
    assert data.class_names == ("person", "dog")
    assert [label for label, *_ in items.values()] == ["person", "dog"]  # the third has no object
    for _, object_, ignored in items.values():
        expected = np.zeros((40, 50))
        expected[5:25, 10:30], expected[30:36, 40:46], expected[:, 49] = 1, 1, 2
        assert torch.equal(object_, shrunk(expected) == 1)
        assert torch.equal(ignored, shrunk(expected) == 2)
    largest = seen(CocoInstances(str(tmp_path), instances="largest", val_size=0, **SMALL))
    assert all(0 < int(largest[name][1].sum()) < int(items[name][1].sum()) for name in items)


def test_run_lengths_are_pycocotools_s() -> None:
    """A text that pycocotools 2.0.11 wrote, of a mask with three parts."""
    mask = np.zeros((20, 30), bool)
    mask[3:9, 5:22], mask[10:18, 2:6], mask[12, 25] = True, True, True
    segment = {"size": [20, 30], "counts": COUNTS}
    assert sum(decode_counts(COUNTS)) == 600
    assert np.array_equal(decode_segment(segment, 20, 30), mask)
    with pytest.raises(ValueError, match="run lengths"):
        decode_segment({"size": [20, 30], "counts": [5, 5]}, 20, 30)


def test_masks_beside_images_and_what_is_wrong_with_them(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        for key in range(6):
            save(tmp_path / label / f"{label}{key}.jpg", picture(key + 10 * (label == "dog")))
            save(tmp_path / label / f"{label}{key}_mask.png", (blob(key) * 255).astype(np.uint8))
    (tmp_path / "cat" / "cat0_mask.png").unlink()
    (tmp_path / "cat" / "cat1_mask.png").write_bytes(b"none")
    save(tmp_path / "dog" / "dog2_mask.png", np.ones((7, 7), np.uint8))
    save(tmp_path / "dog" / "dog3_mask.png", np.zeros((40, 50), np.uint8))
    data = MaskFolders(str(tmp_path), suffix="_mask", test_size=8, val_size=0, **SMALL)
    items = seen(data)
    for name, (_, object_, ignored) in items.items():
        unknown = name in ("cat/cat0.jpg", "cat/cat1.jpg", "dog/dog2.jpg")
        assert ignored.all() == ignored.any() == unknown
        assert object_.any() == (not unknown and name != "dog/dog3.jpg")
    findings = data.check(0, lambda *_: nullcontext(lambda *_: None))
    assert findings.details["masks"]["train"] == {
        "missing": ["cat/cat0.jpg"], "unreadable": ["cat/cat1.jpg"], "empty": ["dog/dog3.jpg"],
        "of another size than the image": ["dog/dog2.jpg"],
    }  # fmt: skip
    assert sum("mask" in remark for remark in findings.remarks) == 4
    with pytest.raises(DataError, match=r"data\.masks"):
        MaskFolders(str(tmp_path), **SMALL)


def test_masks_in_a_folder_of_their_own(tmp_path: Path) -> None:
    """Below the images' folder, where they are no class; with one number of several; the fingerprint knows them."""
    for label in ("cat", "dog"):
        for key in range(4):
            save(tmp_path / label / f"{label}{key}.png", picture(key + 10 * (label == "dog")))
            save(tmp_path / "masks" / f"{label}{key}.png", palette(blob(key, value=3) + np.eye(40, 50, dtype=np.int64)))
    options: dict[str, Any] = {"masks": "masks", "value": 3, "ignored": 1, "test_size": 4, "val_size": 0, **SMALL}
    data = MaskFolders(str(tmp_path), **options)
    items = seen(data)
    assert data.class_names == ("cat", "dog")
    for name, (_, object_, ignored) in items.items():
        numbers = blob(int(name[-5]), value=3) + np.eye(40, 50, dtype=np.int64)
        assert torch.equal(object_, shrunk(numbers == 3) > 0)
        assert torch.equal(ignored, shrunk(numbers == 1) > 0)
    for split in ("train", "test"):
        for key, name in enumerate("ab"):
            save(tmp_path / "split" / split / name / "same.png", picture(key))
            save(tmp_path / "split" / "masks" / name / "same.png", blob(key).astype(np.uint8))
    with pytest.raises(DataError, match=r"several images have the mask a/same\.png"):
        MaskFolders(str(tmp_path / "split"), masks="masks", **SMALL).setup()
    before = data.fingerprint()["sha256"]
    save(tmp_path / "masks" / "cat0.png", palette(blob(9, value=3)))
    assert MaskFolders(str(tmp_path), **options).fingerprint()["sha256"] != before


def test_looking_at_a_model_of_other_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    voc(tmp_path)
    data = PascalVOC(str(tmp_path), **SMALL)
    items = data.looking(["Person", "airplane", "puppy"], names={"dog": "puppy"})
    batch = items.batch(range(len(items)))
    assert batch.labels.tolist() == [2, 0]
    assert batch.truth.flatten(1).any(1).all()
    assert len(data.looking(["person"])) == 1
    assert "1 image left out, of classes that the model lacks: dog" in capsys.readouterr().err
    with pytest.raises(DataError, match="none of its classes"):
        data.looking(["a", "b"])
    loose = MaskFolders(
        str(tmp_path / "JPEGImages"), masks=str(tmp_path / "SegmentationClass"), ignored=255, unlabelled=True, **SMALL
    )
    assert loose.looking(["unlabelled"]).batch([0, 6]).truth.flatten(1).any(1).all()


def test_composed_emoji(tmp_path: Path) -> None:
    files = emoji_packages(tmp_path)
    emoji, lost = read_emoji(files)
    assert lost == {"not in every style": 1, "too thin": 1}
    assert {one.category for one in emoji} == {"food-drink", "objects"}
    sides = {split: {one.concept for one in part} for split, part in split_emoji(emoji).items()}
    assert all(sides.values())
    assert sum(map(len, sides.values())) == len(set().union(*sides.values())) == 24
    counts = {"train": 12, "val": 4, "test": 6, "unseen": 6}
    one, two = (make_set(files, tmp_path / name, counts, Composing(size=32)) for name in ("one", "two"))
    paths = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert len(paths) == 2 * sum(counts.values()) + 1
    assert all((one / path).read_bytes() == (two / path).read_bytes() for path in paths)
    about = json.loads((one / "set.json").read_text())
    assert about["classes"] == ["food-drink", "objects"]
    assert about["concepts"] == {split: len(part) for split, part in sides.items()}
    for path in (one / "masks").rglob("*.png"):
        mask = np.asarray(Image.open(path)) > 0
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        side = max(np.ptp(rows), np.ptp(columns)) + 1
        assert 0.07 < (side / 32) ** 2 < 0.45


def test_named_emoji_are_classes_and_each_picture_is_by_itself(tmp_path: Path) -> None:
    styles = {
        style: {name: Image.new("RGBA", (20, 16), colour) for name, colour in (("apple", "red"), ("dog", "brown"))}
        for style in ("google", "fluent")
    }
    composed_objects.write_named(tmp_path, styles, {"train": 8, "val": 4, "test": 4, "unseen": 2})
    data = composed_objects.ComposedEmoji(str(tmp_path), **SMALL)
    items = seen(data)
    assert data.class_names == ("apple", "dog")
    assert all(object_.any() for _, object_, _ in items.values())
    assert len(set(data.split("test").batch(range(4)).group.tolist())) == 4
    assert {path.stem.rpartition("-")[2] for path in (tmp_path / "images" / "train").rglob("*.png")} == {"google"}
    assert {path.stem.rpartition("-")[2] for path in (tmp_path / "images" / "unseen").rglob("*.png")} == {"fluent"}


def test_garments_on_textures(tmp_path: Path, fashion_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = composed_objects.FashionMNIST
    monkeypatch.setattr(composed_objects, "FashionMNIST", lambda: source(root=str(fashion_root), verify=False))
    monkeypatch.setattr(composed_objects, "COUNTS", {"train": 20, "val": 10, "test": 10})
    composed_objects.prepare_garments(tmp_path)
    data = composed_objects.GarmentsOnTextures(str(tmp_path), **SMALL)
    items = seen(data)
    assert data.num_classes == 10
    assert len(items) == len(data.split("val")) == 10
    assert all(object_.any() for _, object_, _ in items.values())
    train, val = ({data.still(split).place(n).rpartition("_")[2] for n in range(10)} for split in ("train", "val"))
    assert not train & val


def test_drawn_objects_are_data(tmp_path: Path) -> None:
    counts = {"train": 12, "val": 6, "test": 36, "unseen": 6}
    write_drawn(tmp_path, counts, Composing(size=32, pieces=0))
    data = DrawnObjects(str(tmp_path), **(SMALL | {"batch_size": 4}))
    items = seen(data)
    assert data.class_names == ("hexagon", "square", "triangle")
    assert len(items) == 36
    batch = data.split("test").batch(range(36))
    concepts = [Path(name).stem.split("_")[1] for name in items]
    pairs = set(zip(concepts, batch.group.tolist(), strict=True))
    assert 3 <= len(set(concepts)) == len(set(batch.group.tolist())) == len(pairs) <= 24
    assert all(object_.any() and not ignored.any() for _, object_, ignored in items.values())
    other = DrawnObjects(str(tmp_path), style="unseen", **(SMALL | {"batch_size": 4}))
    assert other.fingerprint()["sha256"]["test"] != data.fingerprint()["sha256"]["test"]
    with pytest.raises(DataError, match="holds no prepared set"):
        composed_objects.ComposedObjects(str(tmp_path / "none")).setup()


def test_a_package_is_what_it_should_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content = gzip.compress(
        tar_of({"package/img/a.png": b"a", "package/index.js": b"run", "package/emoji.json": b"[]"})
    )
    package = Package("@owner/things", "1.2.3", hashlib.sha256(content).hexdigest(), len(content))
    assert package.file == "owner-things-1.2.3.tgz"
    assert package.address.endswith("/@owner/things/-/things-1.2.3.tgz")
    monkeypatch.setattr(npm, "_REGISTRY", (tmp_path / "registry").as_uri())
    monkeypatch.setattr(npm.shutil, "which", lambda _: None)
    with pytest.raises(DataError, match=r"npm is not on this system.*things-1\.2\.3\.tgz"):
        fetch_package(package, tmp_path / "scratch")
    served = tmp_path / "registry" / "@owner" / "things" / "-" / "things-1.2.3.tgz"
    served.parent.mkdir(parents=True)
    served.write_bytes(content)
    (tmp_path / "scratch").mkdir()
    file = fetch_package(package, tmp_path / "scratch")
    assert read_members(file, ("img/", "emoji.json")) == {"img/a.png": b"a", "emoji.json": b"[]"}
    (tmp_path / package.file).write_bytes(content[:60])
    with pytest.raises(DataError, match="is not what it should be"):
        fetch_package(package, tmp_path / "scratch")
    with pytest.raises(DataError, match="could not be unpacked"):
        read_members(tmp_path / package.file, ("img/",))


def test_the_mask_of_a_turned_photograph_is_as_it_is_seen(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for label in ("a", "b"):
        for key in range(2):
            save(tmp_path / label / f"{key}.jpg", picture(key + 10 * (label == "b")), exif=exif)
            save(
                tmp_path / "masks" / label / f"{key}.png",
                blob(key, size=(50, 40) if key else (40, 50)).astype(np.uint8),
            )
    options: dict[str, Any] = {"masks": "masks", "test_size": 2, "val_size": 0, **SMALL}
    data = MaskFolders(str(tmp_path), **options)
    fates = data.check(0, lambda *_: nullcontext(lambda *_: None)).details["masks"]["train"]
    assert fates["of another size than the image"] == ["a/0.jpg", "b/0.jpg"]
