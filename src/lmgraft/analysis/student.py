"""Student's t over a handful of values: intervals, differences, equivalence, and what n values can show."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

from lmgraft.versions import optional


def scipy_special() -> Any:
    """`scipy.special`, where the t distributions are.

    Raises:
        VersionError: If SciPy is not installed.
    """
    return optional("scipy.special", "image", "statistics")


def t_quantile(confidence: float, df: float) -> float:
    """What |t| stays below with probability `confidence`."""
    return -float(scipy_special().stdtrit(df, (1 - confidence) / 2))


def mean_and_sd(values: Sequence[float]) -> tuple[float, float]:
    """Of at least two values; n - 1. `statistics.stdev` counts in fractions, a hundred times slower."""
    mean = fmean(values)
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def equal_within(values: Iterable[float]) -> float:
    """The standard deviation up to which numbers computed from these, maybe in 32 bits, are equal but for rounding."""
    return 5e-7 * max(map(abs, values))


def mean_interval(
    values: Sequence[float], confidence: float = 0.95, *, rounding: float | None = None
) -> tuple[float, float] | None:
    """Student's interval of the mean of independent, roughly normal values.

    Args:
        values: Any number of them.
        confidence: Nominal.
        rounding: The standard deviation up to which values count as equal; `equal_within(values)` unless
            they are differences of larger numbers.

    Returns:
        (low, high); None for fewer than two values, or for equal ones: there is no spread to judge by,
        and an interval of width zero would claim certainty.
    """
    if len(values) < 2:
        return None
    mean, sd = mean_and_sd(values)
    if sd <= (equal_within(values) if rounding is None else rounding):
        return None
    half = t_quantile(confidence, len(values) - 1) * sd / math.sqrt(len(values))
    return mean - half, mean + half


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
