"""Intervals over seeds and test items drawn anew, both at once.

The paired t interval speaks of other seeds on these test items. This one speaks of other seeds
and other test items. It is secondary: its width rests on as few seeds, and on more assumptions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from lmgraft.analysis.groups import Codes, group_codes, group_sums, group_values
from lmgraft.analysis.student import scipy_special

Array = npt.NDArray[np.float64]

DRAWS = 2000
_BLOCK = 1 << 21  # counts of items or groups held at once


def crossed_bootstrap(
    differences: npt.NDArray[Any],
    confidence: float = 0.95,
    *,
    groups: npt.ArrayLike | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Array:
    """Interval of the mean difference where seeds and items are both samples.

    Seeds and items are drawn with replacement, independently; a draw of items is shared by all
    seeds. Draws of this kind spread wrongly: over n seeds too narrow by sqrt((n - 1) / n), and
    as if normal where t is due; in the noise that is neither seed's nor item's too wide
    (Owen, Annals of Applied Statistics, 2007). So the draws keep their shape and centre, and are
    scaled to the unbiased two-way variance (mean squares of seeds + items - rest) and from the
    normal to Student's t at Satterthwaite's degrees of freedom. With groups, whole groups take the
    place of items: a drawn group brings all its items, so that the number of items varies with the
    draw, and the variance is that of `group_values`.

    Args:
        differences: (K, n, N): K contrasts, n >= 2 seeds, N >= 2 items.
        confidence: Nominal; for what is covered see `bootstrap_coverage`.
        groups: (N,) whole numbers, equal for items that belong together, at least two different;
            None where every item stands alone.
        draws: How many.
        seed: Of the generator; equal calls give equal intervals, and each contrast's does not
            depend on which others are there.

    Returns:
        (K, 2): low, high.

    Raises:
        RunError: If groups are not one whole number for each item.
    """
    codes = group_codes(groups, differences.shape[2])
    means = _drawn_means(differences, codes, draws, seed)
    centre = differences.mean(axis=(1, 2), dtype=np.float64)
    spread = means.std(axis=1)
    variance, df = _two_way(*group_values(differences, codes))
    quantile = -scipy_special().stdtrit(df, (1 - confidence) / 2) / NormalDist().inv_cdf(0.5 + confidence / 2)
    scale = np.divide(np.sqrt(variance) * quantile, spread, out=np.zeros_like(spread), where=spread > 0)
    tails = np.quantile(means - centre[:, None], [(1 - confidence) / 2, (1 + confidence) / 2], axis=1)
    ends: Array = (centre + tails * scale).T
    return ends


def percentile_bootstrap(
    differences: npt.NDArray[Any],
    confidence: float = 0.95,
    *,
    groups: npt.ArrayLike | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Array:
    """As `crossed_bootstrap` without the scaling; kept to measure what the scaling is worth."""
    means = _drawn_means(differences, group_codes(groups, differences.shape[2]), draws, seed)
    return np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2], axis=1).T


def _drawn_means(differences: npt.NDArray[Any], codes: Codes | None, draws: int, seed: int) -> Array:
    """(K, n, N) -> (K, draws)."""
    sums, sizes = group_sums(differences, codes)
    number, seeds, units = sums.shape
    generator = np.random.default_rng([seed, 1])
    seed_counts = _counts(generator, draws, seeds)
    rows = sums.reshape(-1, units)
    means = [
        np.einsum("knb,bn->kb", (rows @ counts.T).reshape(number, seeds, -1), seed_counts[start : start + len(counts)])
        / (seeds * (counts @ sizes))
        for start, counts in _unit_counts(draws, units, seed)
    ]
    drawn: Array = np.concatenate(means, axis=1)
    return drawn


def _unit_counts(draws: int, units: int, seed: int) -> Iterator[tuple[int, Array]]:
    generator = np.random.default_rng([seed, 0])
    step = max(1, _BLOCK // units)
    for start in range(0, draws, step):
        yield start, _counts(generator, min(step, draws - start), units)


def _counts(generator: np.random.Generator, draws: int, size: int) -> Array:
    """(draws, size): how often each of `size` things was drawn in `size` draws with replacement."""
    drawn = generator.integers(0, size, (draws, size)) + np.arange(draws)[:, None] * size
    return np.bincount(drawn.ravel(), minlength=draws * size).reshape(draws, size).astype(np.float64)


def _two_way(values: Array, units_df: float) -> tuple[Array, Array]:
    """Variance of the mean over a random sample of rows and columns, and its degrees of freedom; (K,) each.

    Args:
        values: (K, n, U): of n seeds and U items or groups.
        units_df: Degrees of freedom of the U; fewer than U - 1 where groups are of unequal size.
    """
    _, n, units = values.shape
    by_seed, by_unit = values.mean(axis=2), values.mean(axis=1)
    seeds_ms = units * by_seed.var(axis=1, ddof=1)
    units_ms = n * by_unit.var(axis=1, ddof=1)
    total = values.var(axis=(1, 2)) * n * units
    rest = np.maximum(total - (n - 1) * seeds_ms - (units - 1) * units_ms, 0)
    rest_ms = rest / ((n - 1) * (units - 1))
    # Each source holds the rest once. The larger of the two holds it too, so that the sum is never less.
    sum_ms = np.maximum(seeds_ms + units_ms - rest_ms, np.maximum(seeds_ms, units_ms))
    weight = seeds_ms**2 / (n - 1) + units_ms**2 / units_df + rest_ms**2 / ((n - 1) * units_df)
    df = np.divide(sum_ms**2, weight, out=np.full_like(weight, math.inf), where=weight > 0)
    return sum_ms / (n * units), np.maximum(df, 1)
