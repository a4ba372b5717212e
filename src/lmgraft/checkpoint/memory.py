"""Whether a layer will fit into memory, asked before any of it is read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from lmgraft.checkpoint.source import Checkpoint
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


def check_memory(checkpoint: Checkpoint, names: Sequence[str], dtype: torch.dtype | None) -> None:
    """Refuse tensors that will not fit into memory.

    Args:
        names: Of the tensors, all of which are held at the same time.
        dtype: What they are stored in once they are read; None keeps the file's own.

    Raises:
        CheckpointError: It says how many bytes are needed, and how many are free.
    """
    each = {name: dtype.itemsize if dtype else _ITEMSIZE.get(checkpoint.dtype(name), 4) for name in names}
    needed = sum(math.prod(checkpoint.shape(name)) * size for name, size in each.items())
    free = free_memory()
    if free is not None and needed > free:
        raise CheckpointError(
            f"these {len(names)} tensors of {checkpoint.label} need {needed:,} bytes of memory ({needed / 2**30:.1f} "
            f"GiB) once they are read, and {free:,} ({free / 2**30:.1f} GiB) are free",
            "end other programs, take a smaller model, or, of one without experts, store the layer in 16 bits "
            "(dtype='bfloat16')",
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
