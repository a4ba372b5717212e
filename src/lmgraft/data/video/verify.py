"""Every video decoded once, in parallel: what cannot be read, and what is odd."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np

from lmgraft.data.check import Findings, Grid, ShowProgress, Tell
from lmgraft.data.files import listed, plural
from lmgraft.data.image.checks import ignored_files
from lmgraft.data.image.classes import number_classes
from lmgraft.data.image.file_set import reason
from lmgraft.data.image.tables import FolderFiles, Found
from lmgraft.data.loader import Fault
from lmgraft.data.video.decoding import UNREADABLE, Footage, look_through
from lmgraft.data.video.finding import find_clips
from lmgraft.data.video.settings import Settings
from lmgraft.errors import DataError

_CHUNK = 8
_IMBALANCE = 10


def check_videos(settings: Settings, workers: int, progress: ShowProgress) -> Findings:
    """Find all splits, compare their classes, and decode every frame of every video.

    Args:
        workers: Processes; 0 uses this one.
        progress: See `data.check.ShowProgress`.
    """
    findings, found, seen = Findings("clips"), {}, {}
    try:
        found = find_clips(settings)
        options = settings.splits({label for part in found.values() for label in part.labels})
        number_classes(found, options.classes)
    except DataError as error:
        findings.problems.append(str(error))
    for split, part in found.items():
        with progress(split, len(part.names)) as tell:
            seen[split] = _look(part, workers, tell)
        findings.faults[split] = sorted(look for look in seen[split] if isinstance(look, Fault))
    for split, part in found.items():
        good = [(name, look) for name, look in zip(part.names, seen[split], strict=True) if isinstance(look, Footage)]
        findings.remarks += _remarks(split, part, good, settings.frames)
        findings.details[split] = _details(part, [look for _, look in good], findings.faults[split])
    findings.details = {"splits": dict(findings.details)}
    if found:
        rows = [_row(split, part, findings.details["splits"][split]) for split, part in found.items()]
        header = ("split", "clips", "classes", "unreadable", "median frames", "median size", "median seconds")
        findings.grids.append(Grid(header, rows))
    return findings


def _look(found: Found, workers: int, tell: Tell) -> list[Footage | Fault]:
    files = found.files
    assert isinstance(files, FolderFiles)
    paths = [files.path(index) for index in range(len(found.names))]
    parts = {start: paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK)}
    looks: dict[int, list[Footage | Fault]] = {}

    def take(start: int, part: list[Footage | Fault]) -> None:
        looks[start] = part
        tell(len(part), sum(isinstance(look, Fault) for look in part))

    if workers == 0:
        for start, part in parts.items():
            take(start, _look_at(part))
    else:
        with ProcessPoolExecutor(workers) as pool:
            tasks = {pool.submit(_look_at, part): start for start, part in parts.items()}
            try:
                for task in as_completed(tasks):
                    take(tasks[task], task.result())
            except BrokenProcessPool:
                first = min(start for start in parts if start not in looks)
                raise DataError(
                    f"a process died while it decoded videos of {found.where}, not before {paths[first]}",
                    "out of memory, or a file that FFmpeg cannot survive: look with --workers 0",
                ) from None
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return [look for start in parts for look in looks[start]]


def _look_at(paths: Sequence[str]) -> list[Footage | Fault]:
    looks: list[Footage | Fault] = []
    for path in paths:
        try:
            looks.append(look_through(path))
        except UNREADABLE as error:
            looks.append(Fault(path, reason(error)))
    return looks


def _remarks(split: str, found: Found, good: Sequence[tuple[str, Footage]], frames: int) -> Iterator[str]:
    """What is odd but stops nothing."""
    yield from filter(None, (ignored_files(found), *found.notes))
    odd: dict[str, Callable[[Footage], bool]] = {
        "whose frame rate varies; data.spacing=time makes segments equally long": lambda look: look.is_variable,
        "that a player turns, as lmgraft does": lambda look: look.rotation != 0,
        f"shorter than the {frames} frames of a clip, which repeats some": lambda look: len(look.times) < frames,
    }
    for words, is_odd in odd.items():
        names = [name for name, look in good if is_odd(look)]
        if names:
            yield f"{split}: {plural(len(names), 'video')} {words}: {listed(names, 3)}"
    counts = sorted(Counter(found.labels).values())
    if counts[-1] > _IMBALANCE * counts[0]:
        yield f"{split}: the largest class has {plural(counts[-1], 'clip')}, the smallest {counts[0]:,}"


def _details(found: Found, good: Sequence[Footage], faults: Sequence[Fault]) -> dict[str, Any]:
    def median(values: Sequence[float]) -> float:
        return float(np.median(values)) if values else 0.0

    return {
        "where": found.where,
        "clips": len(found.names),
        "classes": dict(Counter(found.labels)),
        "unreadable": [fault._asdict() for fault in faults],
        "variable_rate": sum(look.is_variable for look in good),
        "turned": sum(look.rotation != 0 for look in good),
        "median_frames": median([len(look.times) for look in good]),
        "median_seconds": median([float(look.times[-1]) for look in good]),
        "median_size": [median([look.width for look in good]), median([look.height for look in good])],
    }


def _row(split: str, found: Found, details: dict[str, Any]) -> tuple[str, ...]:
    width, height = details["median_size"]
    numbers = (len(found.names), len(set(found.labels)), len(details["unreadable"]))
    return (
        split,
        *(f"{number:,}" for number in numbers),
        f"{details['median_frames']:.0f}",
        f"{width:.0f} x {height:.0f}",
        f"{details['median_seconds']:.1f}",
    )
