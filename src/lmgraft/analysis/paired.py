"""Differences between arms over paired seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lmgraft.analysis.bootstrap import crossed_bootstrap
from lmgraft.analysis.holm import holm
from lmgraft.analysis.student import detectable_difference, difference_p, equivalence_p, mean_and_sd, mean_interval
from lmgraft.errors import RunError

Outcome = Literal["better", "worse", "not shown"]
Items = Mapping[str, Mapping[int, npt.NDArray[Any]]]
"""Arm -> seed -> (N,): one number for each test item, in the same order for all."""


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """`arm` minus `reference` over seeds that both have; all values in the metric's own unit."""

    arm: str
    reference: str
    seeds: tuple[int, ...]
    differences: tuple[float, ...]
    """By seed."""
    mean: float
    sd: float
    """Of the differences; n - 1. Zero where they are equal but for rounding: then nothing is shown, neither a
    difference nor equivalence, and interval and `detectable`, both without width, mean nothing."""
    interval: tuple[float, float] | None
    """Paired t, at the study's confidence, not corrected; None where there is none: see `missing`."""
    p: float
    """Paired t, two-sided."""
    p_holm: float
    """Corrected for the study's planned contrasts; equal to p for an exploratory one."""
    detectable: float
    """Smallest true difference that this many seeds and this sd would show with probability `power`, at the level
    that Holm's first step asks."""
    p_equivalence: float
    """Two one-sided t tests against the margin: the larger p; not corrected."""
    equivalent: bool
    """Within the margin, by those tests at 1 - confidence (of planned contrasts: corrected by Holm too)."""
    bootstrap: tuple[float, float] | None
    """Secondary: interval over seeds and test items drawn anew (`crossed_bootstrap`), not corrected; None without
    values by item."""
    outcome: Outcome
    """better or worse where p_holm < 1 - confidence, in the metric's own sense of better; else not shown."""
    power: float = 0.8
    """That `detectable` speaks of."""
    groups: int | None = None
    """How many groups the test items form that the bootstrap drew; None where every item stands alone."""
    missing: str | None = None
    """Why there is no interval, a key of `lmgraft.words.numbers.MISSING`; None where there is one."""


def contrasts(
    values: Mapping[str, Mapping[int, float]],
    pairs: Sequence[tuple[str, str]],
    *,
    margin: float,
    higher_is_better: bool = True,
    confidence: float = 0.95,
    power: float = 0.8,
    items: Items | None = None,
    correct: bool = True,
) -> list[Contrast]:
    """Compare arms over the seeds that both have.

    Args:
        values: Arm -> seed -> the metric.
        pairs: (arm, reference), for each a contrast.
        margin: What counts as equal, above 0, in the metric's unit.
        higher_is_better: Of the metric.
        confidence: Of intervals; tests are at 1 minus this.
        power: Of the smallest detectable difference.
        items: The metric for each test item, whose mean is the value; a contrast of which some run
            has none gets no bootstrap interval.
        correct: Whether Holm's correction runs over these pairs: for planned ones; with False each
            stands alone.

    Raises:
        RunError: If an arm is not there, a value is not finite, a pair shares fewer than two seeds,
            or runs have different numbers of test items.
        ValueError: If margin, confidence or power are out of range.
    """
    if not (margin > 0 and 0 < confidence < 1 and 1 - confidence < power < 1):
        raise ValueError(f"margin={margin}, confidence={confidence} or power={power} is out of range")
    if not pairs:
        return []
    shared = [_shared_seeds(values, pair) for pair in pairs]
    alpha = 1 - confidence
    found = [_differences(values, pair, seeds) for pair, seeds in zip(pairs, shared, strict=True)]
    p = [difference_p(mean, sd, len(rows)) for rows, mean, sd in found]
    p_same = [equivalence_p(mean, sd, len(rows), margin) for rows, mean, sd in found]
    p_holm, p_same_holm = (holm(p), holm(p_same)) if correct else (p, p_same)
    first = alpha / len(pairs) if correct else alpha
    boots = _bootstraps(items or {}, pairs, shared, confidence)
    made = []
    for i, (arm, reference) in enumerate(pairs):
        rows, mean, sd = found[i]
        outcome: Outcome = "not shown"
        if p_holm[i] < alpha:
            outcome = "better" if (mean > 0) == higher_is_better else "worse"
        made.append(
            Contrast(
                arm=arm,
                reference=reference,
                seeds=shared[i],
                differences=rows,
                mean=mean,
                sd=sd,
                interval=(mean, mean) if sd == 0 else mean_interval(rows, confidence) or (mean, mean),
                p=p[i],
                p_holm=p_holm[i],
                detectable=detectable_difference(sd, len(rows), alpha=first, power=power),
                p_equivalence=p_same[i],
                equivalent=p_same_holm[i] < alpha,
                bootstrap=boots[i],
                outcome=outcome,
                power=power,
            )
        )
    return made


def _shared_seeds(values: Mapping[str, Mapping[int, float]], pair: tuple[str, str]) -> tuple[int, ...]:
    for arm in pair:
        if arm not in values:
            raise RunError(f"there are no values of arm {arm!r}", f"there are those of {', '.join(values) or 'no arm'}")
        for seed, value in values[arm].items():
            if not math.isfinite(value):
                raise RunError(
                    f"arm {arm}, seed {seed}: the metric is {value}",
                    "a run that diverged cannot be averaged away: run the arm again at a lower learning rate",
                )
    arm, reference = pair
    seeds = tuple(sorted(set(values[arm]) & set(values[reference])))
    if len(seeds) < 2:
        raise RunError(
            f"{arm} and {reference} share {len(seeds)} seed{'' if len(seeds) == 1 else 's'}",
            "a difference needs at least two seeds that both have run, a verdict five",
        )
    return seeds


def _differences(
    values: Mapping[str, Mapping[int, float]], pair: tuple[str, str], seeds: tuple[int, ...]
) -> tuple[tuple[float, ...], float, float]:
    """By seed; their mean and standard deviation."""
    arm, reference = pair
    return differences([values[arm][seed] for seed in seeds], [values[reference][seed] for seed in seeds])


def differences(ones: Sequence[float], others: Sequence[float]) -> tuple[tuple[float, ...], float, float]:
    """One by one, at least two; their mean, and their deviation: zero where they are equal but for rounding."""
    rows = tuple(one - other for one, other in zip(ones, others, strict=True))
    mean, sd = mean_and_sd(rows)
    # 0.3 - 0.2 and 0.5 - 0.4 differ by rounding alone; a t of 1e12 would come of it. Means may be in float32.
    rounding = 5e-7 * max(map(abs, (*ones, *others)))
    if sd <= rounding:
        return rows, 0.0 if abs(mean) <= rounding else mean, 0.0
    return rows, mean, sd


def _bootstraps(
    items: Items, pairs: Sequence[tuple[str, str]], shared: Sequence[tuple[int, ...]], confidence: float
) -> list[tuple[float, float] | None]:
    """An interval for each pair, where all its runs have values by item."""
    there = [i for i, pair in enumerate(pairs) if all(seed in items.get(arm, {}) for arm in pair for seed in shared[i])]
    check_items(items, {(arm, seed) for i in there for arm in pairs[i] for seed in shared[i]})
    found: list[tuple[float, float] | None] = [None] * len(pairs)
    # Together where the number of seeds is the same: the draws of items, most of the work, serve all.
    for number in {len(shared[i]) for i in there}:
        same = [i for i in there if len(shared[i]) == number]
        stacked = [
            [np.subtract(items[pairs[i][0]][s], items[pairs[i][1]][s], dtype=np.float64) for s in shared[i]]
            for i in same
        ]
        for i, (low, high) in zip(same, crossed_bootstrap(np.array(stacked), confidence), strict=True):
            found[i] = float(low), float(high)
    return found


def check_items(items: Items, runs: set[tuple[str, int]]) -> None:
    """Make sure that these runs (arm, seed) have the metric of the same number of test items.

    Raises:
        RunError: If they have not, or an item's value is not finite.
    """
    sizes: dict[int, tuple[str, int]] = {}
    for arm, seed in sorted(runs):
        array = items[arm][seed]
        if array.ndim != 1 or array.size < 2 or not np.isfinite(array).all():
            raise RunError(
                f"arm {arm}, seed {seed}: values by test item are not a row of two or more finite numbers",
                "evaluate the run again",
            )
        sizes.setdefault(array.size, (arm, seed))
    if len(sizes) > 1:
        told = ", ".join(f"{arm}, seed {seed}: {size}" for size, (arm, seed) in sorted(sizes.items()))
        raise RunError(f"runs have different numbers of test items ({told})", "compare runs on the same test items")
