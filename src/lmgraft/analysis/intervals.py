"""Intervals over the test items of one trained model: they speak of other items, not of other seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lmgraft.analysis.student import t_quantile


@dataclass(frozen=True, kw_only=True)
class ItemInterval:
    """An interval over items, or None where there is none."""

    ends: tuple[float, float] | None
    method: Literal["wilson", "t"]


def items_interval(
    values: npt.NDArray[Any],
    groups: npt.ArrayLike | None = None,
    confidence: float = 0.95,
    *,
    possible: tuple[float, float] = (-math.inf, math.inf),
) -> ItemInterval:
    """The interval of a metric that is the plain mean of a column: Wilson's of independent 0s and 1s, else Student's t.

    Args:
        values: (N,) finite.
        groups: (N,) whole numbers, equal for items that belong together; None where each stands alone.
        confidence: Nominal.
        possible: Values that the metric can have; the interval is cut there.
    """
    values = values.astype(np.float64)
    _, codes = np.unique(np.arange(values.size) if groups is None else np.asarray(groups), return_inverse=True)
    number = int(codes.max()) + 1
    if number == values.size and np.isin(values, (0, 1)).all():
        return ItemInterval(ends=wilson_interval(int(values.sum()), values.size, confidence), method="wilson")
    mean = values.mean()
    influence = np.bincount(codes, weights=values - mean) / values.size
    if number < 2 or not influence.any():
        return ItemInterval(ends=None, method="t")
    half = t_quantile(confidence, number - 1) * math.sqrt(number / (number - 1) * float((influence**2).sum()))
    return ItemInterval(ends=(max(mean - half, possible[0]), min(mean + half, possible[1])), method="t")


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
