"""Every image decoded once, in parallel: what cannot be read, and what is odd."""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from lmgraft.data.image.file_set import reason
from lmgraft.data.image.reading import Pixels, Reading, deep_pixels
from lmgraft.data.image.tables import UNREADABLE, Files, Found
from lmgraft.data.image.twins import SKETCH, sketch
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
    """PIL's, and type and channels of what is deeper."""
    values: dict[str, tuple[float, float, float, float]] = field(default_factory=dict)
    """Mode of deep images -> the smallest and the largest value in any, and those that its type can hold."""
    sides: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros((0, 2), np.int32))
    """Width and height of each image, 0 where it cannot be read."""
    digests: npt.NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    """Of each image's pixels, 0 where it cannot be read."""
    sketches: npt.NDArray[np.uint8] = field(default_factory=lambda: np.zeros((0, SKETCH), np.uint8))
    """See `twins.sketch`."""

    def readable(self) -> npt.NDArray[np.int32]:
        """Width and height of the images that can be read, (N, 2)."""
        return self.sides[self.sides[:, 0] > 0]

    def median_size(self) -> tuple[int, int]:
        """Median width and height; 0 if there is no image."""
        sides = self.readable()
        width, height = np.median(sides, axis=0) if len(sides) else (0, 0)
        return int(width), int(height)


@dataclass(frozen=True)
class Looking:
    """What is done with each image."""

    files: Files
    reading: Reading
    """How a training would read it."""
    near: bool = False
    """Whether to keep a sketch of its shapes, by which nearly equal images are found."""


def look(found: Found, looking: Looking, workers: int, tell: Callable[[int, int], None]) -> Pictures:
    """Decode all images of a split.

    Args:
        looking: What is done with each.
        workers: Processes; 0 uses this one.
        tell: Told how many images more were looked at, and how many of them cannot be read.

    Raises:
        DataError: If a process dies over an image.
    """
    count = len(found.names)
    seen = Pictures(
        sides=np.zeros((count, 2), np.int32),
        digests=np.zeros(count, np.uint64),
        sketches=np.zeros((count, SKETCH), np.uint8),
    )
    starts = range(0, count, _CHUNK)
    if workers == 0:
        _adopt(looking)
        for start in starts:
            _take(seen, found, start, _look_at(range(start, min(start + _CHUNK, count))), tell)
    else:
        _look_in_parallel(seen, found, looking, workers, starts, tell)
    seen.faults.sort()
    seen.notes.sort()
    return seen


def _look_in_parallel(
    seen: Pictures, found: Found, looking: Looking, workers: int, starts: range, tell: Callable[[int, int], None]
) -> None:
    with ProcessPoolExecutor(workers, initializer=_adopt, initargs=(looking,)) as pool:
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


class _Look(NamedTuple):
    """What was seen in one file."""

    fault: str = ""
    """Why it cannot be read."""
    odd: str = ""
    mode: str = ""
    """PIL's, or type and channels of a deep image."""
    width: int = 0
    height: int = 0
    digest: int = 0
    """Of its pixels."""
    values: tuple[float, float, float, float] | None = None
    """The smallest and the largest of a deep image, and those that its type can hold."""
    sketch: bytes = bytes(SKETCH)
    """Of its shapes; zeros if it was not asked for, or nothing can be seen."""


_work: list[Looking] = []  # of a worker process: sent once, not with every task


def _adopt(looking: Looking) -> None:
    _work[:] = [looking]


def _look_at(indices: range) -> list[_Look]:
    return [_look_at_one(_work[0], index) for index in indices]


def _look_at_one(looking: Looking, index: int) -> _Look:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with looking.files.open(index) as image:
                look = _deep(image) if isinstance(image, Pixels) else _of_pil(image)
                shown = looking.reading.read(image)
        except UNREADABLE as error:
            return _Look(reason(error))
    odd = [str(warning.message).splitlines()[0] for warning in caught]
    look = look._replace(odd="; ".join([*odd, *filter(None, [look.odd])]))
    return look._replace(sketch=sketch(shown)) if looking.near else look


def _of_pil(image: Image.Image) -> _Look:
    mode, frames = image.mode, getattr(image, "n_frames", 1)
    image.load()
    odd = f"{frames} frames, of which the first is shown" if frames > 1 else ""
    digest = _digest(f"{mode}{image.size}", image.tobytes())
    deep = deep_pixels(image)
    values = None if deep is None else _extremes(deep)
    return _Look("", odd, mode, *image.size, digest, values)


def _deep(pixels: Pixels) -> _Look:
    values = pixels.values
    odd = f"{pixels.parts} frames or slices, of which one is shown" if pixels.parts > 1 else ""
    height, width, _ = values.shape
    digest = _digest(f"{pixels.kind}{values.shape}", np.ascontiguousarray(values).tobytes())
    return _Look("", odd, pixels.kind, width, height, digest, _extremes(pixels))


def _extremes(pixels: Pixels) -> tuple[float, float, float, float]:
    return (float(pixels.values.min()), float(pixels.values.max()), *pixels.limits)


def _digest(head: str, content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(head.encode() + content, digest_size=8).digest(), "little")


def _take(seen: Pictures, found: Found, start: int, looks: list[_Look], tell: Callable[[int, int], None]) -> None:
    bad = 0
    for index, look in enumerate(looks, start):
        if look.fault:
            bad += 1
            seen.faults.append(Fault(found.names[index], look.fault))
            continue
        if look.odd:
            seen.notes.append(Fault(found.names[index], look.odd))
        if look.values is not None:
            low, high, *_ = seen.values.get(look.mode, look.values)
            seen.values[look.mode] = (min(low, look.values[0]), max(high, look.values[1]), *look.values[2:])
        seen.modes[look.mode] += 1
        seen.sides[index] = look.width, look.height
        seen.digests[index] = look.digest
        seen.sketches[index] = np.frombuffer(look.sketch, np.uint8)
    tell(len(looks), bad)
