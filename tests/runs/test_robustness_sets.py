"""ImageNet's published sets on toy trees in their real layouts: labels, masks, and what is refused."""

import json
import os

import pytest
from PIL import Image

from lmgraft.data.image import imagenet_sets as sets
from lmgraft.data.image.corruptions import CORRUPTIONS
from lmgraft.errors import DataError
from lmgraft.studies.robustness.suites.imagenet_places import SETS, find_sets, other_totals


def tree(root, folders, picture, name="a.JPEG"):
    for folder in folders:
        (root / folder).mkdir(parents=True)
        os.link(picture, root / folder / name)
    return root


@pytest.fixture(scope="session")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("picture") / "a.JPEG"
    Image.new("RGB", (224, 224), (90, 120, 30)).save(path)
    return path


@pytest.fixture(scope="session")
def published(tmp_path_factory, picture):
    """One folder with every set, one image a class, as their archives unpack. Read only."""
    root = tmp_path_factory.mktemp("published")
    tree(root / "ImageNet-A", sets.subset("a"), picture)
    tree(root / "imagenet-r", sets.subset("r"), picture)
    tree(root / "sketch", sets.wnids(), picture)
    tree(root / "imagenetv2-matched-frequency-format-val", map(str, range(1000)), picture)
    val = root / "imagenet" / "val"
    for number, wnid in enumerate(sets.wnids(), 1):
        tree(val, [wnid], picture, name=f"ILSVRC2012_val_{number:08d}.JPEG")
    for name in CORRUPTIONS:
        (root / "imagenet_c" / name).mkdir(parents=True)
        for severity in range(1, 6):
            (root / "imagenet_c" / name / str(severity)).symlink_to(root / "sketch")
    return root


@pytest.mark.parametrize(("which", "read"), [("a", sets.imagenet_a), ("r", sets.imagenet_r)])
def test_masks_and_labels_are_timms(which, read, published):
    from importlib import resources

    listed = resources.files("timm.data").joinpath("_info", f"imagenet_{which}_indices.txt").read_text().split()
    indices = [int(index) for index in listed]
    found = read(published / {"a": "ImageNet-A", "r": "imagenet-r"}[which])
    assert found.classes == tuple(indices)
    assert len(found) == 200
    assert list(sets.subset(which)) == sorted(sets.subset(which))
    # The published evaluation's targets are places among the 200: the same answers are right.
    assert [found.classes.index(right) for (right,) in found.targets] == list(range(200))
    assert [sets.wnids()[right] for (right,) in found.targets] == [file.partition("/")[0] for file in found.files]


def test_labels_come_from_names_not_from_places(tmp_path, picture):
    root = tree(tmp_path / "a", sets.subset("a"), picture)
    before = sets.imagenet_a(root)
    for folder in (".cache", "__MACOSX"):
        (root / folder).mkdir()
    (root / "README.txt").write_text("about")
    (root / sets.subset("a")[0] / "notes.txt").write_text("about")
    assert sets.imagenet_a(root) == before
    assert sets.imagenet_a(root).digest() == before.digest()
    os.link(picture, root / sets.subset("a")[0] / "b.png")
    assert sets.imagenet_a(root).digest() != before.digest()


def test_version_two_is_numbered_not_sorted_as_text(published):
    found = sets.imagenet_v2(published / "imagenetv2-matched-frequency-format-val")
    assert {int(file.partition("/")[0]): right for file, (right,) in zip(found.files, found.targets, strict=True)} == {
        number: number for number in range(1000)
    }


def test_missing_stray_and_empty_folders_are_named(tmp_path, picture):
    first, second, third = sets.subset("r")[:3]
    root = tree(tmp_path / "r", sets.subset("r")[2:], picture)
    (root / "n99999999").mkdir()
    (root / third / "a.JPEG").unlink()
    with pytest.raises(DataError) as error:
        sets.imagenet_r(root)
    said = error.value.message
    assert f"2 class folders are missing ({first}, {second})" in said
    assert "1 folders are none of its classes (n99999999)" in said
    assert f"hold no image ({third})" in said
    with pytest.raises(DataError, match="nowhere"):
        sets.imagenet_r(tmp_path / "nowhere")


@pytest.mark.long
def test_imagenet_c_has_75_sets_shown_without_resizing(published, tmp_path):
    found = sets.imagenet_c(published / "imagenet_c")
    assert len(found) == 75
    assert {one.transform for one in found.values()} == {"crop"}
    assert found["fog", 3].name == "imagenet_c/fog/3"
    assert all(one.targets == tuple((i,) for i in range(1000)) for one in found.values())
    nested = tmp_path / "c"
    for name in CORRUPTIONS:  # as where each archive's own folder was kept
        (nested / "weather").mkdir(parents=True, exist_ok=True)
        (nested / "weather" / name).symlink_to(published / "imagenet_c" / name)
    assert sets.imagenet_c(nested).keys() == found.keys()
    (nested / "weather" / "fog").unlink()
    with pytest.raises(DataError, match="1 are missing: fog"):
        sets.imagenet_c(nested)
    (nested / "weather" / "fog").mkdir()
    for severity in "1235":
        (nested / "weather" / "fog" / severity).symlink_to(published / "sketch")
    with pytest.raises(DataError, match=r"fog/4"):
        sets.imagenet_c(nested)


def test_real_labels_go_by_file_names_and_drop_empty_lists(published, tmp_path):
    val = sets.imagenet_val(published / "imagenet" / "val")
    lists = [[i, (i + 5) % 1000] for i in range(1000)]
    lists[3] = []
    labels = tmp_path / "real.json"
    labels.write_text(json.dumps(lists))
    found = sets.imagenet_real(val, labels)
    assert len(found) == 999
    assert not any("00000004" in file for file in found.files)
    chosen = dict(zip(found.files, found.targets, strict=True))
    assert chosen[f"{sets.wnids()[9]}/ILSVRC2012_val_00000010.JPEG"] == (9, 14)
    assert len(sets.imagenet_real(val)) < 1000  # timm's copy, of which some lists are empty
    for content in ('{"a": 1}', "[[1000]]", "[[1.0]]", "no json"):
        labels.write_text(content)
        with pytest.raises(DataError, match=r"real\.json"):
            sets.imagenet_real(val, labels)
    labels.write_text(json.dumps(lists[:500]))
    with pytest.raises(DataError, match="ILSVRC2012_val_00000501"):
        sets.imagenet_real(val, labels)


def test_sets_are_found_by_usual_names(published, tmp_path):
    found = find_sets(published)
    assert not found.left_out
    assert {one.name.partition("/")[0] for one in found.sets} == set(SETS)
    assert len(found.sets) == 75 + 6
    only = find_sets(published, only=["imagenet_a"])
    assert [one.name for one in only.sets] == ["imagenet_a"]
    (tmp_path / "imagenet-r").symlink_to(published / "imagenet-r")
    some = find_sets(tmp_path, {"imagenet_a": published / "ImageNet-A"})
    assert [one.name for one in some.sets] == ["imagenet_r", "imagenet_a"]
    assert len(some.left_out) == 5
    assert any("ImageNet-C is left out: no imagenet-c below" in sentence for sentence in some.left_out)


def test_sets_of_other_sizes_than_published_are_said(published, monkeypatch):
    found = find_sets(published).sets
    said = other_totals(found)
    assert "ImageNet-A has 200 images, as published 7,500: not the whole set" in said
    assert "ImageNet-C has 1,000 images in 75 of its cells, as published 50,000 each: not the whole set" in said
    assert len(said) == 6  # all but ReaL, which follows from ImageNet's
    monkeypatch.setitem(sets.IMAGES, "imagenet_a", 200)
    monkeypatch.setitem(sets.IMAGES, "imagenet_c", 1000)
    assert len(other_totals(found)) == 4


def test_absent_sets_that_were_named_are_errors(published, tmp_path):
    with pytest.raises(DataError, match="none of ImageNet's robustness sets") as error:
        find_sets(tmp_path)
    assert "--imagenet-c" in error.value.remedy
    with pytest.raises(DataError, match="none of"):
        find_sets(None)
    with pytest.raises(DataError, match="ImageNet-C is left out"):
        find_sets(tmp_path, only=["imagenet_c"])
    with pytest.raises(DataError, match="--imagenet-a"):
        find_sets(None, {"imagenet_a": tmp_path / "nowhere"})
    with pytest.raises(DataError, match="--suite-root"):
        find_sets(tmp_path / "nowhere")


def test_real_labels_are_left_out_where_images_are_renamed(tmp_path, picture):
    tree(tmp_path / "val", sets.wnids(), picture)
    found = find_sets(tmp_path)
    assert [one.name for one in found.sets] == ["imagenet"]
    assert any("ReaL labels is left out" in sentence and "own names" in sentence for sentence in found.left_out)
    with pytest.raises(DataError, match="own names"):
        find_sets(tmp_path, only=["imagenet_real"])
