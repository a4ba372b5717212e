"""Digests: of tensors by value, so that the same weights have one in every file; of plain data; of files."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_CHUNK = 1 << 20  # values widened at a time: 4 MiB


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 of shape and float32 values: equal for a bfloat16 file and its float32 copy."""
    digest = ValueDigest(tensor.shape)
    digest.add(tensor)
    return digest.hex()


class ValueDigest:
    """`tensor_digest` of a tensor of this shape that comes in parts, one after the other in memory's order."""

    def __init__(self, shape: Iterable[int]) -> None:
        self._digest = hashlib.sha256(json.dumps(list(shape)).encode())

    def add(self, part: Tensor) -> None:
        flat = part.detach().reshape(-1)
        for start in range(0, flat.numel(), _CHUNK):
            chunk = flat[start : start + _CHUNK].to(device="cpu", dtype=torch.float32).contiguous()
            self._digest.update(chunk.numpy().astype("<f4", copy=False).data)

    def hex(self) -> str:
        return self._digest.hexdigest()


class Stack:
    """A tensor that is written part by part: each is narrowed as it comes, none is kept, the digest is of what came.

    Args:
        dtype: What it is stored in; None is that of the first part.
    """

    def __init__(self, shape: Sequence[int], dtype: torch.dtype | None) -> None:
        self.shape, self.dtype = tuple(shape), dtype
        self._digest, self._flat, self._end = ValueDigest(shape), torch.empty(0), 0

    def add(self, part: Tensor) -> None:
        """The next values in memory's order: a row, or a part of one."""
        if not self._end:
            self._flat = torch.empty(math.prod(self.shape), dtype=self.dtype or part.dtype)
        self._flat[self._end : self._end + part.numel()].view(part.shape).copy_(part)
        self._end += part.numel()
        self._digest.add(part)

    def finished(self) -> tuple[Tensor, str]:
        """The tensor, and `tensor_digest` of the parts."""
        return self._flat.view(self.shape), self._digest.hex()


def json_digest(value: Mapping[str, Any]) -> str:
    """SHA-256 of `value` as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
