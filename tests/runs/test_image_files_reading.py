"""Images in files: timm's transforms with fixed draws, workers, resuming, and files that are no images."""

import random
import shutil
import warnings
from contextlib import suppress

import numpy as np
import pytest
import torch
from image_trees import WNIDS, encoded, image_files, picture, shown, write_folder, write_tar
from PIL import ImageOps
from timm.data import ImageDataset, create_transform

from lmgraft.data.base import UnreadableItemWarning
from lmgraft.data.draws import seeds
from lmgraft.data.image.tables import UNREADABLE
from lmgraft.data.image.transforms import Augment, kept_generators, seed_generators
from lmgraft.data.labelled import LabelledBatch
from lmgraft.data.loader import Draw, EpochLoader, EpochSampler
from lmgraft.errors import DataError

DEIT = Augment(scale=(0.08, 1.0), auto_augment="rand-m9-mstd0.5-inc1", color_jitter=0.4, re_prob=0.25, re_mode="pixel")
JITTER = Augment(color_jitter=0.4, vflip=0.5, re_prob=0.9, re_mode="rand", re_count=3, interpolation="random")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("tree"), {"train": 6, "val": 3})


def batches(data, split="train", progress=(2, 0), **options):
    loader = data.loader(split, progress=lambda: progress, **options)
    return [LabelledBatch(*(tensor.clone() for tensor in batch)) for batch in loader]


def equal(a, b):
    return len(a) == len(b) and all(
        torch.equal(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True)
    )


def old_posterize(image, bits):
    """Pillow's before 13.0, which took 0 bits; DeiT was trained with that."""
    return image.point([i & ~(2 ** (8 - bits) - 1) for i in range(256)] * len(image.getbands()))


# timm leaves closing the files to the garbage collector.
timm_leaks = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


@timm_leaks
@pytest.mark.parametrize(
    ("augment", "timms"),
    [
        (
            DEIT,
            {"color_jitter": 0.4, "auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 0.25, "re_mode": "pixel"}
            | {"interpolation": "bicubic"},
        ),
        (
            JITTER,
            {"color_jitter": 0.4, "vflip": 0.5, "scale": (0.35, 1), "re_prob": 0.9, "re_mode": "rand", "re_count": 3}
            | {"interpolation": "random"},
        ),
    ],
)
def test_training_images_are_timms_under_the_seeds_of_their_key(tree, augment, timms, monkeypatch):
    monkeypatch.setattr(ImageOps, "posterize", old_posterize)
    data = image_files(tree, augment=augment, val_size=0, repeats=3)
    theirs = ImageDataset(str(tree / "train"), transform=create_transform(32, is_training=True, **timms))
    draws = [Draw(epoch, i, repeat) for epoch in (0, 3) for i in range(18) for repeat in (0, 2)]
    (images, labels, sources, _), faults = data.split("train").__getitems__(draws)
    assert faults == ()
    for image, label, source, draw in zip(images, labels, sources, draws, strict=True):
        seed_generators(seeds(0, [draw.epoch], [int(source)], [draw.repeat], 3)[0])
        expected, target = theirs[draw.sample]
        assert int(label) == target
        assert torch.equal(image, expected)


@timm_leaks
@pytest.mark.parametrize(
    ("options", "timms"),
    [
        ({}, {}),
        (
            {"crop_pct": 1.0, "interpolation": "bilinear", "img_size": 48},
            {"crop_pct": 1.0, "interpolation": "bilinear"},
        ),
    ],
)
def test_evaluation_images_are_timms(tree, options, timms):
    """DeiT: resize to 256 / 224 of the size with bicubic interpolation, crop the centre."""
    data = image_files(tree, **options)
    size = options.get("img_size", 32)
    transform = create_transform(size, **({"interpolation": "bicubic", "crop_pct": 224 / 256} | timms))
    theirs = ImageDataset(str(tree / "val"), transform=transform)
    images, labels, *_ = data.split("test").batch(range(9))
    for i in range(9):
        assert torch.equal(images[i], theirs[i][0])
        assert labels[i] == theirs[i][1]
        raw, label = data.raw_test()[i]
        assert label == labels[i]
        assert torch.equal(data.prepare(raw), images[i])


def test_posterize_may_keep_no_bits(tree):
    """Pillow 13 refuses it, and RandAugment of magnitude 9 with mstd0.5 asks for it: a run would end there."""
    with pytest.raises(ValueError, match="bits must be between"):
        ImageOps.posterize(picture(1), 0)
    (randaugment,) = (t for t in image_files(tree, augment=DEIT).split("train").transform.before if hasattr(t, "ops"))
    (operation,) = (op for op in randaugment.ops if op.name == "PosterizeIncreasing")
    operation.prob, operation.magnitude, operation.magnitude_std = 1, 10, 0
    assert not np.asarray(operation(picture(1))).any()
    operation.magnitude = 5
    assert np.array_equal(np.asarray(operation(picture(1))), np.asarray(picture(1)) & 0b11000000)


def test_a_sample_is_the_same_in_any_batch_and_changes_with_seed_epoch_and_repeat(tree):
    data = image_files(tree, augment=DEIT)
    images = data.split("train")
    together = images.__getitems__([Draw(1, i, 0) for i in range(8)]).batch.inputs
    for i in reversed(range(8)):
        assert torch.equal(images.__getitems__([Draw(1, i, 0)]).batch.inputs[0], together[i])
    others = [images.__getitems__([draw]).batch.inputs[0] for draw in (Draw(2, 0), Draw(1, 0, 1))]
    images.seed = 1
    others.append(images.__getitems__([Draw(1, 0)]).batch.inputs[0])
    assert not any(torch.equal(other, together[0]) for other in others)


def test_a_subset_sees_the_draws_of_the_whole(tree):
    few, all_of_them = (image_files(tree, augment=DEIT, val_size=size) for size in (9, 0))
    names = shown(all_of_them, "train")
    for i, name in enumerate(shown(few, "train")):
        a = few.split("train").__getitems__([Draw(4, i)]).batch.inputs
        assert torch.equal(a, all_of_them.split("train").__getitems__([Draw(4, names.index(name))]).batch.inputs)


def test_workers_and_ranks_and_resuming_give_the_same_batches(tree):
    data = image_files(tree, augment=DEIT, repeats=3, val_size=0)
    whole = batches(data)
    assert len(whole) == 4
    assert not equal(whole, batches(data, progress=(3, 0)))
    data.num_workers = 2
    assert equal(whole, batches(data))
    assert equal(whole[3:], batches(data, progress=(2, 3)))
    images = data.split("train")
    for rank in range(2):
        sampler = EpochSampler(len(images), 2, shuffle=True, drop_last=True, rank=rank, world=2, repeats=3)
        for (part, *_), (one, *_) in zip(EpochLoader(images, sampler, progress=lambda: (2, 0)), whole, strict=True):
            assert torch.equal(part, one[rank::2])


def test_workers_stay_and_go_on_with_the_next_epoch(tree):
    data = image_files(tree, augment=DEIT, num_workers=2)
    position = [(0, 0)]
    loader = data.loader("train", progress=lambda: position[0])
    first = [batch[2].tolist() for batch in loader]
    pids = [worker.pid for worker in loader._iterator._workers]
    position[0] = (1, 1)
    second = [batch[0].clone() for batch in loader]
    data.num_workers = 0
    assert len(second) == len(first) - 1
    assert all(torch.equal(a, b[0]) for a, b in zip(second, batches(data, progress=(1, 1)), strict=True))
    assert [worker.pid for worker in loader._iterator._workers] == pids


def set_seeds(seed=1):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def test_reading_leaves_the_global_generators_alone(tree):
    data = image_files(tree, augment=DEIT)
    set_seeds()
    expected = random.random(), np.random.rand(), torch.rand(1)
    set_seeds()
    data.split("train").batch(range(8))
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected
    set_seeds()
    with suppress(ZeroDivisionError), kept_generators():
        set_seeds(9)
        raise ZeroDivisionError
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected


def test_images_from_tars_and_files_are_the_same(tree, tmp_path):
    for split in ("train", "val"):
        files = {f"x/{p.parent.name}/{p.name}": p.read_bytes() for p in sorted((tree / split).rglob("*.JPEG"))}
        write_tar(tmp_path / f"{split}.tar", files)
    a, b = image_files(tree, augment=DEIT, val_size=0), image_files(tmp_path, augment=DEIT, val_size=0)
    assert equal(batches(a), batches(b))
    assert equal(batches(a, "test"), batches(b, "test"))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16"])
def test_images_of_any_mode_become_three_channels_or_one(tmp_path, mode):
    root = write_folder(tmp_path, {"train": 2, "val": 1})
    form = "TIFF" if mode in ("CMYK", "I;16") else "PNG"
    picture(1, mode=mode).save(root / "val" / WNIDS[0] / f"a.{form.lower()}", form)
    for chans in (3, 1):
        data = image_files(root, in_chans=chans, augment=DEIT, val_size=0, batch_size=2)
        position = shown(data, "test").index(f"{WNIDS[0]}/a.{form.lower()}")
        assert data.split("test").batch([position])[0].shape == (1, chans, 32, 32)
        assert data.split("train").batch(range(6))[0].shape == (6, chans, 32, 32)


def cut(path):
    path.write_bytes(path.read_bytes()[:400])


def folder_in_place(path):
    path.unlink()
    path.mkdir()


FAULTS = {
    "truncated": (cut, "runcated"),
    "text": (lambda path: path.write_text("not an image"), "not an image"),
    "directory": (folder_in_place, "Is a directory"),
    "gone": (lambda path: path.unlink(), "No such file"),
    "empty": (lambda path: path.write_bytes(b""), "not an image"),
    "png_header": (lambda path: path.write_bytes(encoded(1, "PNG")[:60]), ""),
    "broken_png": (lambda path: path.write_bytes(encoded(1, "PNG").replace(b"IDAT", b"IDxT")), ""),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_an_unreadable_training_image_is_named_and_replaced_by_the_next(tree, tmp_path, kind):
    root = shutil.copytree(tree, tmp_path / "copy")
    data = image_files(root, augment=DEIT, val_size=0)
    names = shown(data, "train")
    spoil, words = FAULTS[kind]
    spoil(root / "train" / names[7])
    with pytest.warns(UnreadableItemWarning, match="next readable one is shown instead") as caught:
        given = batches(data)
    assert len(caught) == 1  # once a file, though it comes again
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = batches(data)
    assert equal(given, again)
    (fault,) = data.faults
    assert fault.file == str(root / "train" / names[7])
    assert words in fault.reason
    assert "BytesIO" not in fault.reason
    drawn = torch.cat([batch.index for batch in given]).tolist()
    assert 7 not in drawn
    for _, labels, sources, _ in given:
        assert torch.equal(
            labels,
            torch.tensor([int(names[i].startswith(WNIDS[1])) + 2 * names[i].startswith(WNIDS[2]) for i in sources]),
        )
    instead = data.split("train").__getitems__([Draw(2, 7), Draw(2, 8)])
    assert instead.batch.index.tolist() == [8, 8]
    assert not torch.equal(*instead.batch.inputs)  # the augmentation is that of the image asked for


def test_workers_report_to_the_main_process(tree, tmp_path):
    root = shutil.copytree(tree, tmp_path / "copy")
    data = image_files(root, val_size=0)
    for i in (7, 8):
        cut(root / "train" / shown(data, "train")[i])
    with pytest.warns(UnreadableItemWarning) as caught:
        alone = batches(data)
    assert len(caught) == 2
    apart = image_files(root, val_size=0, num_workers=2)
    with pytest.warns(UnreadableItemWarning) as caught:
        together = batches(apart)
    assert len(caught) == len(apart.faults) == 2
    assert equal(alone, together)


@pytest.mark.parametrize(("limit", "spoilt"), [(0, 1), (2, 3), (2, 18)])
def test_too_many_unreadable_images_stop_the_run(tree, tmp_path, limit, spoilt):
    root = shutil.copytree(tree, tmp_path / "copy")
    data = image_files(root, val_size=0, max_corrupt=limit)
    for name in shown(data, "train")[:spoilt]:
        cut(root / "train" / name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnreadableItemWarning)
        with pytest.raises(
            DataError, match=rf"with it {limit + 1} files? (is|are) unreadable, and data\.max_corrupt is {limit}"
        ):
            [batches(data, progress=(epoch, 0)) for epoch in range(5)]
    assert len(data.faults) == limit + 1


def test_an_unreadable_test_image_is_an_error_unless_allowed(tree, tmp_path):
    root = shutil.copytree(tree, tmp_path / "copy")
    data = image_files(root)
    name = shown(data, "test")[4]
    before = batches(data, "test")
    cut(root / "val" / name)
    with pytest.raises(DataError, match=rf"{name} is not readable .* data\.max_corrupt_test is 0"):
        batches(data, "test")
    with pytest.raises(DataError, match=rf"{name} is not readable"):
        data.raw_test()[4]
    allowed = image_files(root, max_corrupt_test=1)
    with pytest.warns(UnreadableItemWarning, match="a blank one is shown"):
        after = batches(allowed, "test")
    # Labels and positions stay, so that accuracy is over the same images; this one shows nothing.
    for one, other in zip(before, after, strict=True):
        assert equal([one[1:]], [other[1:]])
    a, b = (torch.cat([batch.inputs for batch in batches]) for batches in (before, after))
    assert not b[4].any()
    b[4] = a[4]
    assert torch.equal(a, b)


def test_an_unreadable_validation_image_counts_with_training_unless_it_is_a_test_image(tree, tmp_path):
    root = shutil.copytree(tree, tmp_path / "copy")
    data = image_files(root, val_size=4)
    cut(root / "train" / shown(data, "val")[0])
    with pytest.warns(UnreadableItemWarning, match="a blank one is shown"):
        batches(data, "val")
    cut(root / "val" / shown(data, "test")[0])
    with pytest.raises(DataError, match="max_corrupt_test"):
        batches(image_files(root, val_size=0), "val")


def test_a_file_that_may_not_be_read(tree, monkeypatch):
    """As root no permission is ever missing, so the error is made by hand."""
    data = image_files(tree, val_size=0)
    name = shown(data, "train")[3]
    original = type(data.split("train").table.files).open

    def refused(self, index):
        if index == 3:
            raise PermissionError(13, "Permission denied")
        return original(self, index)

    monkeypatch.setattr(type(data.split("train").table.files), "open", refused)
    with pytest.warns(UnreadableItemWarning, match=rf"{name} .*Permission denied"):
        batches(data)


def test_a_mistake_in_a_transform_is_no_unreadable_file(tree):
    data = image_files(tree, val_size=0)

    def broken(image):
        raise ValueError("a bug")

    data.split("train").transform.before.insert(0, broken)
    with pytest.raises(ValueError, match="a bug"):
        batches(data)
    assert ValueError in UNREADABLE


def test_an_unreadable_training_image_as_evaluation_sees_it_is_the_next_one(tree, tmp_path):
    root = shutil.copytree(tree, tmp_path / "copy")
    data = image_files(root, augment=DEIT, val_size=0, max_corrupt_test=1)
    cut(root / "train" / shown(data, "train")[7])
    cut(root / "val" / shown(data, "test")[4])
    still = data.still("train").__getitems__([Draw(0, 7), Draw(0, 8)])
    assert still.batch.index.tolist() == [8, 8]
    assert torch.equal(*still.batch.inputs)
    assert [fault.file for fault in still.faults] == [data.split("train").table.place(7)]
    blank = data.still("test").__getitems__([Draw(0, 4)])
    assert blank.batch.index.tolist() == [4]
    assert not blank.batch.inputs.any()


def test_training_images_as_evaluation_sees_them(tree):
    data = image_files(tree, augment=DEIT, val_size=0)
    still = data.still("train")
    assert still.indices.tolist() == data.split("train").indices.tolist()
    assert torch.equal(still.batch([5])[0][0], data.prepare(still.table.files.open(5)))
    assert data.transform_record() != image_files(tree, val_size=0).transform_record()
