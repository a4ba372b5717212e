"""What a look at all image files finds: what is wrong with the data, and what is odd."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from lmgraft.data.check import Findings, Grid, ShowProgress
from lmgraft.data.image.checks import ignored_files, other_totals
from lmgraft.data.image.classes import number_classes
from lmgraft.data.image.layouts import find_splits
from lmgraft.data.image.settings import Settings
from lmgraft.data.image.tables import Found
from lmgraft.data.image.verify import LONG, SMALL, Pictures, Twins, look, twins
from lmgraft.errors import DataError

_IMBALANCE = 10
"""Ratio of the largest to the smallest class that is worth a remark."""
_LITTLE = 0.25  # share of its type's range below which an image is called nearly all the same grey
_SHOWN = 20  # classes listed on the terminal


@dataclass
class _Looked:
    """Everything that was seen, before it is put into rows and remarks."""

    found: dict[str, Found] = field(default_factory=dict)
    pictures: dict[str, Pictures] = field(default_factory=dict)
    twins: list[Twins] = field(default_factory=list)
    totals: list[str] = field(default_factory=list)
    """Splits of ImageNet that have not as many images as ImageNet's."""

    def counts(self, split: str) -> Counter[str]:
        """Images of each class."""
        return Counter(self.found[split].labels)


def check_files(settings: Settings, workers: int, progress: ShowProgress) -> Findings:
    """Find all splits, compare their classes, and decode all images.

    Args:
        workers: Processes; 0 uses this one.
        progress: Makes what is told of the progress, from the name of a split and its number of images.
    """
    seen, problems = _Looked(), []
    reading = settings.preprocess().reader
    if settings.range == "percentile":
        reading = replace(reading, limits=(0.0, 1.0))  # any: it is known once all can be read
    try:
        seen.found = find_splits(settings)
        names, _ = number_classes(seen.found, settings.classes, settings.class_map, settings.root)
        seen.totals = other_totals(seen.found, names)
    except DataError as error:
        problems.append(str(error))
    for split, found in seen.found.items():
        with progress(split, len(found.names)) as tell:
            seen.pictures[split] = look(found, reading, workers, tell)
    seen.twins = twins(seen.found, seen.pictures) if seen.pictures else []
    return Findings(
        "images",
        problems=problems,
        faults={split: pictures.faults for split, pictures in seen.pictures.items()},
        remarks=list(_remarks(seen, settings)),
        grids=[_splits_grid(seen), _class_grid(seen)] if seen.pictures else [],
        details={
            "splits": {split: _details(seen, split) for split in seen.pictures},
            "duplicates": [list(group.names) for group in seen.twins],
        },
    )


def _remarks(seen: _Looked, settings: Settings) -> Iterator[str]:
    """What is odd but stops nothing."""
    yield from seen.totals
    yield from filter(None, map(ignored_files, seen.found.values()))
    for split, pictures in seen.pictures.items():
        yield from _deep_images(split, pictures, settings)
        short, long = pictures.readable().min(1), pictures.readable().max(1)
        by_kind = {
            f"have a side of less than {SMALL} pixels": int((short < SMALL).sum()),
            f"have one side more than {LONG} times the other": int((long > LONG * short).sum()),
            "made PIL warn or have several frames": len(pictures.notes),
        }
        for kind, count in by_kind.items():
            if count:
                yield f"{split}: {count:,} images {kind}"
        counts = sorted(seen.counts(split).values())
        if counts[-1] > _IMBALANCE * counts[0]:
            yield f"{split}: the largest class has {counts[-1]:,} images, the smallest {counts[0]:,}"
    across = sum(len(group.splits) > 1 for group in seen.twins)
    torn = sum(len(group.labels) > 1 for group in seen.twins)
    if seen.twins:
        yield f"{len(seen.twins):,} images occur more than once, equal in every pixel"
    if across:
        yield f"{across:,} of them in more than one split: accuracy on them is no evidence"
    if torn:
        yield f"{torn:,} of them with different labels"


def _deep_images(split: str, pictures: Pictures, settings: Settings) -> Iterator[str]:
    """What becomes of images with more than 8 bits a channel."""
    for mode, (low, high, least, most) in pictures.values.items():
        text = (
            f"{split}: {pictures.modes[mode]:,} images of mode {mode} have values from {low:,.6g} to {high:,.6g}, of "
            f"{least:,.6g} to {most:,.6g} that their type can hold"
        )
        if settings.reading == "timm":
            yield f"{text}; data.reading=timm cuts them off at 255: leave it out"
        elif settings.range == "type" and high - low < _LITTLE * (most - least):
            yield f"{text}: nearly all the same grey; --data.range percentile spreads them"
        else:
            yield text


def _splits_grid(seen: _Looked) -> Grid:
    rows = []
    for split, pictures in seen.pictures.items():
        width, height = pictures.median_size()
        modes = ", ".join(f"{mode} {count:,}" for mode, count in pictures.modes.most_common(4))
        numbers = len(seen.found[split].names), len(seen.counts(split)), len(pictures.faults)
        rows.append((split, *(f"{number:,}" for number in numbers), f"{width} x {height}", modes))
    return Grid(("split", "images", "classes", "unreadable", "median size", "modes"), rows)


def _class_grid(seen: _Looked) -> Grid:
    """Images of each class; of many classes the rarest in the first split."""
    counts: Mapping[str, Counter[str]] = {split: seen.counts(split) for split in seen.found}
    first = next(iter(counts.values()))
    names: Sequence[str] = sorted(set().union(*counts.values()), key=lambda name: (first[name], name))
    rows = [(name, *(f"{part[name]:,}" for part in counts.values())) for name in names[:_SHOWN]]
    title = f"the {_SHOWN} rarest of {len(names):,} classes" if len(names) > _SHOWN else None
    return Grid(("class", *counts), rows, title)


def _details(seen: _Looked, split: str) -> dict[str, object]:
    found, pictures = seen.found[split], seen.pictures[split]
    return {
        "where": found.where,
        "images": len(found.names),
        "classes": dict(sorted(seen.counts(split).items())),
        "unreadable": [fault._asdict() for fault in pictures.faults],
        "odd": [note._asdict() for note in pictures.notes],
        "ignored": dict(found.ignored),
        "modes": dict(pictures.modes.most_common()),
        "median_size": pictures.median_size(),
    }
