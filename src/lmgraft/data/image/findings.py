"""What a look at all images finds: what is wrong with the data, and what is odd."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from lmgraft.data.image.checks import ignored_files, other_totals
from lmgraft.data.image.classes import number_classes
from lmgraft.data.image.image_files import ImageFiles
from lmgraft.data.image.layouts import find_splits
from lmgraft.data.image.tables import Found
from lmgraft.data.image.verify import LONG, SMALL, Pictures, Twins, look, twins
from lmgraft.errors import DataError

_IMBALANCE = 10
"""Ratio of the largest to the smallest class that is worth a remark."""


@dataclass
class DataFindings:
    """Of all splits of a data set."""

    problems: list[str] = field(default_factory=list)
    """What is wrong with the layout, the table or the classes."""
    found: dict[str, Found] = field(default_factory=dict)
    seen: dict[str, Pictures] = field(default_factory=dict)
    twins: list[Twins] = field(default_factory=list)
    totals: list[str] = field(default_factory=list)
    """Splits of ImageNet that have not as many images as ImageNet's."""

    @property
    def is_wrong(self) -> bool:
        return bool(self.problems) or any(pictures.faults for pictures in self.seen.values())

    def counts(self, split: str) -> Counter[str]:
        """Images of each class."""
        return Counter(self.found[split].labels)

    def remarks(self) -> list[str]:
        """What is odd but stops nothing."""
        said = [*self.totals, *(line for found in self.found.values() if (line := ignored_files(found)))]
        for split, pictures in self.seen.items():
            short, long = pictures.readable().min(1), pictures.readable().max(1)
            by_kind = {
                f"have a side of less than {SMALL} pixels": int((short < SMALL).sum()),
                f"have one side more than {LONG} times the other": int((long > LONG * short).sum()),
                "made PIL warn or have several frames": len(pictures.notes),
            }
            said += [f"{split}: {count:,} images {kind}" for kind, count in by_kind.items() if count]
            counts = sorted(self.counts(split).values())
            if counts[-1] > _IMBALANCE * counts[0]:
                said.append(f"{split}: the largest class has {counts[-1]:,} images, the smallest {counts[0]:,}")
        across = sum(len(group.splits) > 1 for group in self.twins)
        torn = sum(len(group.labels) > 1 for group in self.twins)
        said += [f"{len(self.twins):,} images occur more than once, equal in every pixel"] if self.twins else []
        said += [f"{across:,} of them in more than one split: accuracy on them is no evidence"] if across else []
        said += [f"{torn:,} of them with different labels"] if torn else []
        return said

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            "wrong": self.is_wrong,
            "problems": self.problems,
            "remarks": self.remarks(),
            "splits": {
                split: {
                    "where": self.found[split].where,
                    "images": len(self.found[split].names),
                    "classes": dict(sorted(self.counts(split).items())),
                    "unreadable": [fault._asdict() for fault in pictures.faults],
                    "odd": [note._asdict() for note in pictures.notes],
                    "ignored": dict(self.found[split].ignored),
                    "modes": dict(pictures.modes.most_common()),
                    "median_size": pictures.median_size(),
                }
                for split, pictures in self.seen.items()
            },
            "duplicates": [list(group.names) for group in self.twins],
        }


Tell = Callable[[int, int], None]
"""(images more, unreadable among them)"""


def check(data: ImageFiles, workers: int, progress: Callable[[str, int], AbstractContextManager[Tell]]) -> DataFindings:
    """Find all splits, compare their classes, and decode all images.

    Args:
        workers: Processes; 0 uses this one.
        progress: Makes what is told of the progress, from the name of a split and its number of images.
    """
    findings = DataFindings()
    try:
        findings.found = find_splits(data.layout)
        names, _ = number_classes(findings.found, data.classes, data.class_map, data.root)
        findings.totals = other_totals(findings.found, names)
    except DataError as error:
        findings.problems.append(str(error))
    for split, found in findings.found.items():
        with progress(split, len(found.names)) as tell:
            findings.seen[split] = look(found, workers, tell)
    findings.twins = twins(findings.found, findings.seen) if findings.seen else []
    return findings
