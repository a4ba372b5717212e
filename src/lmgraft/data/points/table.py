"""All clouds of a split in memory, each in the order of farthest point sampling; worked out once and cached.

<cache>/points/<key>/00000.npz   256 clouds each: points (n, P, C) and the reasons of those that cannot be read

The order is nested, so its first k points are what farthest point sampling to k gives, and one table serves training,
which shows a random part of the first P, and evaluation, which shows the first.
"""

from __future__ import annotations

import sys
import time
import zipfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lmgraft import records
from lmgraft.checkpoint.cache import cache_dir
from lmgraft.checkpoint.digest import json_digest
from lmgraft.data.points.files import checked
from lmgraft.data.points.meshes import Array, UnreadableCloudError
from lmgraft.geometry.points import farthest_points

_CHUNK = 256
_VERSION = 1
_AT_ONCE = 32  # clouds of one size that are ordered together
_SILENT = 5.0  # seconds without a line about progress


@dataclass(frozen=True)
class CloudTable:
    """The clouds of a source, ordered.

    Attributes:
        points: (N, P, C) float32: x, y, z, and with C = 4 whether it is the object's; zeros where unreadable.
        reasons: Cloud -> why it cannot be read.
        sizes: (N,) points of each cloud as it came; of those with fewer than P some come again.
    """

    points: Array
    reasons: Mapping[int, str]
    sizes: npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Ordering:
    """What is done to each cloud."""

    pool: int
    """P, the points that are kept."""
    normalise: bool
    """Centre it and scale it into the unit sphere."""
    skip_near_origin: bool = False
    """See `geometry.points.farthest_points`."""


def ordered_table(
    count: int, load: Callable[[int], Array], ordering: Ordering, identity: Mapping[str, Any], workers: int = 0
) -> CloudTable:
    """The clouds of a source, from the cache as far as they are there.

    Args:
        count: N.
        load: Gives the points (n, C) of a cloud; called from several threads.
        ordering: What is done to each.
        identity: Plain data that names source and contents.
        workers: Threads; 0 takes one.
    """
    key = json_digest({"version": _VERSION, "count": count, **vars(ordering), **identity})
    folder = cache_dir() / "points" / key[:32]
    starts, begun, last_line = range(0, count, _CHUNK), time.monotonic(), time.monotonic()

    def chunk(start: int) -> tuple[Array, npt.NDArray[np.str_], npt.NDArray[np.int64]]:
        file = folder / f"{start // _CHUNK:05}.npz"
        kept = _kept(file)
        if kept is None:
            kept = order_clouds(range(start, min(start + _CHUNK, count)), load, ordering)
            with records.atomic_path(file) as temporary, open(temporary, "wb") as out:
                np.savez(out, points=kept[0], reasons=kept[1], sizes=kept[2])
        return kept

    parts = []
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for start, part in zip(starts, pool.map(chunk, starts), strict=True):
            parts.append(part)
            if time.monotonic() - last_line > _SILENT:
                last_line, done = time.monotonic(), min(start + _CHUNK, count)
                rate = done / (last_line - begun)
                sys.stderr.write(f"[points] {done:,} of {count:,} clouds ordered, {rate:.0f} a second, once\n")
    reasons = np.concatenate([part[1] for part in parts]) if parts else np.empty(0, np.str_)
    return CloudTable(
        np.concatenate([part[0] for part in parts]) if parts else np.empty((0, ordering.pool, 3), np.float32),
        {i: str(why) for i, why in enumerate(reasons.tolist()) if why},
        np.concatenate([part[2] for part in parts]) if parts else np.empty(0, np.int64),
    )


def _kept(file: Path) -> tuple[Array, npt.NDArray[np.str_], npt.NDArray[np.int64]] | None:
    """What the cache holds; None where it is not there or damaged."""
    try:
        with open(file, "rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            return arrays["points"], arrays["reasons"], arrays["sizes"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        sys.stderr.write(f"[points] {file} is damaged and is made again\n")
        return None


def order_clouds(
    which: range, load: Callable[[int], Array], ordering: Ordering
) -> tuple[Array, npt.NDArray[np.str_], npt.NDArray[np.int64]]:
    """Points, reasons and sizes of these clouds as `CloudTable` has them, a reason being empty where all is well."""
    clouds: dict[int, Array] = {}
    reasons: dict[int, str] = {}
    for i in which:
        try:
            clouds[i] = checked(load(i), ordering.normalise)
        except UnreadableCloudError as error:
            reasons[i] = str(error)
    width = max((cloud.shape[1] for cloud in clouds.values()), default=3)
    out = np.zeros((len(which), ordering.pool, width), np.float32)
    by_size: dict[int, list[int]] = {}
    for i, cloud in clouds.items():
        by_size.setdefault(len(cloud), []).append(i)
    for size, members in by_size.items():
        for first in range(0, len(members), _AT_ONCE):
            some = members[first : first + _AT_ONCE]
            stacked = np.stack([clouds[i] for i in some])
            order = farthest_points(
                torch.from_numpy(stacked[..., :3]), min(size, ordering.pool), skip_near_origin=ordering.skip_near_origin
            ).numpy()
            order = order[:, np.arange(ordering.pool) % order.shape[1]]  # too few points come again in the same order
            for i, cloud, index in zip(some, stacked, order, strict=True):
                out[i - which.start] = cloud[index]
    sizes = np.array([len(clouds[i]) if i in clouds else 0 for i in which], np.int64)
    return out, np.array([reasons.get(i, "") for i in which], np.str_), sizes
