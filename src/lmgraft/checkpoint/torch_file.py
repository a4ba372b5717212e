"""Torch checkpoints (`pytorch_model.bin` and its shards): the tensors wanted, by their byte ranges.

`torch.load` would need all of the file on this machine and runs an unpickler over it. These
files are uncompressed zip archives: a small pickle that describes the tensors, and one member of
raw numbers for each storage. So the pickle is read as data, and a tensor straight from its range.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from lmgraft.checkpoint.places import (
    ByteSource,
    Place,
    bytes_to_fetch,
    read_bytes,
    read_tensor,
    refuse_stand_in,
    will_read,
)
from lmgraft.checkpoint.safetensors_file import check_promised, find_shards
from lmgraft.checkpoint.torch_pickle import TensorRecord, read_state
from lmgraft.checkpoint.zip_members import damaged, data_offset, is_zip, read_directory
from lmgraft.errors import CheckpointError

_INDEX = "pytorch_model.bin.index.json"
_MOST_PICKLE = 16 << 20  # a 70B model's takes 0.2 MB
_PICKLE = "/data.pkl"
_PADDING = 1 << 12  # what may lie around a member's numbers: its header, alignment
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class TorchFile:
    """One file that torch.save wrote; its description is read, its tensors are not.

    Raises:
        CheckpointError: If it is damaged, of torch's old format, or holds more than tensors.
    """

    def __init__(self, source: ByteSource) -> None:
        self.source = source
        refuse_stand_in(source)
        if not is_zip(source):
            raise CheckpointError(
                f"{source.label} is no archive as torch.save writes it since version 1.6",
                "save it anew, if you trust it: torch.save(torch.load(old, weights_only=True), new)",
            )
        self._members = read_directory(source)
        pickles = [name for name in self._members if name.endswith(_PICKLE) and name.count("/") == 1]
        if len(pickles) != 1:
            raise damaged(source, f"it holds {len(pickles)} members that describe tensors")
        self._root = pickles[0].removesuffix(_PICKLE)
        if f"{self._root}/byteorder" in self._members and self._content("byteorder", 64).strip() != b"little":
            raise CheckpointError(f"{source.label} holds big-endian numbers", "save it anew on a common machine")
        self.records = read_state(self._content("data.pkl", _MOST_PICKLE), source.label)
        self._first = {name: self._check(name, record) for name, record in self.records.items()}

    def _content(self, name: str, most: int) -> bytes:
        member = self._members[f"{self._root}/{name}"]
        if member.size > most:
            raise damaged(self.source, f"its {name} has {member.size} bytes")
        return read_bytes(self.source, data_offset(self.source, member), member.size)

    def _check(self, name: str, record: TensorRecord) -> int:
        """The first byte of a tensor inside its member, which is there and holds all of it."""
        member = self._members.get(f"{self._root}/data/{record.storage.key}")
        width = record.storage.dtype.itemsize
        if member is None or member.size != record.storage.count * width:
            raise damaged(self.source, f"the numbers of {name!r} are not there in full")
        if math.prod(n for n in record.shape if n) >= 1 << 62:
            raise damaged(self.source, f"{name!r} is larger than any tensor")
        steps = zip(record.shape, record.stride, strict=True)
        last = record.offset + sum((n - 1) * stride for n, stride in steps)
        if 0 not in record.shape and last >= record.storage.count:
            raise damaged(self.source, f"{name!r} ends behind the numbers it is made of")
        return record.offset * width

    def nbytes(self, name: str) -> int:
        record = self.records[name]
        return math.prod(record.shape) * record.storage.dtype.itemsize

    def dtype(self, name: str) -> str:
        return _NAMES[self.records[name].storage.dtype]

    def offset(self, name: str) -> int:
        """Where in the file the bytes of a tensor begin."""
        member = self._members[f"{self._root}/data/{self.records[name].storage.key}"]
        return data_offset(self.source, member) + self._first[name]

    def _span(self, name: str) -> tuple[int, int]:
        """Offset and number of the bytes to fetch: one range for a member's header and its tensor."""
        record = self.records[name]
        member = self._members[f"{self._root}/data/{record.storage.key}"]
        whole = member.limit - member.header
        if math.prod(record.shape) == record.storage.count and whole <= member.size + _PADDING:
            return member.header, whole
        return self.offset(name), self.nbytes(name)

    def to_fetch(self, name: str) -> int:
        """Bytes for a tensor that neither lie on this machine nor in the cache."""
        return bytes_to_fetch(self.source, *self._span(name))

    def read(self, name: str) -> Tensor:
        """Read one tensor; only its own bytes.

        Raises:
            CheckpointError: If it is a view that leaves numbers out or repeats them.
        """
        record = self.records[name]
        if 0 in record.shape:
            return torch.empty(record.shape, dtype=record.storage.dtype)
        outward = _outward_order(record)
        if outward is None:
            raise CheckpointError(
                f"{name} in {self.source.label} is a view with gaps or repeats (strides {record.stride})",
                "save the model anew with contiguous tensors",
            )
        will_read(self.source, *self._span(name))
        stored = tuple(record.shape[axis] for axis in outward)
        tensor = read_tensor(self.source, self.offset(name), record.storage.dtype, stored)
        back = sorted(range(len(outward)), key=outward.__getitem__)
        return tensor.permute(back).contiguous()


def _outward_order(record: TensorRecord) -> Sequence[int] | None:
    """Axes from the slowest to the fastest in memory, or None if they do not fill it densely."""
    shape, stride = record.shape, record.stride
    order = sorted(range(len(shape)), key=lambda axis: (-stride[axis], axis) if shape[axis] > 1 else (1, axis))
    expected = 1
    for axis in reversed(order):
        if shape[axis] > 1 and stride[axis] != expected:
            return None
        expected *= shape[axis]
    return order


class TorchCheckpoint:
    """Weights in one file or in shards; see `lmgraft.checkpoint.source.Checkpoint`.

    Args:
        place: Where the files lie.
        config: The model's config.json.
        file: The one file to read; None takes the index's shards, or `pytorch_model*.bin`.

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
        shards = {file: set[str]()} if file else find_shards(place, _INDEX, "pytorch_model", ".bin")
        self._promised = shards
        self._opened: dict[str, TorchFile] = {}
        self._shard_of = {tensor: shard for shard, promised in shards.items() for tensor in promised}
        waits = getattr(place, "remote", False)  # describing a remote shard costs requests
        for shard, promised in shards.items():
            if not (waits and promised):
                self._shard_of |= dict.fromkeys(self._open(shard).records, shard)

    def _open(self, shard: str) -> TorchFile:
        if shard not in self._opened:
            opened = TorchFile(self._place.open(shard))
            check_promised(opened.source.label, self._promised[shard], opened.records.keys())
            self._opened[shard] = opened
        return self._opened[shard]

    def _file(self, name: str) -> TorchFile:
        return self._open(self._shard_of[name])

    def names(self) -> Collection[str]:
        return self._shard_of.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._file(name).records[name].shape

    def nbytes(self, name: str) -> int:
        return self._file(name).nbytes(name)

    def dtype(self, name: str) -> str:
        return self._file(name).dtype(name)

    def to_fetch(self, name: str) -> int:
        """Bytes of a tensor that neither lie on this machine nor in the cache."""
        return self._file(name).to_fetch(name)

    def read(self, name: str) -> Tensor:
        """Read one tensor in the file's own dtype."""
        return self._file(name).read(name)
