"""GGUF files: the header by a parse that skips tokenizer arrays, one tensor at a time.

`gguf.GGUFReader` builds every token of the vocabulary as an array (seconds); the blocks need
a few numbers and the tensor table. Dequantising, row by row, is left to the `gguf` package.

Layout (little-endian): magic, version, counts; key/value pairs; tensor infos; aligned data.
A model in parts is several such files, named `...-00001-of-00003.gguf`.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from lmgraft.checkpoint.places import (
    CHUNK,
    ByteSource,
    bytes_to_fetch,
    read_bytes,
    read_tensor,
    refuse_stand_in,
    will_read,
)
from lmgraft.errors import CheckpointError

if TYPE_CHECKING:  # its import takes as long as a fifth of lmgraft's own
    from gguf.constants import GGMLQuantizationType

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_FLOAT32, _STRING, _ARRAY = 6, 8, 9
_MOST_ENTRIES = 1 << 24  # a count above this is damage, not a model
_WINDOW = 1 << 18  # header bytes read at a time
_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
_PART = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


@dataclass(frozen=True)
class _TensorInfo:
    source: ByteSource
    shape: tuple[int, ...]
    quantization: GGMLQuantizationType
    offset: int
    nbytes: int


class GgufCheckpoint:
    """An open GGUF model; see `lmgraft.checkpoint.source.Checkpoint`.

    Args:
        parts: Its files, the first one first.
        licence: Where it is known from elsewhere.

    Raises:
        CheckpointError: If a file is no GGUF, is cut short, or holds a type unknown here.
    """

    style: Literal["gguf"] = "gguf"

    def __init__(self, parts: Sequence[ByteSource], licence: str | None = None) -> None:
        self.label = parts[0].label
        self.config: dict[str, Any] = {}
        self._tensors: dict[str, _TensorInfo] = {}
        for part in parts:
            config, tensors = _parse_header(part)
            self.config = config | self.config  # the first part describes the model
            self._tensors |= tensors
        promised = self.config.get("split.count", 1)
        if isinstance(promised, int) and promised > 1 and promised != len(parts):
            raise CheckpointError(
                f"{self.label} is one of {promised} parts, {len(parts)} given", "give the first part, all beside it"
            )
        stated = self.config.get("general.license")
        self.licence = licence or (stated if isinstance(stated, str) else None)

    def names(self) -> Collection[str]:
        return self._tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def nbytes(self, name: str) -> int:
        return self._tensors[name].nbytes

    def dtype(self, name: str) -> str:
        return str(self._tensors[name].quantization.name)

    def to_fetch(self, name: str) -> int:
        """Bytes of a tensor that neither lie on this machine nor in the cache."""
        info = self._tensors[name]
        return bytes_to_fetch(info.source, info.offset, info.nbytes)

    def read(self, name: str) -> Tensor:
        """Read one tensor: float16 and bfloat16 as they are, all else as float32."""
        info = self._tensors[name]
        if info.quantization.name in _PLAIN:
            return read_tensor(info.source, info.offset, _PLAIN[info.quantization.name], info.shape)
        will_read(info.source, info.offset, info.nbytes)
        num_rows = math.prod(info.shape[:-1])
        row = info.nbytes // max(1, num_rows)
        out = torch.empty(num_rows, info.shape[-1], dtype=torch.float32)
        step = max(1, CHUNK // max(1, 4 * info.shape[-1]))
        for first in range(0, num_rows, step):
            count = min(step, num_rows - first)
            raw = read_bytes(info.source, info.offset + first * row, count * row)
            out[first : first + count] = self._dequantize(name, raw, count)
        return out.reshape(info.shape)

    def _dequantize(self, name: str, raw: bytes, num_rows: int) -> Tensor:
        from gguf.quants import dequantize

        info = self._tensors[name]
        try:
            with np.errstate(all="ignore"):  # damaged scales: `read_tensors` reports what is not finite
                values = dequantize(np.frombuffer(raw, np.uint8).reshape(num_rows, -1), info.quantization)
        except (NotImplementedError, KeyError):
            raise CheckpointError(
                f"{name} in {self.label} is quantised as {info.quantization.name}, which cannot be read",
                "use a file in another quantisation (Q4_K_M, Q8_0, F16)",
            ) from None
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


def find_parts(label: str, present: Collection[str], name: str) -> list[str]:
    """The names of all parts of the model that the file `name` belongs to, in order.

    Args:
        label: Where the file lies, for error messages.
        present: Names of the files there.
        name: One of them.

    Raises:
        CheckpointError: If a part is missing.
    """
    match = _PART.fullmatch(name)
    if match is None:
        return [name]
    count = int(match["count"])
    if not 1 <= count <= 1000:
        raise CheckpointError(f"{label}: {name} claims {count} parts", "check the file's name")
    names = [f"{match['stem']}-{number:05d}-of-{match['count']}.gguf" for number in range(1, count + 1)]
    absent = sorted(set(names) - set(present))
    if absent:
        raise CheckpointError(f"{label} lacks {', '.join(absent[:3])}", "download all parts of the model")
    return names


class _Cursor:
    """A reading position in the header; running off the end is damage with a name."""

    def __init__(self, source: ByteSource) -> None:
        self.source, self.at = source, 0
        self.buffer = b""

    def need(self, size: int) -> None:
        """Have `size` bytes from here on in the buffer, which holds the file from its start."""
        end = self.at + size
        if size < 0 or end > self.source.size:
            raise CheckpointError(
                f"{self.source.label} is cut short or damaged: its header ends early", "fetch it again"
            )
        if end > len(self.buffer):
            have = len(self.buffer)
            count = min(max(end - have, _WINDOW, have // 2), self.source.size - have)
            self.buffer += read_bytes(self.source, have, count)

    def unpack(self, form: str) -> Any:
        size = struct.calcsize("<" + form)
        self.need(size)
        (value,) = struct.unpack_from("<" + form, self.buffer, self.at)
        self.at += size
        return value

    def count(self) -> int:
        value: int = self.unpack("Q")
        if value > _MOST_ENTRIES:
            raise CheckpointError(f"{self.source.label} is damaged: it claims {value} entries", "fetch it again")
        return value

    def string(self) -> str:
        size: int = self.unpack("Q")
        self.need(size)
        self.at += size
        return self.buffer[self.at - size : self.at].decode("utf-8", errors="replace")

    def skip_strings(self, count: int) -> None:
        unpack_from = struct.Struct("<Q").unpack_from
        for _ in range(count):
            if self.at + 8 > len(self.buffer):
                self.need(8)
            self.at += 8 + unpack_from(self.buffer, self.at)[0]
        self.need(0)


def _read_value(cursor: _Cursor, kind: int) -> Any:
    """One metadata value; arrays of strings (the vocabulary) are skipped and come as None."""
    if kind == _STRING:
        return cursor.string()
    if kind == _FLOAT32:  # the shortest decimal: 1e-05, as config.json has it, not 9.999999747378752e-06
        return float(str(np.float32(cursor.unpack("f"))))
    if kind != _ARRAY:
        if kind not in _SCALARS:
            raise CheckpointError(f"{cursor.source.label} is damaged: unknown value type {kind}", "fetch it again")
        return cursor.unpack(_SCALARS[kind])
    inner, count = cursor.unpack("I"), cursor.count()
    if inner == _STRING:
        cursor.skip_strings(count)
        return None
    if inner not in _SCALARS:
        raise CheckpointError(f"{cursor.source.label} is damaged: array of type {inner}", "fetch it again")
    form = f"<{count}{_SCALARS[inner]}"
    cursor.need(struct.calcsize(form))
    values = struct.unpack_from(form, cursor.buffer, cursor.at)
    cursor.at += struct.calcsize(form)
    return list(values)


def _parse_header(source: ByteSource) -> tuple[dict[str, Any], dict[str, _TensorInfo]]:
    if source.size == 0:
        raise CheckpointError(f"{source.label} is empty", "fetch it again")
    refuse_stand_in(source)
    magic = read_bytes(source, 0, min(4, source.size))
    if magic != b"GGUF":
        raise CheckpointError(f"{source.label} is no GGUF file: it begins with {magic!r}", "check the source")
    cursor = _Cursor(source)
    cursor.at = 4
    version = cursor.unpack("I")
    if version not in (2, 3):
        raise CheckpointError(f"{source.label} has GGUF version {version}", "convert it to version 3, little-endian")
    num_tensors, num_pairs = cursor.count(), cursor.count()
    config: dict[str, Any] = {}
    for _ in range(num_pairs):
        key = cursor.string()
        config[key] = _read_value(cursor, cursor.unpack("I"))
    headers = [_read_tensor_info(cursor) for _ in range(num_tensors)]
    alignment = config.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise CheckpointError(f"{source.label} is damaged: general.alignment is {alignment!r}", "fetch it again")
    start = -(-cursor.at // alignment) * alignment
    from gguf.constants import GGML_QUANT_SIZES

    tensors = {}
    for name, shape, quantization, offset in headers:
        values_per_block, bytes_per_block = GGML_QUANT_SIZES[quantization]
        if 0 in shape or shape[-1] % values_per_block:
            raise CheckpointError(
                f"{source.label} is damaged: {name} of type {quantization.name} has shape {shape}", "fetch it again"
            )
        nbytes = math.prod(shape) // values_per_block * bytes_per_block
        if start + offset + nbytes > source.size:
            raise CheckpointError(
                f"{source.label} is cut short: {name} ends at byte {start + offset + nbytes}, "
                f"the file at {source.size}",
                "fetch it again",
            )
        tensors[name] = _TensorInfo(source, shape, quantization, start + offset, nbytes)
    return config, tensors


def _read_tensor_info(cursor: _Cursor) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int]:
    from gguf.constants import GGMLQuantizationType

    name = cursor.string()
    num_dims = cursor.unpack("I")
    if not 1 <= num_dims <= 4:
        raise CheckpointError(f"{cursor.source.label} is damaged: {name!r} has {num_dims} dimensions", "fetch it again")
    shape = tuple(cursor.unpack("Q") for _ in range(num_dims))[::-1]  # GGUF lists the fastest axis first
    code = cursor.unpack("I")
    try:
        quantization = GGMLQuantizationType(code)
    except ValueError:
        raise CheckpointError(
            f"{name} in {cursor.source.label} has the unknown type {code}",
            "update the gguf package: pip install -U gguf",
        ) from None
    return name, shape, quantization, cursor.unpack("Q")
