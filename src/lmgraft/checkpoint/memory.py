"""Whether a layer will fit into memory, asked before any of it is read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lmgraft.checkpoint.base import Checkpoint
from lmgraft.errors import CheckpointError

_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
    ),
)
"""Where a container says how much memory it may use, uses, and uses for what."""
_CACHES = ("inactive_file", "active_file")
_ITEMSIZE = {"F64": 8, "BF16": 2, "F16": 2}
"""Bytes of a number as it is read, by the file's name for its type; of others 4, quantised ones too."""
_BUFFERS = 128 << 20
"""Pieces in which files are read, values checked and digests taken; what else the process takes meanwhile."""


def container_limit() -> int | None:
    """Bytes that this container may use; None where nothing says so."""
    limits = [_number(limit) for limit, _, _ in _CGROUPS]
    return min((limit for limit in limits if limit is not None), default=None)


def free_memory() -> int | None:
    """Bytes that can be had now, caches of files counted as free; None where the system does not say."""
    free = [_fields("/proc/meminfo").get("MemAvailable:", 0) * 1024]
    for limit, used, stat in _CGROUPS:
        most, now = _number(limit), _number(used)
        if most is not None and now is not None:
            fields = _fields(stat)
            free.append(most - now + sum(fields.get(cache, 0) for cache in _CACHES))
    return min(free) if free[0] else None


@dataclass(frozen=True)
class Step:
    """Tensors of a file that are read at the same time, made into what a block keeps, and let go."""

    names: tuple[str, ...]
    copied: bool = False
    """Whether their values are laid out anew, so that what was read is never what is kept."""


def peak_memory(checkpoint: Checkpoint, steps: Iterable[Step], dtype: torch.dtype | None) -> int:
    """The most bytes held while these steps are taken, one after the other.

    Args:
        dtype: What tensors are stored in once they are read; None keeps that in which they are read.
    """
    held = peak = 0
    for step in steps:
        beside = 0
        for name in step.names:
            stored = checkpoint.dtype(name)
            width = _ITEMSIZE.get(stored, 4)
            values = math.prod(checkpoint.shape(name))
            held += values * (dtype.itemsize if dtype else width)
            quantised = stored not in (*_ITEMSIZE, "F32")
            converted = dtype is not None and (dtype.itemsize, quantised) != (width, False)
            beside += values * width if step.copied or converted else 0
            beside += checkpoint.nbytes(name) if quantised else 0
        peak = max(peak, held + beside)
    return peak + _BUFFERS


def check_memory(checkpoint: Checkpoint, steps: Sequence[Step], dtype: torch.dtype | None) -> None:
    """Refuse tensors that will not fit into memory; the arguments are those of `peak_memory`.

    Raises:
        CheckpointError: It says how many bytes are needed, and how many are free.
    """
    needed, free = peak_memory(checkpoint, steps, dtype), free_memory()
    if free is not None and needed > free:
        raise CheckpointError(
            f"these {sum(len(step.names) for step in steps)} tensors of {checkpoint.label} need {needed:,} bytes of "
            f"memory ({needed / 2**30:.1f} GiB) while they are read, and {free:,} ({free / 2**30:.1f} GiB) are free",
            "end other programs, take a smaller model, or store the layer in 16 bits (dtype='bfloat16')",
        )


def _number(file: str) -> int | None:
    text = _text(file).strip()
    return int(text) if text.isdecimal() else None


def _fields(file: str) -> dict[str, int]:
    """Lines of a name and a number."""
    rows = (line.split() for line in _text(file).splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdecimal()}


def _text(file: str) -> str:
    try:
        return Path(file).read_text(encoding="ascii")
    except OSError:
        return ""
