"""What a number that compares models means and how it is written, as data.

This room knows no task: a task says which metrics it has, a table in the registry names those that come with lmgraft.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from lmgraft.errors import RecipeError


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A number that a model reaches on a split: the plain mean over its items of the column of this name.

    Metrics without a form per item (average precision) have no column; contrasts of them rest on seeds alone.
    """

    name: str
    """The name in `val/NAME`, in result.json and of the column in test_items.npz."""
    title: str
    """The name in tables and figures: "test accuracy"."""
    higher_is_better: bool
    scale: float
    """A value is written as value times scale: 100 for shares."""
    unit: str
    """The unit of a written value: "%"."""
    difference_unit: str
    """The unit of a written difference: "points"."""
    margin: float
    """The difference that counts as equal unless a study says otherwise, in the metric's own unit."""
    low: float | None = None
    """The least possible value; None where there is none."""
    high: float | None = None
    """The largest possible value; None where there is none."""
    largest_margin: float | None = None
    """The largest margin of equivalence that a study may set; None where any will do."""
    digits: int | None = None
    """Digits behind the point of a written value; None: 2 where `scale` is 100 or more, else 4."""
    items: str = ""
    """What its items are, where they are not the split's own ("images" of captions); the column is "images/NAME"."""

    @property
    def direction(self) -> int:
        """1 where higher is better, else -1."""
        return 1 if self.higher_is_better else -1

    @property
    def column(self) -> str:
        """The name of the column whose mean this metric is."""
        return f"{self.items}/{self.name}" if self.items else self.name

    def possible(self, value: float) -> bool:
        """Whether the metric can have this value."""
        low, high = self.bounds
        return not math.isnan(value) and low <= value <= high

    @property
    def largest_difference(self) -> float:
        """The largest difference between two of its values; infinite where it has no bounds."""
        low, high = self.bounds
        return high - low

    @property
    def bounds(self) -> tuple[float, float]:
        """Its least and its largest value; infinite where it has no bound."""
        return -math.inf if self.low is None else self.low, math.inf if self.high is None else self.high


def by_name(metrics: Iterable[Metric], owner: str) -> dict[str, Metric]:
    """Metrics by name, in their order.

    Args:
        owner: Whose metrics these are, for the error.

    Raises:
        RecipeError: If there is none, or two have one name.
    """
    table: dict[str, Metric] = {}
    for metric in metrics:
        if table.setdefault(metric.name, metric) != metric:
            raise RecipeError(f"{owner} has two metrics of the name {metric.name!r}", "rename one of them")
    if not table:
        raise RecipeError(f"{owner} has no metric", "the first one chooses the epoch, so there must be one")
    return table
