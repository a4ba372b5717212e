"""A metric as one number for each test item, whose plain mean is the metric.

Accuracy, a VQA score, a distance in metres are means already. A metric that is a function of several means is written
as its value plus each item's influence on it (Hampel, JASA 1974): the mean is exactly the value, and the spread is, to
first order, that of the metric when other items are drawn, so that every interval here takes it as it takes an
accuracy. Uncentred weights have the mean too, but would count the chance variation of class sizes, and jackknife
pseudo-values have another mean. What has no such form (average precision over ranks, FID) has no column.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from lmgraft.errors import RecipeError

Array = npt.NDArray[np.float64]


def mean_class_accuracy(hit: npt.ArrayLike, label: npt.ArrayLike) -> Array:
    """m + (hit - accuracy of its class) N / (C n of its class): the mean of the accuracies of C classes.

    Args:
        hit: (N,) 1 for a right item, 0 for a wrong one, or any score.
        label: (N,) class of each item; classes without an item do not count.

    Returns:
        (N,).

    Raises:
        RecipeError: If there are no items, lengths differ, or a number is not finite.
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
        RecipeError: As `mean_class_accuracy`, or if denominators are negative or all zero.
    """
    above, below = _columns(numerator=numerator, denominator=denominator)
    if (below < 0).any() or not below.any():
        raise RecipeError(
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
        RecipeError: As `mean_class_accuracy`, or if a column is constant.
    """
    standard = {}
    for name, column in zip(("u", "v"), _columns(u=u, v=v), strict=True):
        centred = column - column.mean()
        sd = math.sqrt((centred**2).mean())
        if sd <= 1e-12 * np.abs(column).max():
            raise RecipeError(f"column {name} is constant, so that nothing correlates with it", "report another metric")
        standard[name] = centred / sd
    a, b = standard["u"], standard["v"]
    r = (a * b).mean()
    influence: Array = r + a * b - r * (a**2 + b**2) / 2
    return influence


def _columns(**given: npt.ArrayLike) -> list[Array]:
    """As finite columns of one length."""
    columns = {name: np.asarray(column, dtype=np.float64) for name, column in given.items()}
    shapes = {name: column.shape for name, column in columns.items()}
    if len(set(shapes.values())) != 1 or any(column.ndim != 1 or column.size == 0 for column in columns.values()):
        shown = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise RecipeError(f"columns of items do not fit: {shown}", "give one number for each item in both")
    for name, column in columns.items():
        if not np.isfinite(column).all():
            raise RecipeError(f"column {name} of the items holds numbers that are not finite", "look at these items")
    return list(columns.values())
