"""A look at all items of a data set before a training does: what every kind of data can say of itself.

Knows no kind of item. A family with more to say returns `Findings` of its own, filled in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from lmgraft.data.items import ItemSet
from lmgraft.data.loader import Draw, Fault, Reported

Tell = Callable[[int, int], None]
"""(items more, unreadable among them)"""
ShowProgress = Callable[[str, int], AbstractContextManager[Tell]]
"""From the name of a split and its number of items to what is told of the progress."""

_CHUNK = 64


@dataclass(frozen=True)
class Grid:
    """Rows of text for the terminal."""

    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    title: str | None = None


@dataclass
class Findings:
    """What was found in all splits of a data set."""

    things: str
    """What the items are, in the plural."""
    problems: list[str] = field(default_factory=list)
    """What is wrong with the layout, a table or the classes: with any, training would stop."""
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    """Split -> files that cannot be read."""
    remarks: list[str] = field(default_factory=list)
    """What is odd but stops nothing."""
    grids: list[Grid] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    """Everything else, for JSON."""
    held_out: bool = False
    """Whether test items are held out from the only split there is, so that any of its files may be one."""

    @property
    def is_wrong(self) -> bool:
        return bool(self.problems) or any(self.faults.values())

    def limits(self) -> dict[str, int]:
        """The settings of the data under which training goes on in spite of unreadable files."""
        bad = {split: len(faults) for split, faults in self.faults.items()}
        test = next((split for split in ("test", "val") if split in bad), None)
        limits = {
            "max_corrupt": sum(count for split, count in bad.items() if split != test),
            "max_corrupt_test": sum(bad.values()) if test is None else bad[test],
        }
        return {key: count for key, count in limits.items() if count}

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {"wrong": self.is_wrong, "problems": self.problems, "remarks": self.remarks, **self.details}


def check_items(things: str, splits: Mapping[Any, ItemSet], progress: ShowProgress) -> Findings:
    """Read all items of these splits once.

    Args:
        things: What the items are, in the plural.
        splits: As evaluation sees them.
        progress: See `ShowProgress`.
    """
    findings = Findings(things)
    rows = []
    for name, items in splits.items():
        faults: dict[Fault, None] = {}
        with progress(name, len(items)) as tell:
            for first in range(0, len(items), _CHUNK):
                draws = [Draw(0, sample) for sample in range(first, min(first + _CHUNK, len(items)))]
                loaded = items.__getitems__(draws)
                more = [
                    fault for fault in (loaded.faults if isinstance(loaded, Reported) else ()) if fault not in faults
                ]
                faults.update(dict.fromkeys(more))
                tell(len(draws), len(more))
        findings.faults[name] = list(faults)
        groups = len(set(items.groups.tolist()))
        rows.append((name, f"{len(items):,}", f"{groups:,}", f"{len(faults):,}"))
    findings.grids.append(Grid(("split", things, "groups", "unreadable"), rows))
    findings.details["splits"] = {
        name: {things: len(items), "unreadable": [fault._asdict() for fault in findings.faults[name]]}
        for name, items in splits.items()
    }
    return findings
