"""Every image decoded once, in parallel: what cannot be read, and what is odd."""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import Image

from lmgraft.data.image.file_set import reason
from lmgraft.data.image.tables import UNREADABLE, Files, Found
from lmgraft.data.loader import Fault
from lmgraft.errors import DataError

_CHUNK = 64
SMALL = 32
"""Pixels of the shorter side below which an image is called small."""
LONG = 5
"""Ratio of the sides above which an image is called long."""


@dataclass
class Pictures:
    """What was seen in the images of one split."""

    faults: list[Fault] = field(default_factory=list)
    notes: list[Fault] = field(default_factory=list)
    """Images that can be read but made PIL warn, or have several frames."""
    modes: Counter[str] = field(default_factory=Counter)
    sides: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros((0, 2), np.int32))
    """Width and height of each image, 0 where it cannot be read."""
    digests: npt.NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    """Of each image's pixels, 0 where it cannot be read."""

    def readable(self) -> npt.NDArray[np.int32]:
        """Width and height of the images that can be read, (N, 2)."""
        return self.sides[self.sides[:, 0] > 0]

    def median_size(self) -> tuple[int, int]:
        """Median width and height; 0 if there is no image."""
        sides = self.readable()
        width, height = np.median(sides, axis=0) if len(sides) else (0, 0)
        return int(width), int(height)


def look(found: Found, workers: int, tell: Callable[[int, int], None]) -> Pictures:
    """Decode all images of a split.

    Args:
        workers: Processes; 0 uses this one.
        tell: Told how many images more were looked at, and how many of them cannot be read.

    Raises:
        DataError: If a process dies over an image.
    """
    count = len(found.names)
    seen = Pictures(sides=np.zeros((count, 2), np.int32), digests=np.zeros(count, np.uint64))
    starts = range(0, count, _CHUNK)
    if workers == 0:
        _adopt(found.files)
        for start in starts:
            _take(seen, found, start, _look_at(range(start, min(start + _CHUNK, count))), tell)
    else:
        _look_in_parallel(seen, found, workers, starts, tell)
    seen.faults.sort()
    seen.notes.sort()
    return seen


def _look_in_parallel(
    seen: Pictures, found: Found, workers: int, starts: range, tell: Callable[[int, int], None]
) -> None:
    with ProcessPoolExecutor(workers, initializer=_adopt, initargs=(found.files,)) as pool:
        tasks = {pool.submit(_look_at, range(start, min(start + _CHUNK, starts.stop))): start for start in starts}
        try:
            for task in as_completed(tasks):
                _take(seen, found, tasks[task], task.result(), tell)
        except BrokenProcessPool:
            waiting = min(start for task, start in tasks.items() if not task.done() or task.exception())
            raise DataError(
                f"a process died while it decoded images of {found.where}, not before {found.names[waiting]}",
                "out of memory, or a file that PIL cannot survive: look with --workers 0",
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_Look = tuple[str, str, str, int, int, int]
"""Why it cannot be read, what is odd, mode, width, height, digest."""

_files: list[Files] = []  # of a worker process: sent once, not with every task


def _adopt(files: Files) -> None:
    _files[:] = [files]


def _look_at(indices: range) -> list[_Look]:
    return [_look_at_one(_files[0], index) for index in indices]


def _look_at_one(files: Files, index: int) -> _Look:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            with files.open(index) as image:
                mode, frames = image.mode, getattr(image, "n_frames", 1)
                image.load()
                digest = int.from_bytes(_digest(image), "little")
        except UNREADABLE as error:
            return reason(error), "", "", 0, 0, 0
    odd = [str(warning.message).splitlines()[0] for warning in said]
    odd += [f"{frames} frames, of which the first is shown"] if frames > 1 else []
    return "", "; ".join(odd), mode, *image.size, digest


def _digest(image: Image.Image) -> bytes:
    head = f"{image.mode}{image.size}".encode()
    return hashlib.blake2b(head + image.tobytes(), digest_size=8).digest()


def _take(seen: Pictures, found: Found, start: int, looks: list[_Look], tell: Callable[[int, int], None]) -> None:
    bad = 0
    for index, (fault, odd, mode, width, height, digest) in enumerate(looks, start):
        if fault:
            bad += 1
            seen.faults.append(Fault(found.names[index], fault))
            continue
        if odd:
            seen.notes.append(Fault(found.names[index], odd))
        seen.modes[mode] += 1
        seen.sides[index] = width, height
        seen.digests[index] = digest
    tell(len(looks), bad)


@dataclass(frozen=True)
class Twins:
    """Images with equal pixels."""

    names: tuple[str, ...]
    """`split: name` of each."""
    labels: frozenset[str]
    splits: frozenset[str]


def twins(found: dict[str, Found], seen: dict[str, Pictures]) -> list[Twins]:
    """Groups of images that show the same, pixel by pixel, within and across splits."""
    return list(_twins(found, seen))


def _twins(found: dict[str, Found], seen: dict[str, Pictures]) -> Iterator[Twins]:
    places = [(split, index) for split, pictures in seen.items() for index in range(len(pictures.digests))]
    digests = np.concatenate([pictures.digests for pictures in seen.values()])
    order = np.argsort(digests, kind="stable")
    borders = np.flatnonzero(np.diff(digests[order])) + 1
    for group in np.split(order, borders):
        if len(group) > 1 and digests[group[0]]:
            rows = [places[i] for i in group]
            yield Twins(
                tuple(f"{split}: {found[split].names[index]}" for split, index in rows),
                frozenset(found[split].labels[index] for split, index in rows),
                frozenset(split for split, _ in rows),
            )
