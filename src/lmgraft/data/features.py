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
    file, record, progress = folder / "tokens.bin", folder / "features.json", folder / "progress.json"
    aside = folder / "labels.bin"
    size, aside_size = int(np.prod(shape)) * np.dtype(dtype).itemsize, 16 * shape[0]
    with lock(f"features-{key}"):
        folder.mkdir(parents=True, exist_ok=True)
        complete = record.exists()
        digests, faults = _read_chunks(record if complete else progress)
        if not (_has_size(file, size) and _has_size(aside, aside_size)):
            digests, faults, complete = {}, {}, False
            _make_room(file, size)
            _make_room(aside, aside_size)
        tokens = np.memmap(file, dtype=dtype, mode="r+", shape=shape)
        labels = np.memmap(aside, dtype=np.int64, mode="r+", shape=(shape[0], 2))
        missing = [s for s in range(0, shape[0], _CHUNK) if not _is_whole(tokens, labels, s, digests)]
        if complete and missing:
            sys.stderr.write(f"{file}: {len(missing)} chunks are damaged and are computed again\n")
        for start in sorted(set(map(int, faults)) - set(missing)):
            report([Fault(*fault) for fault in faults[str(start)]])
        started, computed = time.perf_counter(), 0
        for start in missing:
            stop = min(start + _CHUNK, shape[0])
            batch, unreadable = compute(start, stop)
            values = batch.inputs
            if tuple(values.shape) != (stop - start, *shape[1:]):
                raise DataError(f"tokens {tuple(values.shape)} of samples {start} to {stop}, expected {shape[1:]} each")
            faults.pop(str(start), None)
            if unreadable:
                report(unreadable)
                faults[str(start)] = [list(fault) for fault in unreadable]
            tokens[start:stop] = values.numpy()
            labels[start:stop] = torch.stack([batch.labels, batch.index], 1).numpy()
            tokens.flush()
            labels.flush()
            digests[str(start)] = _digest(tokens[start:stop], labels[start:stop])
            records.write_json(progress, {"digests": digests, "faults": faults})
            computed += stop - start
            say(computed, shape[0], time.perf_counter() - started)
        seconds = time.perf_counter() - started if missing else 0.0
        if missing or not complete:
            records.write_json(record, whole | {"digests": digests, "faults": faults})
        progress.unlink(missing_ok=True)
    return Stored(
        tokens=np.memmap(file, dtype=dtype, mode="r", shape=shape),
        labels=np.memmap(aside, dtype=np.int64, mode="r", shape=(shape[0], 2)),
        seconds=seconds,
        computed=computed,
        folder=folder,
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


def _is_whole(tokens: npt.NDArray[Any], labels: npt.NDArray[Any], start: int, digests: Mapping[str, str]) -> bool:
    if str(start) not in digests:
        return False
    chunks = -(-tokens.shape[0] // _CHUNK)
    stride = 1 if tokens.nbytes <= _CHECKED_WHOLE else max(1, chunks // _SPOT_CHECKS)
    if start // _CHUNK % stride:
        return True
    stop = start + _CHUNK
    return _digest(tokens[start:stop], labels[start:stop]) == digests[str(start)]


def _digest(*arrays: npt.NDArray[Any]) -> str:
    digest = hashlib.sha256()
    for values in arrays:
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


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
