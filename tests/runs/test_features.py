"""The encoder's tokens on disk: whole or computed again, never another encoder's."""

import json
import shutil
from collections import namedtuple

import numpy as np
import pytest
import torch

from lmgraft.data import features
from lmgraft.data.features import FeatureSet, store_features
from lmgraft.data.labelled import LabelledBatch
from lmgraft.data.loader import Draw, Fault
from lmgraft.errors import DataError

SHAPE = (25, 3, 4)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch, tmp_path):
    monkeypatch.setenv("LMGRAFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(features, "_CHUNK", 10)


class Encoder:
    """Tokens that say which sample they are of; counts what it is asked for."""

    def __init__(self, fail_at=None):
        self.asked, self.fail_at = [], fail_at

    def __call__(self, first, stop):
        if first == self.fail_at:
            raise KeyboardInterrupt
        self.asked.append((first, stop))
        samples = torch.arange(first, stop)
        tokens = samples[:, None, None] + torch.arange(12).view(3, 4) / 16
        return LabelledBatch(tokens.half(), samples % 5, samples + 100, samples + 100), ()


def expected(samples):
    return torch.tensor(samples)[:, None, None] + torch.arange(12).view(3, 4) / 16


def test_computed_once_then_read():
    encoder = Encoder()
    first = store_features({"of": "x"}, SHAPE, "float16", encoder)
    assert encoder.asked == [(0, 10), (10, 20), (20, 25)]
    assert first.computed == 25
    second = store_features({"of": "x"}, SHAPE, "float16", encoder)
    assert (second.computed, second.seconds, len(encoder.asked)) == (0, 0.0, 3)
    tokens, labels, sources, _ = FeatureSet([second]).__getitems__([Draw(0, 24), Draw(0, 3)])
    assert torch.equal(tokens, expected([24, 3]))
    assert tokens.dtype == torch.float32
    assert labels.tolist() == [4, 3]
    assert sources.tolist() == [124, 103]


def test_another_identity_is_another_store():
    one = store_features({"of": "x"}, SHAPE, "float16", Encoder())
    for identity, dtype in (({"of": "y"}, "float16"), ({"of": "x"}, "float32")):
        encoder = Encoder()
        assert store_features(identity, SHAPE, dtype, encoder).folder != one.folder
        assert len(encoder.asked) == 3


def test_killed_it_goes_on():
    with pytest.raises(KeyboardInterrupt):
        store_features({"of": "x"}, SHAPE, "float16", Encoder(fail_at=20))
    encoder = Encoder()
    stored = store_features({"of": "x"}, SHAPE, "float16", encoder)
    assert encoder.asked == [(20, 25)]
    assert np.array_equal(stored.tokens.astype(np.float32), expected(list(range(25))).numpy())


@pytest.mark.parametrize("name", ["tokens.bin", "labels.bin"])
def test_a_damaged_chunk_is_computed_again(name, capsys):
    stored = store_features({"of": "x"}, SHAPE, "float16", Encoder())
    file = stored.folder / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    encoder = Encoder()
    again = store_features({"of": "x"}, SHAPE, "float16", encoder)
    assert encoder.asked == [(10, 20)]
    assert name == "labels.bin" or np.array_equal(again.tokens.astype(np.float32), expected(list(range(25))).numpy())
    assert again.labels[:, 0].tolist() == [i % 5 for i in range(25)]
    assert "damaged" in capsys.readouterr().err


def test_a_file_cut_short_is_computed_again():
    stored = store_features({"of": "x"}, SHAPE, "float16", Encoder())
    file = stored.folder / "tokens.bin"
    file.write_bytes(file.read_bytes()[:-1])
    encoder = Encoder()
    store_features({"of": "x"}, SHAPE, "float16", encoder)
    assert len(encoder.asked) == 3


def test_the_record_says_what_it_is_of():
    stored = store_features({"of": "x"}, SHAPE, "float16", Encoder())
    record = json.loads((stored.folder / "features.json").read_text())
    assert record["identity"] == {"of": "x"}
    assert record["shape"] == list(SHAPE)
    assert not (stored.folder / "progress.json").exists()


class Unreadable(Encoder):
    """Of each chunk the first file cannot be read, and of the first chunk another."""

    def __call__(self, first, stop):
        faults = [Fault(f"{first}.jpg", "broken"), *([Fault("3.jpg", "empty")] if first == 0 else [])]
        return super().__call__(first, stop)[0], tuple(faults)


def test_unreadable_files_are_reported_again_from_the_cache():
    def faults_of(encoder, *, limit=99):
        met = []

        def report(faults):
            met.extend(fault.file for fault in faults)
            if len(met) > limit:
                raise DataError("too many")

        store_features({"of": "x"}, SHAPE, "float16", encoder, report=report)
        return met

    with pytest.raises(KeyboardInterrupt):
        faults_of(Unreadable(fail_at=20))
    encoder = Unreadable()
    assert faults_of(encoder) == ["0.jpg", "3.jpg", "10.jpg", "20.jpg"]
    assert encoder.asked == [(20, 25)]
    nothing = Unreadable(fail_at=0)
    assert faults_of(nothing) == ["0.jpg", "3.jpg", "10.jpg", "20.jpg"]
    assert nothing.asked == []
    with pytest.raises(DataError, match="too many"):
        faults_of(nothing, limit=3)


def test_a_chunk_beyond_the_limit_is_not_kept():
    def report(faults):
        raise DataError("too many")

    with pytest.raises(DataError, match="too many"):
        store_features({"of": "x"}, SHAPE, "float16", Unreadable(), report=report)
    encoder = Unreadable()
    store_features({"of": "x"}, SHAPE, "float16", encoder)
    assert encoder.asked[0] == (0, 10)


def test_no_room_is_said_before_anything_is_computed(monkeypatch):
    Usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(100, 90, 10))
    encoder = Encoder()
    with pytest.raises(DataError, match="LMGRAFT_CACHE"):
        store_features({"of": "x"}, SHAPE, "float16", encoder)
    assert encoder.asked == []


def test_tokens_of_another_shape_are_refused():
    with pytest.raises(DataError, match="expected"):
        store_features({"of": "x"}, (25, 3, 5), "float16", Encoder())


def one_more(batch):
    return batch._replace(inputs=batch.inputs + 1)


def test_epochs_take_turns_with_views():
    one = store_features({"of": "x", "view": 0}, SHAPE, "float16", Encoder())
    two = store_features({"of": "x", "view": 1}, SHAPE, "float16", lambda a, b: (one_more(Encoder()(a, b)[0]), ()))
    both = FeatureSet([one, two])
    for epoch in range(4):
        tokens = both.__getitems__([Draw(epoch, 7)]).inputs
        assert torch.equal(tokens, expected([7]) + epoch % 2)
