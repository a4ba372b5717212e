"""Encoder tokens on disk: computed once, checked, memory-mapped.

<cache>/features/<key>/tokens.bin      (N, T, V) numbers, sample by sample
<cache>/features/<key>/labels.bin      (N, 2) int64: label, position in the source
<cache>/features/<key>/features.json   what they are of, shape, dtype; SHA-256 of each chunk and the files that could
                                       not be read for it; written last
<cache>/features/<key>/progress.json   digests and unreadable files so far, while tokens are being computed

The key is a digest of the identity: data, encoder and transform. This room does not know the
encoder: it asks for the tokens of a range of samples.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lmgraft import records
from lmgraft.checkpoint.cache import cache_dir, lock
from lmgraft.checkpoint.digest import json_digest
from lmgraft.data.labelled import LabelledBatch, LabelledSet
from lmgraft.data.loader import Draw, Fault
from lmgraft.errors import DataError

Storage = Literal["float32", "float16"]
Compute = Callable[[int, int], tuple[LabelledBatch, tuple[Fault, ...]]]
"""(first, stop) -> these samples with tokens (stop - first, T, V) in place of inputs, and the files that could not be
read."""

_TOKENS, _LABELS = "tokens.bin", "labels.bin"
_FORMAT = 2  # 1 did not keep which files could not be read
_CHUNK = 512  # samples hashed and written at a time: what is lost when the process is killed
_CHECKED_WHOLE = 8 << 30  # bytes; of longer files every k-th chunk is checked
_SPOT_CHECKS = 64


@dataclass(frozen=True, kw_only=True)
class Stored:
    """Tokens on disk, and what computing them took this time (0 where they were there already)."""

    tokens: npt.NDArray[Any]
    """(N, T, V), memory-mapped, read-only."""
    labels: npt.NDArray[np.int64]
    """(N, 2), likewise: label, position in the source."""
    seconds: float
    computed: int
    """Samples computed this time."""
    folder: Path


def store_features(
    identity: Mapping[str, Any],
    shape: tuple[int, int, int],
    dtype: Storage,
    compute: Compute,
    say: Callable[[int, int, float], None] = lambda *_: None,
    report: Callable[[Sequence[Fault]], None] = lambda _: None,
) -> Stored:
    """The tokens of `identity`, from the cache as far as they are there and whole.

    Killed, it goes on at the chunk where it stopped. A chunk whose digest is wrong is computed
    again, with a line that says so. Files that could not be read are reported each time, also
    where their chunks are there already.

    Args:
        identity: Plain data that names data, encoder and transform.
        shape: (N, T, V).
        compute: Tokens of a range of samples.
        say: Called with samples done, of how many, and seconds so far.
        report: Called with files that could not be read, before their chunk is kept: what it raises ends this.

    Raises:
        DataError: If there is no room for them.
    """
    whole = {
        "format": _FORMAT, "identity": dict(identity), "shape": list(shape), "dtype": dtype, "chunk": _CHUNK,
    }  # fmt: skip
    key = json_digest(whole)[:32]
    folder = cache_dir() / "features" / key
    record, progress = folder / "features.json", folder / "progress.json"
    with lock(f"features-{key}"):
        folder.mkdir(parents=True, exist_ok=True)
        complete = record.exists()
        chunks = _open_chunks(folder, record if complete else progress, shape, dtype)
        digests, faults = chunks.digests, chunks.faults
        missing = [start for start in range(0, shape[0], _CHUNK) if not chunks.is_whole(start)]
        if complete and digests and missing:
            sys.stderr.write(f"{folder / _TOKENS}: {len(missing)} chunks are damaged and are computed again\n")
        for start in sorted(set(map(int, faults)) - set(missing)):
            report([Fault(*fault) for fault in faults[str(start)]])
        started, computed = time.perf_counter(), 0
        for start in missing:
            computed += chunks.fill(start, compute, report)
            records.write_json(progress, {"digests": digests, "faults": faults})
            say(computed, shape[0], time.perf_counter() - started)
        seconds = time.perf_counter() - started if missing else 0.0
        if missing or not complete:
            records.write_json(record, whole | {"digests": digests, "faults": faults})
        progress.unlink(missing_ok=True)
    return Stored(
        tokens=np.memmap(folder / _TOKENS, dtype=dtype, mode="r", shape=shape),
        labels=np.memmap(folder / _LABELS, dtype=np.int64, mode="r", shape=(shape[0], 2)),
        seconds=seconds,
        computed=computed,
        folder=folder,
    )


@dataclass(frozen=True)
class _Chunks:
    """What is stored, chunk by chunk; digests and faults are by a chunk's first sample."""

    tokens: np.memmap[Any, Any]
    labels: np.memmap[Any, Any]
    digests: dict[str, str]
    faults: dict[str, list[list[str]]]

    def is_whole(self, start: int) -> bool:
        """Whether a chunk is there and holds what it did; of large files only some are read for that."""
        if str(start) not in self.digests:
            return False
        chunks = -(-self.tokens.shape[0] // _CHUNK)
        stride = 1 if self.tokens.nbytes <= _CHECKED_WHOLE else max(1, chunks // _SPOT_CHECKS)
        return bool(start // _CHUNK % stride) or self._digest(start) == self.digests[str(start)]

    def fill(self, start: int, compute: Compute, report: Callable[[Sequence[Fault]], None]) -> int:
        """Compute and write a chunk; returns how many samples it has."""
        stop = min(start + _CHUNK, self.tokens.shape[0])
        batch, unreadable = compute(start, stop)
        values, expected = batch.inputs, self.tokens.shape[1:]
        if tuple(values.shape) != (stop - start, *expected):
            raise DataError(f"tokens {tuple(values.shape)} of samples {start} to {stop}, expected {expected} each")
        self.faults.pop(str(start), None)
        if unreadable:
            report(unreadable)
            self.faults[str(start)] = [list(fault) for fault in unreadable]
        self.tokens[start:stop] = values.numpy()
        self.labels[start:stop] = torch.stack([batch.labels, batch.index], 1).numpy()
        self.tokens.flush()
        self.labels.flush()
        self.digests[str(start)] = self._digest(start)
        return int(stop - start)

    def _digest(self, start: int) -> str:
        digest = hashlib.sha256()
        for values in (self.tokens, self.labels):
            digest.update(np.ascontiguousarray(values[start : start + _CHUNK]).data)
        return digest.hexdigest()


def _open_chunks(folder: Path, record: Path, shape: tuple[int, int, int], dtype: Storage) -> _Chunks:
    """The files of a folder, made where they are not there or not of their size; nothing in them counts then.

    Raises:
        DataError: If there is no room for them.
    """
    digests, faults = _read_chunks(record)
    sizes = {_TOKENS: int(np.prod(shape)) * np.dtype(dtype).itemsize, _LABELS: 16 * shape[0]}
    if not all(_has_size(folder / name, size) for name, size in sizes.items()):
        digests, faults = {}, {}
        for name, size in sizes.items():
            _make_room(folder / name, size)
    return _Chunks(
        np.memmap(folder / _TOKENS, dtype=dtype, mode="r+", shape=shape),
        np.memmap(folder / _LABELS, dtype=np.int64, mode="r+", shape=(shape[0], 2)),
        digests,
        faults,
    )


def _read_chunks(path: Path) -> tuple[dict[str, str], dict[str, list[list[str]]]]:
    """By first sample: a chunk's digest, and the unreadable files met in it."""
    if not path.exists():
        return {}, {}
    content = records.read_json(path)
    return content["digests"], content["faults"]


def _has_size(file: Path, size: int) -> bool:
    return file.exists() and file.stat().st_size == size


def _make_room(file: Path, size: int) -> None:
    free = shutil.disk_usage(file.parent).free
    if size > free:
        raise DataError(
            f"the encoder's tokens need {size / 2**30:.1f} GiB, and {file.parent} has {free / 2**30:.1f} GiB free",
            "set features.dtype: float16 or data.train_size, or move the cache with LMGRAFT_CACHE",
        )
    with open(file, "wb") as out:
        out.truncate(size)  # sparse: blocks are taken as they are written


class FeatureSet(LabelledSet):
    """Stored tokens in place of what the encoder takes; epoch e takes view e modulo their number.

    Args:
        views: The same samples under different augmentation.
        groups: (N,) which samples belong together; each is by itself by default.
    """

    def __init__(self, views: Sequence[Stored], groups: Tensor | None = None) -> None:
        self.views = [stored.tokens for stored in views]
        self.labels, self.indices = (torch.from_numpy(np.array(views[0].labels[:, i])) for i in (0, 1))
        self._groups = self.indices if groups is None else groups

    @property
    def groups(self) -> Tensor:  # type: ignore[override]
        return self._groups

    def __getitems__(self, draws: list[Draw]) -> LabelledBatch:
        view = self.views[draws[0].epoch % len(self.views)]
        samples = np.array([draw.sample for draw in draws])
        return self.labelled(torch.from_numpy(view[samples]).float(), torch.from_numpy(samples))
