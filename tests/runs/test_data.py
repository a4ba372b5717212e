"""Data: draws without a state, batches from any offset, augmentation, and files that are not right."""

import gzip
import shutil
import subprocess

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.data.distributed_sampler import RepeatAugSampler

from lmgraft.checkpoint import cache
from lmgraft.data.draws import permutation, seeds, uniforms
from lmgraft.data.image import fashion_mnist, fetch
from lmgraft.data.image.arrays import ImageArray, shift_and_flip
from lmgraft.data.image.fashion_mnist import FashionMNIST
from lmgraft.data.loader import Draw, EpochLoader, EpochSampler
from lmgraft.errors import DataError


def test_uniforms_are_uniform_and_uncorrelated():
    drawn = uniforms(7, 3, np.arange(20_000), 4)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert np.abs(drawn.mean(0) - 0.5).max() < 0.01
    assert np.abs(drawn.var(0) - 1 / 12).max() < 0.002
    across = np.corrcoef(np.concatenate([drawn.T, uniforms(8, 3, np.arange(20_000), 4).T]))
    assert np.abs(across - np.eye(8)).max() < 0.03
    neighbours = np.corrcoef(drawn[:-1, 0], drawn[1:, 0])[0, 1]
    assert abs(neighbours) < 0.03


@given(seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 1000), index=st.integers(0, 2**31))
def test_a_draw_depends_on_nothing_else(seed, epoch, index):
    alone = uniforms(seed, epoch, [index], 3)
    together = uniforms(seed, [epoch, 5, epoch], [1, 2, index], 5)
    assert np.array_equal(alone[0], together[2, :3])
    assert not np.array_equal(alone, uniforms(seed, epoch + 1, [index], 3))


@given(
    seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 1000), index=st.integers(0, 2**31), repeat=st.integers(0, 3)
)
def test_seeds_depend_on_each_part_of_the_key_and_nothing_else(seed, epoch, index, repeat):
    alone = seeds(seed, [epoch], [index], [repeat], 3)
    together = seeds(seed, [5, epoch], [1, index], [0, repeat], 3)
    assert np.array_equal(alone[0], together[1])
    others = [(epoch + 1, index, repeat), (epoch, index + 1, repeat), (epoch, index, repeat + 1)]
    drawn = [tuple(seeds(seed, *[[part] for part in key], 3)[0]) for key in [(epoch, index, repeat), *others]]
    assert len(set(drawn)) == 4


@given(
    size=st.integers(1, 60),
    batch=st.integers(1, 20),
    world=st.integers(1, 3),
    drop=st.booleans(),
    seed=st.integers(0, 9),
)
def test_an_epoch_is_the_same_from_any_offset_and_each_sample_comes_once(size, batch, world, drop, seed):
    seen = []
    for rank in range(world):
        sampler = EpochSampler(size, batch, seed=seed, shuffle=True, drop_last=drop, rank=rank, world=world)
        sampler.epoch = 4
        whole = list(sampler)
        assert len(whole) == len(sampler)
        for start in (0, len(whole) // 2, len(whole)):
            sampler.start = start
            assert list(sampler) == whole[start:]
        seen += [draw for chunk in whole for draw in chunk]
    assert len(set(seen)) == len(seen)
    if not drop:
        assert sorted(d.sample for d in seen) == list(range(size))


@given(
    size=st.integers(1, 700),
    batch=st.integers(1, 9),
    world=st.integers(1, 4),
    repeats=st.integers(1, 3),
    seed=st.integers(0, 3),
)
def test_ranks_together_draw_the_batches_of_one_process(size, batch, world, repeats, seed):
    def batches(batch_size, **options):
        sampler = EpochSampler(size, batch_size, seed=seed, shuffle=True, drop_last=True, repeats=repeats, **options)
        sampler.epoch = 2
        return list(sampler)

    ranks = [batches(batch, rank=rank, world=world) for rank in range(world)]
    assert len({len(chunks) for chunks in ranks}) == 1
    whole = batches(batch * world)
    for parts, one in zip(zip(*ranks, strict=True), whole, strict=False):
        assert sorted(draw for part in parts for draw in part) == sorted(one)
    if size % world == 0 and size < 256:
        assert len(whole) == len(ranks[0])


@given(size=st.integers(1, 60), batch=st.integers(1, 8), world=st.integers(1, 5))
def test_evaluation_shows_each_sample_once_and_no_rank_gets_an_empty_batch(size, batch, world):
    ranks = [list(EpochSampler(size, batch, rank=rank, world=world)) for rank in range(world)]
    assert sorted(draw.sample for chunks in ranks for chunk in chunks for draw in chunk) == list(range(size))
    assert all(1 <= len(chunk) <= batch for chunks in ranks for chunk in chunks)
    if batch > 1 and size >= world:
        assert len({len(chunks) for chunks in ranks}) == 1


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 700, 1000])
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("repeats", [2, 3])
def test_repeated_augmentation_is_timms_sampler_over_our_order(size, world, repeats, monkeypatch):
    """DeiT's RASampler, which timm has: same counts, same images in the same order on every rank."""
    monkeypatch.setattr(torch, "randperm", lambda n, **_: torch.from_numpy(permutation(5, 3, n)))
    for rank in range(world):
        theirs = RepeatAugSampler(range(size), num_replicas=world, rank=rank, num_repeats=repeats)
        ours = EpochSampler(size, 1, seed=5, shuffle=True, drop_last=True, rank=rank, world=world, repeats=repeats)
        ours.epoch = 3
        drawn = [draw for (draw,) in ours]
        assert len(ours) == len(theirs)
        assert [draw.sample for draw in drawn] == list(theirs)
        assert len(set(drawn)) == len(drawn) or world > size * repeats  # a repeat is another augmentation


def test_the_order_changes_with_epoch_and_seed():
    orders = {tuple(permutation(seed, epoch, 50)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def array(pad=2, flip=True, seed=0):
    images = torch.arange(5 * 28 * 28).remainder(251).to(torch.uint8).view(5, 1, 28, 28)
    labels = torch.arange(5)
    return ImageArray(images, labels, labels + 100, mean=(0.5,), std=(0.25,), seed=seed, pad=pad, flip=flip)


def test_augmentation_does_not_depend_on_the_batch():
    data = array()
    together = data.__getitems__([Draw(3, i) for i in range(5)])[0]
    for i in range(5):
        assert torch.equal(data.__getitems__([Draw(3, i)])[0][0], together[i])
    assert not torch.equal(together, data.__getitems__([Draw(4, i) for i in range(5)])[0])


def test_augmentation_equals_a_plain_crop_and_mirror():
    images = torch.randint(0, 255, (6, 1, 8, 8), dtype=torch.uint8)
    drawn = torch.tensor(
        [[0.0, 0.0, 0.0], [0.99, 0.99, 0.9], [0.5, 0.5, 0.9], [0.5, 0.5, 0.1], [0.0, 0.99, 0.2], [0.3, 0.7, 0.7]]
    )
    out = shift_and_flip(images, drawn, 2, True)
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    for image, result, (a, b, c) in zip(padded, out, drawn.tolist(), strict=True):
        top, left = int(a * 5), int(b * 5)
        crop = image[:, top : top + 8, left : left + 8]
        assert torch.equal(result, crop.flip(-1) if c < 0.5 else crop)


def test_without_augmentation_images_are_only_normalised():
    data = array(pad=0, flip=False)
    images, labels, sources, _ = data.batch(range(5))
    assert torch.allclose(images, (data.images / 255 - 0.5) / 0.25)
    assert labels.tolist() == [0, 1, 2, 3, 4]
    assert sources.tolist() == [100, 101, 102, 103, 104]


def test_workers_give_the_same_batches():
    data = array()
    batches = []
    for workers in (0, 2):
        sampler = EpochSampler(5, 2, seed=1, shuffle=True)
        loader = EpochLoader(data, sampler, progress=lambda: (2, 1), num_workers=workers)
        batches.append([batch[0] for batch in loader])
    assert len(batches[0]) == 2
    assert all(torch.equal(a, b) for a, b in zip(*batches, strict=True))


def test_the_split_is_disjoint_and_does_not_depend_on_the_seed(fashion_root):
    chosen = []
    for seed in (0, 1):
        data = FashionMNIST(root=str(fashion_root), verify=False, val_size=20, train_size=40, batch_size=10)
        data.seed = seed
        data.setup()
        chosen.append({name: set(data.split(name).indices.tolist()) for name in ("train", "val")})
    assert chosen[0] == chosen[1]
    assert not chosen[0]["train"] & chosen[0]["val"]
    assert (len(chosen[0]["train"]), len(chosen[0]["val"])) == (40, 20)


def broken(tmp_path, fashion_root, name, change):
    for file in fashion_root.iterdir():
        content = file.read_bytes()
        (tmp_path / file.name).write_bytes(change(content) if file.name.startswith(name) else content)
    return FashionMNIST(root=str(tmp_path), verify=False, val_size=20, batch_size=10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[: len(content) // 2], "cut short or damaged"),
        (lambda content: b"not gzip" + content, "cut short or damaged"),
        (lambda content: gzip.compress(gzip.decompress(content)[:-5]), "cut short"),
        (lambda content: gzip.compress(b"\x00\x00\x0d\x03" + gzip.decompress(content)[4:]), "no idx file"),
        (lambda content: gzip.compress(content[:0]), "no idx file"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, fashion_root, change, message):
    with pytest.raises(DataError, match=message) as caught:
        broken(tmp_path, fashion_root, "train-images", change).setup()
    assert "train-images-idx3-ubyte.gz" in str(caught.value)


def test_a_missing_folder_file_or_wrong_checksum_is_named(tmp_path, fashion_root):
    with pytest.raises(DataError, match=r"no such folder"):
        FashionMNIST(root=str(tmp_path / "nowhere")).prepare_data()
    with pytest.raises(DataError, match=r"holds neither train-images"):
        FashionMNIST(root=str(tmp_path)).setup()
    with pytest.raises(DataError, match=r"is not Fashion-MNIST's.*SHA-256"):
        FashionMNIST(root=str(fashion_root)).setup()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_size": 120}, "120 training images"),
        ({"train_size": 101, "val_size": 20}, "at most 100"),
        ({"batch_size": 0}, "at least 1"),
        ({"batch_size": 64, "train_size": 40, "val_size": 20}, "more than the 40"),
    ],
)
def test_sizes_that_do_not_fit(fashion_root, options, message):
    with pytest.raises(DataError, match=message):
        FashionMNIST(root=str(fashion_root), verify=False, **options).setup()


def test_files_of_ones_own_are_told_apart(fashion_root, tmp_path):
    def fingerprint(root):
        data = FashionMNIST(str(root), verify=False, val_size=20, batch_size=10)
        data.setup()
        return data.fingerprint()

    own = shutil.copytree(fashion_root, tmp_path / "own")
    assert fingerprint(own) == fingerprint(fashion_root)  # wherever they lie
    for name in ("train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"):
        before, content = fingerprint(own), bytearray(gzip.decompress((own / name).read_bytes()))
        content[-1] ^= 1
        (own / name).write_bytes(gzip.compress(bytes(content)))
        assert fingerprint(own) != before


def test_raw_test_images_prepared_are_the_test_batch(fashion_root):
    data = FashionMNIST(root=str(fashion_root), verify=False, val_size=20, batch_size=10)
    data.setup()
    raw, (images, labels, *_) = data.raw_test(), data.split("test").batch(range(5))
    assert len(raw) == len(data.split("test"))
    for i in range(5):
        image, label = raw[i]
        assert (image.mode, image.size, label) == ("L", (28, 28), int(labels[i]))
        assert torch.equal(data.prepare(image), images[i])


@pytest.fixture
def no_system_copy(monkeypatch, tmp_path):
    monkeypatch.setenv("LMGRAFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetch, "_PACKAGED", fetch.Path("nowhere/fashion-mnist"))
    return tmp_path / "cache"


def test_no_network_lists_every_way_and_leaves_nothing(no_system_copy, monkeypatch):
    def apt(command, **_):
        raise subprocess.CalledProcessError(100, command, stderr="E: Unable to fetch some archives")

    def opener(*_, **__):
        raise OSError("Name or service not known")

    monkeypatch.setattr(fetch.shutil, "which", lambda tool: tool)
    monkeypatch.setattr(fetch.subprocess, "run", apt)
    monkeypatch.setattr(fetch.urllib.request, "urlopen", opener)
    with pytest.raises(DataError) as caught:
        FashionMNIST().prepare_data()
    for part in ("debian: E: Unable to fetch", "mirrors: Name or service", "data.root"):
        assert part in str(caught.value)
    assert not [p for p in no_system_copy.rglob("*") if p.is_file()]


def test_what_is_fetched_is_checked_before_it_is_kept(no_system_copy, monkeypatch, fashion_root):
    monkeypatch.setattr(fetch, "_from_debian", lambda *_: fashion_root)
    monkeypatch.setattr(fetch, "_from_mirrors", lambda *_: fashion_root)
    fetch._from_debian.__name__ = fetch._from_mirrors.__name__ = "_from_test"
    with pytest.raises(DataError, match="SHA-256 differs"):
        FashionMNIST().prepare_data()
    assert not list(no_system_copy.rglob("*.gz"))
    import hashlib

    right = {
        name: hashlib.sha256(gzip.decompress((fashion_root / f"{name}.gz").read_bytes())).hexdigest()
        for name in fashion_mnist.FILES
    }
    monkeypatch.setattr(fashion_mnist, "FILES", right)
    data = FashionMNIST(val_size=20, batch_size=10)
    data.prepare_data()
    data.setup()
    assert len(list((cache.cache_dir() / "data" / "fashion-mnist").glob("*.gz"))) == 4
    assert not list((cache.cache_dir() / "tmp").iterdir())
    assert data.fingerprint()["sizes"] == {"val": 20, "train": 100, "test": 60}
