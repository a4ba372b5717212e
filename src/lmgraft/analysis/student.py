"""Student's t over a handful of values: intervals, differences, equivalence, and what n values can show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import import_module
from statistics import fmean
from typing import Any

from lmgraft.errors import LmgraftError


def scipy_special() -> Any:
    """`scipy.special`, where the t distributions are.

    Raises:
        LmgraftError: If SciPy is not installed.
    """
    try:
        return import_module("scipy.special")
    except ModuleNotFoundError:
        raise LmgraftError("statistics need the package 'scipy'", 'pip install "lmgraft[image]"') from None


def t_quantile(confidence: float, df: float) -> float:
    """What |t| stays below with probability `confidence`."""
    return -float(scipy_special().stdtrit(df, (1 - confidence) / 2))


def mean_and_sd(values: Sequence[float]) -> tuple[float, float]:
    """Of at least two values; n - 1. `statistics.stdev` counts in fractions, a hundred times slower."""
    mean = fmean(values)
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """Student's interval of the mean of independent, roughly normal values.

    Returns:
        (low, high); None for fewer than two values: one value has no spread, and an interval of
        width zero would claim certainty.
    """
    if len(values) < 2:
        return None
    mean, sd = mean_and_sd(values)
    half = t_quantile(confidence, len(values) - 1) * sd / math.sqrt(len(values))
    return mean - half, mean + half


def interval_of(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """As `mean_interval`, of at least two values.

    Raises:
        ValueError: If there are fewer.
    """
    found = mean_interval(values, confidence)
    if found is None:
        raise ValueError(f"an interval needs two values, got {len(values)}")
    return found


def difference_p(mean: float, sd: float, n: int) -> float:
    """Two-sided p of a one-sample t test that the true mean is zero.

    Without spread it is 1, whatever the mean: a few accuracies tie by chance, and the test, which
    would have p = 0, is of values that vary.
    """
    if sd == 0:
        return 1.0
    return 2 * float(scipy_special().stdtr(n - 1, -abs(mean) * math.sqrt(n) / sd))


def equivalence_p(mean: float, sd: float, n: int, margin: float) -> float:
    """Two one-sided t tests (Schuirmann 1987) that the true mean lies within (-margin, margin): the larger p.

    Below alpha exactly where the 1 - 2 alpha interval of the mean lies inside the margin; without
    spread 1, as `difference_p`.
    """
    room = margin - abs(mean)
    if sd == 0:
        return 1.0
    return float(scipy_special().stdtr(n - 1, -room * math.sqrt(n) / sd))


def detectable_difference(sd: float, n: int, *, alpha: float, power: float = 0.8) -> float:
    """The true mean that a two-sided t test of n values finds with probability `power`.

    From the noncentral t distribution, with the true standard deviation taken to be `sd`. The
    chance of a significant result of the wrong sign, less than 1e-4 here, is left out.

    Args:
        sd: Standard deviation of a single value.
        n: How many, at least 2.
        alpha: Level of the test.
        power: Probability, above `alpha`.
    """
    special = scipy_special()
    noncentrality = float(special.nctdtrinc(n - 1, 1 - power, -special.stdtrit(n - 1, alpha / 2)))
    return noncentrality * sd / math.sqrt(n)
