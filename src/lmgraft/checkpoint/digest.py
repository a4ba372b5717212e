"""Digests: of tensors by value, so that the same weights have one in every file; of plain data; of files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_CHUNK = 1 << 20  # values widened at a time: 4 MiB


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 of shape and float32 values: equal for a bfloat16 file and its float32 copy."""
    return tensors_digest(tensor.shape, [tensor])


def tensors_digest(shape: Iterable[int], parts: Iterable[Tensor]) -> str:
    """`tensor_digest` of the tensor of this shape whose rows `parts` are, one after the other."""
    digest = hashlib.sha256(json.dumps(list(shape)).encode())
    for tensor in parts:
        flat = tensor.detach().reshape(-1)
        for start in range(0, flat.numel(), _CHUNK):
            chunk = flat[start : start + _CHUNK].to(device="cpu", dtype=torch.float32).contiguous()
            digest.update(chunk.numpy().astype("<f4", copy=False).data)
    return digest.hexdigest()


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
