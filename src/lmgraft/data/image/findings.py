"""What a look at all image files finds: what is wrong with the data, and what is odd."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from lmgraft.data.check import Findings, Grid, ShowProgress
from lmgraft.data.files import listed, plural
from lmgraft.data.image.checks import ignored_files, other_totals
from lmgraft.data.image.classes import number_classes
from lmgraft.data.image.settings import Settings
from lmgraft.data.image.splits import Splits, make_splits
from lmgraft.data.image.tables import Found
from lmgraft.data.image.twins import Twins, near_twins, twins
from lmgraft.data.image.verify import LONG, SMALL, Looking, Pictures, look
from lmgraft.errors import DataError

_IMBALANCE = 10
"""Ratio of the largest to the smallest class that is worth a remark."""
_LITTLE = 0.25  # share of its type's range below which an image is called nearly all the same grey
_ANY = 1 << 60  # files of zero bytes are counted with all that cannot be read
_SHOWN = 20  # classes listed on the terminal


@dataclass
class _Looked:
    """Everything that was seen, before it is put into rows and remarks."""

    found: dict[str, Found] = field(default_factory=dict)
    pictures: dict[str, Pictures] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    """The classes in the order of their numbers."""
    splits: Splits | None = None
    """What a training would make of them."""
    twins: list[Twins] = field(default_factory=list)
    near: list[Twins] = field(default_factory=list)
    totals: list[str] = field(default_factory=list)
    """Splits of ImageNet that have not as many images as ImageNet's."""

    def counts(self, split: str) -> Counter[str]:
        """Images of each class."""
        return Counter(self.found[split].labels)

    def ordered(self, split: str) -> dict[str, int]:
        """Images of each class, in the order of their numbers; those that are no class last."""
        counts = self.counts(split)
        return {name: counts[name] for name in (*self.names, *sorted(counts.keys() - {*self.names})) if name in counts}

    def held_out(self) -> dict[str, int]:
        """Split -> how many of its images a training takes out of those of "train"."""
        if self.splits is None:
            return {}
        return {
            split: len(index)
            for split, index in self.splits.index.items()
            if split != "train" and self.splits.tables[split] is self.splits.tables["train"]
        }


def check_files(
    settings: Settings, find: Callable[[], dict[str, Found]], workers: int, progress: ShowProgress, near: bool = False
) -> Findings:
    """Find all splits, compare their classes, and decode all images.

    Args:
        find: Gives the splits that the data set itself has.
        workers: Processes; 0 uses this one.
        progress: Makes what is told of the progress, from the name of a split and its number of images.
        near: Also look for images that show nearly the same.
    """
    seen, problems = _Looked(), []
    reading = settings.preprocess().reader
    if settings.range == "percentile":
        reading = replace(reading, limits=(0.0, 1.0))  # any: it is known once all can be read
    try:
        seen.found = find()
        seen.names, _ = number_classes(seen.found, settings.classes, settings.class_map, settings.root)
        seen.totals = other_totals(seen.found, seen.names)
        seen.splits = make_splits(replace(settings, max_corrupt=_ANY, max_corrupt_test=_ANY), seen.found)
    except DataError as error:
        problems.append(str(error))
    for split, found in seen.found.items():
        with progress(split, len(found.names)) as tell:
            seen.pictures[split] = look(found, Looking(found.files, reading, near), workers, tell)
    if seen.pictures:
        digests = {split: pictures.digests for split, pictures in seen.pictures.items()}
        seen.twins = twins(seen.found, digests)
        sketches = {split: pictures.sketches for split, pictures in seen.pictures.items()}
        seen.near = near_twins(seen.found, sketches, digests) if near else []
    return Findings(
        "images",
        problems=problems,
        faults={split: pictures.faults for split, pictures in seen.pictures.items()},
        remarks=list(_remarks(seen, settings)),
        grids=[_splits_grid(seen), _class_grid(seen)] if seen.pictures else [],
        details={
            "splits": {split: _details(seen, split) for split in seen.pictures},
            "held_out": seen.held_out(),
            "duplicates": [list(group.names) for group in seen.twins],
        }
        | ({"near_duplicates": [list(group.names) for group in seen.near]} if near else {}),
    )


def _remarks(seen: _Looked, settings: Settings) -> Iterator[str]:
    """What is odd but stops nothing."""
    yield from seen.totals
    yield from filter(None, map(ignored_files, seen.found.values()))
    yield from (note for found in seen.found.values() for note in found.notes)
    for split, pictures in seen.pictures.items():
        yield from _deep_images(split, pictures, settings)
        short, long = pictures.readable().min(1), pictures.readable().max(1)
        by_kind = {
            f"with a side of less than {SMALL} pixels": int((short < SMALL).sum()),
            f"with one side more than {LONG} times the other": int((long > LONG * short).sum()),
            f"that made PIL warn or have several frames: {listed([note.file for note in pictures.notes])}": len(
                pictures.notes
            ),
        }
        for kind, count in by_kind.items():
            if count:
                yield f"{split}: {plural(count, 'image')} {kind}"
        counts = sorted(seen.counts(split).values())
        if counts[-1] > _IMBALANCE * counts[0]:
            yield f"{split}: the largest class has {plural(counts[-1], 'image')}, the smallest {counts[0]:,}"
    yield from _of_twins(seen.twins, "more than once, equal in every pixel")
    yield from _of_twins(seen.near, "again in a picture that shows nearly the same")


def _of_twins(groups: Sequence[Twins], how: str) -> Iterator[str]:
    if not groups:
        return
    across = [group for group in groups if len(group.splits) > 1]
    torn = [group for group in groups if len(group.labels) > 1]
    yield f"{plural(len(groups), 'image')} to be seen {how}: {_examples(groups)}"
    if across:
        yield f"{len(across):,} of them in more than one split, accuracy on them is no evidence: {_examples(across)}"
    if torn:
        yield f"{len(torn):,} of them with different labels: {_examples(torn)}"


def _examples(groups: Sequence[Twins]) -> str:
    return listed([" = ".join(group.names) for group in groups], 3, "; ")


def _deep_images(split: str, pictures: Pictures, settings: Settings) -> Iterator[str]:
    """What becomes of images with more than 8 bits a channel."""
    for mode, (low, high, least, most) in pictures.values.items():
        images = plural(pictures.modes[mode], "image")
        text = (
            f"{split}: {images} of mode {mode} with values from {low:,.6g} to {high:,.6g}, "
            f"of {least:,.6g} to {most:,.6g} that their type can hold"
        )
        if settings.reading == "timm":
            yield f"{text}; data.reading=timm cuts them off at 255: leave it out"
        elif settings.range == "type" and high - low < _LITTLE * (most - least):
            yield f"{text}: nearly all the same grey; --data.range percentile spreads them"
        else:
            yield text


def _splits_grid(seen: _Looked) -> Grid:
    rows = []
    held_out = seen.held_out()
    for split, pictures in seen.pictures.items():
        width, height = pictures.median_size()
        modes = ", ".join(f"{mode} {count:,}" for mode, count in pictures.modes.most_common())
        numbers = len(seen.found[split].names), len(seen.counts(split)), len(pictures.faults)
        rows.append((split, *(f"{number:,}" for number in numbers), f"{width} x {height}", modes))
    rows += [(f"{split} (held out)", f"{count:,}", "", "", "", "") for split, count in held_out.items()]
    return Grid(("split", "images", "classes", "unreadable", "median size", "modes"), rows)


def _class_grid(seen: _Looked) -> Grid:
    """Images of each class in the order of their numbers; of many classes the rarest in the first split."""
    counts: Mapping[str, Counter[str]] = {split: seen.counts(split) for split in seen.found}
    names = list(dict.fromkeys(name for split in seen.found for name in seen.ordered(split)))
    title = f"the {_SHOWN} rarest of {len(names):,} classes" if len(names) > _SHOWN else None
    if title:
        first = next(iter(counts.values()))
        names = sorted(names, key=lambda name: first[name])
    rows = [(name, *(f"{part[name]:,}" for part in counts.values())) for name in names[:_SHOWN]]
    return Grid(("class", *counts), rows, title)


def _details(seen: _Looked, split: str) -> dict[str, object]:
    found, pictures = seen.found[split], seen.pictures[split]
    return {
        "where": found.where,
        "images": len(found.names),
        "classes": seen.ordered(split),
        "unreadable": [fault._asdict() for fault in pictures.faults],
        "odd": [note._asdict() for note in pictures.notes],
        "ignored": dict(found.ignored),
        "read": list(found.notes),
        "modes": dict(pictures.modes.most_common()),
        "values": {mode: list(values) for mode, values in pictures.values.items()},
        "median_size": pictures.median_size(),
    }
