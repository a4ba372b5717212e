"""Metrics over the items of one trained model."""

from __future__ import annotations

import math

from lmgraft.analysis.intervals import items_interval
from lmgraft.contracts import Metric
from lmgraft.tasks.items import Items


def metric_interval(items: Items, metric: Metric) -> tuple[float, float] | None:
    """The 95 % interval of a metric over its items, by group; None where it has no column, or its items no spread.

    It says nothing of another seed.
    """
    column = items.get(metric.column)
    if column is None:
        return None
    group = items[f"{metric.items}/group" if metric.items else "group"]
    low = -math.inf if metric.low is None else metric.low
    high = math.inf if metric.high is None else metric.high
    ends = items_interval(column, group, possible=(low, high)).ends
    return None if ends is None else (float(ends[0]), float(ends[1]))
