"""A metric as one number for each test item, whose plain mean is the metric.

Accuracy, a VQA score, a distance in metres are means already. A metric that is a function of several means is written
as its value plus each item's influence on it (Hampel, JASA 1974): the mean is exactly the value, and the spread is, to
first order, that of the metric when other items are drawn, so that every interval here takes it as it takes an
accuracy. Uncentred weights have the mean too, but would count the chance variation of class sizes, and jackknife
pseudo-values have another mean. What has no such form (average precision over ranks, FID) has no column.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from lmgraft.errors import RunError

Array = npt.NDArray[np.float64]

TOLERANCE = 1e-5
"""Relative difference between a metric and the mean of its column; metrics may be summed in 32 bits, and one item of
50,000 counts for twice as much."""


def mean_class_accuracy(hit: npt.ArrayLike, label: npt.ArrayLike) -> Array:
    """m + (hit - accuracy of its class) N / (C n of its class): the mean of the accuracies of C classes.

    Args:
        hit: (N,) 1 for a right item, 0 for a wrong one, or any score.
        label: (N,) class of each item; classes without an item do not count.

    Returns:
        (N,).

    Raises:
        RunError: If there are no items, lengths differ, or a number is not finite.
    """
    hits, classes = _columns(hit=hit, label=label)
    _, code, size = np.unique(classes, return_inverse=True, return_counts=True)
    accuracy = np.bincount(code, hits) / size
    column: Array = accuracy.mean() + (hits - accuracy[code]) * len(hits) / (len(size) * size[code])
    return column


def ratio(numerator: npt.ArrayLike, denominator: npt.ArrayLike) -> Array:
    """m + (I - m U) N / sum U: the ratio m = sum I / sum U over all items, as the IoU of a whole corpus is.

    Args:
        numerator: (N,) I.
        denominator: (N,) U, none negative.

    Returns:
        (N,).

    Raises:
        RunError: As `mean_class_accuracy`, or if denominators are negative or all zero.
    """
    above, below = _columns(numerator=numerator, denominator=denominator)
    if (below < 0).any() or not below.any():
        raise RunError(
            "denominators of a ratio are all zero, or some are negative", "give what each item adds to both sums"
        )
    value = above.sum() / below.sum()
    column: Array = value + (above - value * below) * len(below) / below.sum()
    return column


def correlation(u: npt.ArrayLike, v: npt.ArrayLike) -> Array:
    """r + u v - r (u^2 + v^2) / 2, with u and v standardised: Pearson's correlation r of two columns.

    Of Spearman's, which is that of ranks, the value is right; the influence leaves out that ranks depend on all items.

    Args:
        u: (N,).
        v: (N,).

    Returns:
        (N,).

    Raises:
        RunError: As `mean_class_accuracy`, or if a column is constant.
    """
    standard = {}
    for name, column in zip(("u", "v"), _columns(u=u, v=v), strict=True):
        centred = column - column.mean()
        sd = math.sqrt((centred**2).mean())
        if sd <= 1e-12 * np.abs(column).max():
            raise RunError(f"column {name} is constant, so that nothing correlates with it", "report another metric")
        standard[name] = centred / sd
    a, b = standard["u"], standard["v"]
    r = (a * b).mean()
    influence: Array = r + a * b - r * (a**2 + b**2) / 2
    return influence


def check_column(name: str, column: npt.NDArray[Any], value: float, items: int | None = None) -> None:
    """Make sure that a column is the metric, item by item.

    Args:
        name: The metric's, which is the column's.
        column: One number for each item.
        value: The metric on all items.
        items: How many there must be; not asked without.

    Raises:
        RunError: If it is no row of finite numbers, has another length, or its mean is not `value`.
    """
    numbers = np.asarray(column)
    if numbers.ndim != 1 or numbers.size == 0 or numbers.dtype.kind not in "biuf":
        raise RunError(
            f"column {name!r} of the items is {numbers.dtype} of shape {numbers.shape}, not one number for each item",
            "let the task's score give a row of numbers",
        )
    if items is not None and numbers.size != items:
        raise RunError(
            f"column {name!r} has {numbers.size} items, the split has {items}",
            "let the task's score give one number for each item of the batch",
        )
    missing = int((~np.isfinite(numbers)).sum())
    if missing or not math.isfinite(value):
        what = f"{missing} of {numbers.size} items" if missing else f"the metric ({value})"
        raise RunError(f"column {name!r} of the items: {what} not finite", "look at what the model predicts for them")
    mean = float(numbers.mean(dtype=np.float64))
    scale = max(abs(value), float(np.abs(numbers).mean(dtype=np.float64)))
    if abs(mean - value) > TOLERANCE * scale:
        raise RunError(
            f"column {name!r} of the items has the mean {mean:.8g}, but the metric is {value:.8g}",
            "give a column whose plain mean is the metric (lmgraft.analysis.items has forms for ratios, correlations "
            "and mean-class accuracy), or none",
        )


def _columns(**given: npt.ArrayLike) -> list[Array]:
    """As finite columns of one length."""
    columns = {name: np.asarray(column, dtype=np.float64) for name, column in given.items()}
    shapes = {name: column.shape for name, column in columns.items()}
    if len(set(shapes.values())) != 1 or any(column.ndim != 1 or column.size == 0 for column in columns.values()):
        told = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise RunError(f"columns of items do not fit: {told}", "give one number for each item in both")
    for name, column in columns.items():
        if not np.isfinite(column).all():
            raise RunError(f"column {name} of the items holds numbers that are not finite", "look at these items")
    return list(columns.values())
