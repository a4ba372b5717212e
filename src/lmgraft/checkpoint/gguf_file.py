"""GGUF files: the header by a parse that skips tokenizer arrays, one tensor at a time.

`gguf.GGUFReader` builds every token of the vocabulary as an array (seconds); the blocks need
a few numbers and the tensor table. Dequantising is left to the `gguf` package.

Layout (little-endian): magic, version, counts; key/value pairs; tensor infos; aligned data.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor

from lmgraft.errors import CheckpointError

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_FLOAT32, _STRING, _ARRAY = 6, 8, 9
_MOST_ENTRIES = 1 << 24  # a count above this is damage, not a model
_FLOATS = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}


@dataclass(frozen=True)
class _TensorInfo:
    shape: tuple[int, ...]
    quantization: GGMLQuantizationType
    offset: int
    nbytes: int


class GgufCheckpoint:
    """An open GGUF file; see `lmgraft.checkpoint.source.Checkpoint`.

    Raises:
        CheckpointError: If the file is no GGUF, is cut short, or holds a type unknown here.
    """

    style: Literal["gguf"] = "gguf"

    def __init__(self, path: Path, licence: str | None = None) -> None:
        self.path = path
        with open(path, "rb") as file:
            try:
                buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except ValueError:
                raise CheckpointError(f"{path} is empty", "fetch it again") from None
        with buffer:
            self.config, self._tensors = _parse_header(buffer, path)
        said = self.config.get("general.license")
        self.licence = licence or (said if isinstance(said, str) else None)

    def names(self) -> Collection[str]:
        return self._tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def nbytes(self, name: str) -> int:
        return self._tensors[name].nbytes

    def dtype(self, name: str) -> str:
        return str(self._tensors[name].quantization.name)

    def read(self, name: str) -> Tensor:
        """Read one tensor: float16 and bfloat16 as they are, all else as float32."""
        info = self._tensors[name]
        raw = np.fromfile(self.path, dtype=np.uint8, count=info.nbytes, offset=info.offset)
        if raw.size != info.nbytes:
            raise CheckpointError(f"{self.path} is cut short inside {name}", "fetch it again")
        if info.quantization in _FLOATS:
            return torch.from_numpy(raw.view(_FLOATS[info.quantization]).reshape(info.shape))
        if info.quantization == GGMLQuantizationType.BF16:
            return torch.from_numpy(raw.view(np.int16)).view(torch.bfloat16).reshape(info.shape)
        row = info.nbytes // math.prod(info.shape[:-1])
        try:
            with np.errstate(all="ignore"):  # damaged scales: `read_tensors` reports what is not finite
                values = dequantize(raw.reshape(*info.shape[:-1], row), info.quantization)
        except NotImplementedError:
            raise CheckpointError(
                f"{name} in {self.path} is quantised as {info.quantization.name}, which cannot be read",
                "use a file in another quantisation (Q4_K_M, Q8_0, F16)",
            ) from None
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


class _Cursor:
    """A reading position in the header; running off the end is damage with a name."""

    def __init__(self, buffer: mmap.mmap, path: Path) -> None:
        self.buffer, self.path, self.at = buffer, path, 0

    def unpack(self, form: str) -> Any:
        size = struct.calcsize("<" + form)
        self.need(size)
        (value,) = struct.unpack_from("<" + form, self.buffer, self.at)
        self.at += size
        return value

    def need(self, size: int) -> None:
        if size < 0 or self.at + size > len(self.buffer):
            raise CheckpointError(f"{self.path} is cut short or damaged: its header ends early", "fetch it again")

    def count(self) -> int:
        value: int = self.unpack("Q")
        if value > _MOST_ENTRIES:
            raise CheckpointError(f"{self.path} is damaged: it claims {value} entries", "fetch it again")
        return value

    def string(self) -> str:
        size: int = self.unpack("Q")
        self.need(size)
        self.at += size
        return self.buffer[self.at - size : self.at].decode("utf-8", errors="replace")

    def skip_strings(self, count: int) -> None:
        unpack_from, buffer, at = struct.Struct("<Q").unpack_from, self.buffer, self.at
        try:
            for _ in range(count):
                at += 8 + unpack_from(buffer, at)[0]
        except (struct.error, OverflowError):
            at = len(buffer) + 1
        self.need(at - self.at)
        self.at = at


def _read_value(cursor: _Cursor, kind: int) -> Any:
    """One metadata value; arrays of strings (the vocabulary) are skipped and come as None."""
    if kind == _STRING:
        return cursor.string()
    if kind != _ARRAY:
        if kind not in _SCALARS:
            raise CheckpointError(f"{cursor.path} is damaged: unknown value type {kind}", "fetch it again")
        value = cursor.unpack(_SCALARS[kind])
        # The decimal it was written from: 1e-05 as in a config.json, not 9.999999747378752e-06.
        return float(str(np.float32(value))) if kind == _FLOAT32 else value
    inner, count = cursor.unpack("I"), cursor.count()
    if inner == _STRING:
        cursor.skip_strings(count)
        return None
    if inner not in _SCALARS:
        raise CheckpointError(f"{cursor.path} is damaged: array of type {inner}", "fetch it again")
    size = struct.calcsize("<" + _SCALARS[inner]) * count
    cursor.need(size)
    values = struct.unpack_from(f"<{count}{_SCALARS[inner]}", cursor.buffer, cursor.at)
    cursor.at += size
    return list(values)


def _parse_header(buffer: mmap.mmap, path: Path) -> tuple[dict[str, Any], dict[str, _TensorInfo]]:
    cursor = _Cursor(buffer, path)
    if buffer[:4] != b"GGUF":
        raise CheckpointError(f"{path} is no GGUF file: it begins with {bytes(buffer[:4])!r}", "check the source")
    cursor.at = 4
    version = cursor.unpack("I")
    if version not in (2, 3):
        raise CheckpointError(f"{path} has GGUF version {version}", "convert it to version 3, little-endian")
    num_tensors, num_pairs = cursor.count(), cursor.count()
    config: dict[str, Any] = {}
    for _ in range(num_pairs):
        key = cursor.string()
        config[key] = _read_value(cursor, cursor.unpack("I"))
    headers = [_read_tensor_info(cursor) for _ in range(num_tensors)]
    alignment = config.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise CheckpointError(f"{path} is damaged: general.alignment is {alignment!r}", "fetch it again")
    start = -(-cursor.at // alignment) * alignment
    tensors = {}
    for name, shape, quantization, offset in headers:
        values_per_block, bytes_per_block = GGML_QUANT_SIZES[quantization]
        if 0 in shape or shape[-1] % values_per_block:
            raise CheckpointError(
                f"{path} is damaged: {name} of type {quantization.name} has shape {shape}", "fetch it again"
            )
        nbytes = math.prod(shape) // values_per_block * bytes_per_block
        if start + offset + nbytes > len(buffer):
            raise CheckpointError(
                f"{path} is cut short: {name} ends at byte {start + offset + nbytes}, the file at {len(buffer)}",
                "fetch it again",
            )
        tensors[name] = _TensorInfo(shape, quantization, start + offset, nbytes)
    return config, tensors


def _read_tensor_info(cursor: _Cursor) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int]:
    name = cursor.string()
    num_dims = cursor.unpack("I")
    if not 1 <= num_dims <= 4:
        raise CheckpointError(f"{cursor.path} is damaged: {name!r} has {num_dims} dimensions", "fetch it again")
    shape = tuple(cursor.unpack("Q") for _ in range(num_dims))[::-1]  # GGUF lists the fastest axis first
    code = cursor.unpack("I")
    try:
        quantization = GGMLQuantizationType(code)
    except ValueError:
        raise CheckpointError(
            f"{name} in {cursor.path} has the unknown type {code}", "update the gguf package: pip install -U gguf"
        ) from None
    return name, shape, quantization, cursor.unpack("Q")
