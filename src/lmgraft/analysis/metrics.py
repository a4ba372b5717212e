"""The metrics that a study may compare arms by, as data."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lmgraft.errors import RecipeError
from lmgraft.registry import suggest


@dataclass(frozen=True, kw_only=True)
class Metric:
    """How a number is read, and how it is written."""

    name: str
    title: str
    higher_is_better: bool
    scale: float
    """Written is value times scale: 100 for shares."""
    unit: str
    """Of a written value: "%"."""
    difference_unit: str
    """Of a written difference: "points"."""
    margin: float
    """What counts as equal unless the study says otherwise, in the metric's own unit."""


METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        Metric(
            name="accuracy",
            title="test accuracy",
            higher_is_better=True,
            scale=100,
            unit="%",
            difference_unit="points",
            margin=0.005,
        ),
        Metric(
            name="top5",
            title="test top-5 accuracy",
            higher_is_better=True,
            scale=100,
            unit="%",
            difference_unit="points",
            margin=0.005,
        ),
        Metric(
            name="nll",
            title="test cross-entropy",
            higher_is_better=False,
            scale=1,
            unit="nats",
            difference_unit="nats",
            margin=0.01,
        ),
    )
}


_RANGES = {"accuracy": (0.0, 1.0), "top5": (0.0, 1.0), "nll": (0.0, math.inf)}


def _range(metric: Metric) -> tuple[float, float]:
    """Of one of `METRICS`; of a metric of somebody's own nothing is known."""
    return _RANGES[metric.name] if metric == METRICS.get(metric.name) else (-math.inf, math.inf)


def possible(value: float, metric: Metric) -> bool:
    """Whether the metric can have this value."""
    low, high = _range(metric)
    return low <= value <= high


def largest_difference(metric: Metric) -> float:
    """Between two of its values; infinite where nothing is known."""
    low, high = _range(metric)
    return high - low


def find_metric(name: str) -> Metric:
    """The metric of that name.

    Raises:
        RecipeError: If there is none; it lists those there are.
    """
    if name not in METRICS:
        raise RecipeError(f"there is no metric {name!r}", suggest(name, METRICS))
    return METRICS[name]
