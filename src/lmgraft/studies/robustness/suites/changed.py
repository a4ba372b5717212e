"""Suites that show a run's own test items with something taken away, and say how much each costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from lmgraft.checkpoint.digest import json_digest
from lmgraft.contracts import Metric
from lmgraft.data.base import Data
from lmgraft.data.items import ItemSet, whole_batch
from lmgraft.data.loader import Draw, Reported
from lmgraft.studies.robustness.cells import Cell
from lmgraft.studies.robustness.suite import Condition, Row, Suite

Change = Callable[[Any, list[Draw], Any, int], Any]
"""(items, draws, their batch, seed) -> the batch as the condition shows it."""


@dataclass(frozen=True, kw_only=True)
class TakenAway(Suite):
    """Test items as they are, and with something taken away; a subclass says what."""

    whole = "conditions"
    paired = True
    changes: ClassVar[Mapping[str, tuple[str, Change]]]
    """Condition -> its title, and what it does."""

    seed: int = 0
    """Of what the changes draw; the same for all models."""

    def conditions(self, data: Data) -> list[Condition]:
        data.prepare_data()
        data.setup("test")
        known: dict[str, Any] = {"data": json_digest(data.fingerprint())}
        items: Any = data.still("test")
        made = [Condition(key="clean", items=items, identity=known)]
        return made + [
            Condition(
                key=f"{self.name}/{name}", items=ChangedItems(items, change, self.seed),
                identity=known | vars(self), title=title, part=name,
            )
            for name, (title, change) in self.all_changes(data).items()
        ]  # fmt: skip

    def all_changes(self, data: Any) -> Mapping[str, tuple[str, Change]]:
        """What is done to items of these data."""
        return self.changes

    def summary(self, cells: Mapping[str, Cell], metric: Metric) -> list[Row]:
        """The value under each condition, how much it lies below the clean one, and the clean one."""
        changed = {cell.part: cell for cell in cells.values() if cell.part is not None}
        rows = [
            Row(kind="part", name=part, title=cell.title, value=cell.metrics[metric.name], metric=metric)
            for part, cell in changed.items()
        ]
        if self.clean not in cells:
            return rows
        clean = cells[self.clean].metrics[metric.name]
        unit = replace(metric, unit=metric.difference_unit, low=None, high=None)
        rows += [
            Row(
                kind="whole", name=f"lost_{part}", title=f"lost: {cell.title}", metric=unit,
                value=metric.direction * (clean - cell.metrics[metric.name]), interval=cell.lost.get(metric.name),
            )
            for part, cell in changed.items()
        ]  # fmt: skip
        title = f"clean {metric.title.removeprefix('test ')}"
        return [*rows, Row(kind="clean", name="clean", title=title, value=clean, metric=metric)]


class ChangedItems(ItemSet):
    """Test items with something taken away.

    Args:
        items: As evaluation shows them.
        change: What is done to a batch.
        seed: Of what it draws.
    """

    def __init__(self, items: ItemSet, change: Change, seed: int) -> None:
        self.items, self.change, self.seed = items, change, seed
        self.indices, self.groups = items.indices, items.groups

    def __getitems__(self, draws: list[Draw]) -> Reported:
        batch, faults = whole_batch(self.items.__getitems__(draws))
        return Reported(self.change(self.items, draws, batch, self.seed), faults)

    def place(self, index: int) -> str:
        return self.items.place(index)
