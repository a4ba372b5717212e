"""Intervals over the test items of one trained model: they speak of other items, not of other seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lmgraft.analysis.groups import group_codes, group_values
from lmgraft.analysis.student import equal_within, t_quantile

NoInterval = Literal["one value", "no items", "one group", "no spread"]
"""Why there is none: a single item, seed or draw; no values by item; all items belong together; or all values are
equal, so that nothing tells how another sample would differ."""


@dataclass(frozen=True, kw_only=True)
class ItemInterval:
    """An interval over items, or why there is none."""

    ends: tuple[float, float] | None
    method: Literal["wilson", "t"]
    """Wilson's score interval of a share, or Student's t over items or, where they belong together, over groups."""
    groups: int | None = None
    """How many; None where every item stands alone."""
    missing: NoInterval | None = None


def items_interval(
    values: npt.NDArray[Any],
    groups: npt.ArrayLike | None = None,
    confidence: float = 0.95,
    *,
    possible: tuple[float, float] = (-math.inf, math.inf),
    differences: bool = False,
) -> ItemInterval:
    """The interval of a metric that is the plain mean of a column, or of a mean difference.

    Wilson's where every value is 0 or 1, they are no differences, and every item stands alone; else Student's t over
    the groups' values (`analysis.groups.group_values`), a cluster-robust interval.

    Args:
        values: (N,) finite.
        groups: (N,) whole numbers, equal for items that belong together; None where each stands alone.
        confidence: Nominal.
        possible: Values that the mean can have; the interval is cut there.
        differences: Whether the values are differences: these may all be 0 or 1 and are no shares for all that.

    Raises:
        RunError: If groups are not one whole number for each item.
        ValueError: If there are no values.
    """
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"values of shape {values.shape} are no column of items")
    codes = group_codes(groups, values.size)
    number = None if codes is None else int(codes.max()) + 1
    if number is None and not differences and np.isin(values, (0, 1)).all():
        return ItemInterval(ends=wilson_interval(int(values.sum()), values.size, confidence), method="wilson")
    if number == 1 or values.size == 1:
        return ItemInterval(ends=None, method="t", groups=number, missing="one group" if number else "one value")
    by_group, df = group_values(values, codes)
    mean, sd = float(values.mean(dtype=np.float64)), float(by_group.std(ddof=1))
    if sd <= equal_within(values):
        return ItemInterval(ends=None, method="t", groups=number, missing="no spread")
    half = t_quantile(confidence, df) * sd / math.sqrt(by_group.size)
    return ItemInterval(ends=(max(mean - half, possible[0]), min(mean + half, possible[1])), method="t", groups=number)


def wilson_interval(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share (JASA 1927): good coverage near 0 and 1 too.

    It speaks of other test items from the same source, with this one trained model. It says
    nothing of what another seed would give.

    Raises:
        ValueError: If `correct` is not between 0 and `total`, or `total` is 0.
    """
    if not 0 <= correct <= total or total == 0:
        raise ValueError(f"{correct} of {total} is no share")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = correct / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    # Exact at the ends, where rounding would leave 1e-17 or miss 1.
    return 0.0 if correct == 0 else middle - half, 1.0 if correct == total else middle + half
