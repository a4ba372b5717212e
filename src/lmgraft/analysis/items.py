"""Metrics over the items of one trained model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmgraft.analysis.intervals import items_interval
from lmgraft.contracts import Metric
from lmgraft.tasks.items import Items


@dataclass(frozen=True, kw_only=True)
class MetricValue:
    """A metric of one trained model."""

    value: float
    items: NDArray[np.float64] | None = None
    """(N,) the metric of each test item, whose mean is `value`; None for a metric that has no such form."""
    groups: NDArray[Any] | None = None
    """(N,) which items belong together; None without `items`."""


def metric_value(items: Items, metric: Metric, otherwise: float = math.nan) -> MetricValue:
    """A metric from what came of each item; `otherwise` where it is no mean over items."""
    column = items.get(metric.column)
    if column is None:
        return MetricValue(value=otherwise)
    values = column.astype(np.float64)
    group = items[f"{metric.items}/group" if metric.items else "group"]
    return MetricValue(value=float(values.mean()), items=values, groups=group)


def metric_interval(items: Items, metric: Metric) -> tuple[float, float] | None:
    """The 95 % interval of a metric over its items, by group; None where it has no column, or its items no spread.

    It says nothing of another seed.
    """
    measured = metric_value(items, metric)
    if measured.items is None or measured.groups is None:
        return None
    ends = items_interval(measured.items, measured.groups, possible=metric.bounds).ends
    return None if ends is None else (float(ends[0]), float(ends[1]))
