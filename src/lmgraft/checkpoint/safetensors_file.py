"""Safetensors: the header, checked entry by entry, and tensors by their own byte range.

Layout: 8 bytes little-endian length, a JSON object name -> dtype, shape, data_offsets, then data.
The header is parsed here and not by the safetensors package because only this way can a remote
file be read by ranges, and a local one without mapping all of it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Set
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from lmgraft.checkpoint.places import ByteSource, Place, bytes_to_fetch, read_bytes, read_tensor, refuse_stand_in
from lmgraft.errors import CheckpointError, SourceError

_MOST_HEADER = 100 << 20  # the format's own limit
_MOST_DIMS = 64
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.uint8,  # exponents
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_WIDTHS = {name: dtype.itemsize for name, dtype in DTYPES.items()} | {"U64": 8, "U32": 4, "U16": 2}
_INDEX = "model.safetensors.index.json"


class SafetensorsCheckpoint:
    """Weights in one file or in shards; see `lmgraft.checkpoint.source.Checkpoint`.

    Args:
        place: Where the files lie.
        config: The model's config.json.
        file: The one file to read; None takes the index's shards, or every file there is.

    Raises:
        SourceError: If there is no weight file.
        CheckpointError: If a file is damaged or a shard is missing; for a shard of a remote place
            that an index describes, only once one of its tensors is asked for.
    """

    style: Literal["hf"] = "hf"

    def __init__(self, place: Place, config: dict[str, Any], file: str | None = None) -> None:
        self.label, self.config = place.label, config
        self.licence: str | None = None
        self._place = place
        shards = {file: set[str]()} if file is not None else find_shards(place, _INDEX, "", ".safetensors")
        self._entries: dict[str, tuple[ByteSource, str, tuple[int, ...], int]] = {}
        # A header of a remote shard costs a request: where an index says what lies in it, it waits.
        waits = getattr(place, "remote", False)
        self._unopened = {shard: promised for shard, promised in shards.items() if waits and promised}
        self._shard_of = {tensor: shard for shard, promised in self._unopened.items() for tensor in promised}
        for name, promised in shards.items():
            if name not in self._unopened:
                self._open(name, promised)

    def _open(self, name: str, promised: set[str]) -> None:
        source = self._place.open(name)
        entries = read_header(source)
        check_promised(source.label, promised, entries.keys())
        for tensor, (dtype, shape, offset) in entries.items():
            self._entries[tensor] = (source, dtype, shape, offset)

    def _entry(self, name: str) -> tuple[ByteSource, str, tuple[int, ...], int]:
        """Where a tensor lies, what it is stored as, its shape and its offset."""
        shard = self._shard_of.get(name)
        if shard in self._unopened:
            self._open(shard, self._unopened[shard])
            del self._unopened[shard]
        return self._entries[name]

    def names(self) -> Collection[str]:
        return self._entries.keys() | self._shard_of.keys() if self._shard_of else self._entries.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entry(name)[2]

    def nbytes(self, name: str) -> int:
        _, dtype, shape, _ = self._entry(name)
        return math.prod(shape) * _WIDTHS.get(dtype, 1)

    def dtype(self, name: str) -> str:
        return self._entry(name)[1]

    def to_fetch(self, name: str) -> int:
        """Bytes of a tensor that neither lie on this machine nor in the cache."""
        source, _, _, offset = self._entry(name)
        return bytes_to_fetch(source, offset, self.nbytes(name))

    def read(self, name: str) -> Tensor:
        """Read one tensor in the file's own dtype."""
        source, dtype, shape, offset = self._entry(name)
        if dtype not in DTYPES:
            raise CheckpointError(
                f"{name} in {source.label} is stored as {dtype}, which is not read",
                "use the model's unquantised weights, or a GGUF file",
            )
        return read_tensor(source, offset, DTYPES[dtype], shape)


def read_header(source: ByteSource) -> dict[str, tuple[str, tuple[int, ...], int]]:
    """Tensor name -> dtype, shape and absolute offset of its data.

    Raises:
        CheckpointError: If the header is damaged, or an entry lies outside the file or is not of its size.
    """
    refuse_stand_in(source)
    if source.size < 8:
        raise CheckpointError(f"{source.label} is cut short or damaged: {source.size} bytes", "download the file again")
    length = int.from_bytes(read_bytes(source, 0, 8), "little")
    if length > min(_MOST_HEADER, source.size - 8):
        raise _damaged(source, f"its header claims {length} bytes")
    text = read_bytes(source, 8, length)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        raise _damaged(source, "its header is no JSON") from None
    if not isinstance(header, dict):
        raise _damaged(source, "its header is no JSON object")
    start = 8 + length
    entries = {name: _entry(source, name, entry, start) for name, entry in header.items() if name != "__metadata__"}
    _check_overlap(source, header)
    return entries


def _entry(source: ByteSource, name: str, entry: Any, start: int) -> tuple[str, tuple[int, ...], int]:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        fits = isinstance(dtype, str) and all(_is_count(n) for n in (*shape, begin, end)) and begin <= end
        # Products of many or of huge sizes would take long, and no tensor can have them.
        fits = fits and len(shape) <= _MOST_DIMS and math.prod(n for n in shape if n) < 1 << 62
    except (TypeError, KeyError, ValueError):
        fits = False
    if not fits:
        raise _damaged(source, f"the entry of {name!r} is malformed")
    if start + end > source.size:
        raise CheckpointError(
            f"{source.label} is cut short or damaged: {name} ends at byte {start + end}, the file at {source.size}",
            "download the file again",
        )
    if dtype in _WIDTHS and math.prod(shape) * _WIDTHS[dtype] != end - begin:
        raise _damaged(source, f"{name} of shape {tuple(shape)} and type {dtype} takes {end - begin} bytes")
    return dtype, tuple(shape), start + begin


def _check_overlap(source: ByteSource, header: Mapping[str, Any]) -> None:
    spans = sorted((*entry["data_offsets"], name) for name, entry in header.items() if name != "__metadata__")
    for (_, end, name), (begin, _, other) in pairwise(spans):
        if begin < end:
            raise _damaged(source, f"{name} and {other} overlap")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def _damaged(source: ByteSource, what: str) -> CheckpointError:
    return CheckpointError(f"{source.label} is cut short or damaged: {what}", "download the file again")


def read_json(place: Place, name: str) -> dict[str, Any]:
    """A JSON object out of `place`.

    Raises:
        CheckpointError: If the file is damaged.
    """
    source = place.open(name)
    if source.size > _MOST_HEADER:
        raise CheckpointError(f"{source.label} is no JSON object: it has {source.size} bytes", "download it again")
    refuse_stand_in(source)
    text = read_bytes(source, 0, source.size)  # not in the `try`: a remote place has errors of its own
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{source.label} is not readable JSON ({error})", "download it again") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{source.label} holds no JSON object", "download it again")
    return value


def check_promised(label: str, promised: Set[str], found: Set[str]) -> None:
    """Refuse a shard that lacks what its index says it holds.

    Raises:
        CheckpointError: Naming the first tensor.
    """
    absent = sorted(promised - found)
    if absent:
        raise CheckpointError(
            f"{label} lacks {len(absent)} tensors that its index promises, first {absent[0]}",
            "download the model again",
        )


def find_shards(place: Place, index: str, beginning: str, ending: str) -> dict[str, set[str]]:
    """Weight files and the tensor names that `index` promises for each; without it, files by their names.

    Raises:
        SourceError: If there is no weight file.
        CheckpointError: If the index is damaged, points out of its folder, or a shard is missing.
    """
    names = place.names()
    if index not in names:
        files = [name for name in names if name.startswith(beginning) and name.endswith(ending)]
        if not files:
            raise SourceError(f"{place.label} holds no {ending} file", "give the folder with the weights")
        return {name: set() for name in files}
    refuse_stand_in(place.open(index))
    try:
        weight_map = read_json(place, index).get("weight_map")
    except CheckpointError:
        weight_map = None
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointError(f"{place.label}/{index} is not a weight index", "download it again")
    shards: dict[str, set[str]] = {}
    for tensor, shard in weight_map.items():
        if "/" in shard or "\\" in shard or shard in ("", ".", ".."):
            raise CheckpointError(f"{place.label}: {index} points outside its folder: {shard!r}", "do not use it")
        shards.setdefault(shard, set()).add(tensor)
    for shard in shards:
        if shard not in names:
            raise CheckpointError(f"{shard} is missing from {place.label}", "download the missing shard")
    return shards
