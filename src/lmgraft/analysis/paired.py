"""Differences between arms over paired seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lmgraft.analysis.bootstrap import crossed_bootstrap
from lmgraft.analysis.groups import group_codes
from lmgraft.analysis.holm import holm
from lmgraft.analysis.intervals import NoInterval
from lmgraft.analysis.student import (
    detectable_difference,
    difference_p,
    equal_within,
    equivalence_p,
    mean_and_sd,
    mean_interval,
)
from lmgraft.errors import RunError

Outcome = Literal["better", "worse", "not shown"]
Items = Mapping[str, Mapping[int, npt.NDArray[Any]]]
"""Arm -> seed -> (N,): one number for each test item, in the same order for all."""

POWER = 0.8
"""Probability with which the smallest detectable difference would be shown."""


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
    difference nor equivalence, and `detectable`, which is 0, means nothing."""
    interval: tuple[float, float] | None
    """Paired t, at the study's confidence, not corrected; None where the differences do not spread. `bootstrap` does
    not take its place: it knows nothing of seeds then, and covers far too little (docs/statistics.md)."""
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
    """Secondary: interval over seeds and test items drawn anew (`crossed_bootstrap`), not corrected; None where there
    is none: the contrast rests on seeds alone."""
    outcome: Outcome
    """better or worse where p_holm < 1 - confidence, in the metric's own sense of better; else not shown."""
    power: float = POWER
    """That `detectable` speaks of."""
    no_interval: NoInterval | None = None
    """Why there is no `interval`; None where there is, and in results of older versions."""
    groups: int | None = None
    """How many groups of test items `bootstrap` draws whole; None where every item stands alone, or without it."""
    no_bootstrap: NoInterval | None = None
    """Why there is no `bootstrap`; None where there is, and in results of older versions."""


def contrasts(
    values: Mapping[str, Mapping[int, float]],
    pairs: Sequence[tuple[str, str]],
    *,
    margin: float,
    higher_is_better: bool = True,
    confidence: float = 0.95,
    items: Items | None = None,
    groups: npt.ArrayLike | None = None,
    correct: bool = True,
) -> list[Contrast]:
    """Compare arms over the seeds that both have.

    Args:
        values: Arm -> seed -> the metric.
        pairs: (arm, reference), for each a contrast.
        margin: What counts as equal, above 0, in the metric's unit.
        higher_is_better: Of the metric.
        confidence: Of intervals; tests are at 1 minus this.
        items: The metric for each test item, whose mean is the value; a contrast of which some run
            has none gets no bootstrap interval.
        groups: (N,) one whole number for each test item, equal for items that belong together (questions of
            one image); None where every item stands alone.
        correct: Whether Holm's correction runs over these pairs: for planned ones; with False each
            stands alone.

    Raises:
        RunError: If an arm is not there, a value is not finite, a pair shares fewer than two seeds,
            runs have different numbers of test items, or groups are not one whole number for each.
        ValueError: If margin or confidence are out of range.
    """
    if not (margin > 0 and 1 - POWER < confidence < 1):
        raise ValueError(f"margin={margin} or confidence={confidence} is out of range")
    if not pairs:
        return []
    shared = [_shared_seeds(values, pair) for pair in pairs]
    boots = _bootstraps(items or {}, groups, pairs, shared, confidence)
    level = (1 - confidence) / (len(pairs) if correct else 1)
    made = [_uncorrected(values, *given, margin, confidence, level) for given in zip(pairs, shared, boots, strict=True)]
    if correct:
        made = _corrected(made, 1 - confidence)
    return [replace(c, outcome=_outcome(c, higher_is_better)) if c.p_holm < 1 - confidence else c for c in made]


def _uncorrected(
    values: Mapping[str, Mapping[int, float]],
    pair: tuple[str, str],
    seeds: tuple[int, ...],
    boot: Boot,
    margin: float,
    confidence: float,
    level: float,
) -> Contrast:
    """One contrast as if it were the only one, and nothing shown; `level` is that of Holm's first step."""
    arm, reference = pair
    ones, others = ([values[name][seed] for seed in seeds] for name in pair)
    test = paired_test(ones, others, margin, confidence=confidence, level=level)
    return Contrast(
        arm=arm,
        reference=reference,
        seeds=seeds,
        **vars(test),
        p_holm=test.p,
        equivalent=test.p_equivalence < 1 - confidence,
        bootstrap=boot.ends,
        groups=boot.groups,
        no_bootstrap=boot.missing,
        outcome="not shown",
        power=POWER,
    )


@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """A paired t test over seeds, as `Contrast` records it, before any correction."""

    differences: tuple[float, ...]
    mean: float
    sd: float
    interval: tuple[float, float] | None
    no_interval: NoInterval | None
    p: float
    p_equivalence: float
    detectable: float


def paired_test(
    ones: Sequence[float], others: Sequence[float], margin: float, *, confidence: float = 0.95, level: float
) -> PairedTest:
    """Compare two sides seed by seed, at least two of them.

    Args:
        ones: A value for each seed.
        others: Those of the other side, for the same seeds.
        margin: What counts as equal.
        confidence: Of the interval.
        level: Of the test that `detectable` speaks of.
    """
    rows, mean, sd = differences(ones, others)
    return PairedTest(
        differences=rows,
        mean=mean,
        sd=sd,
        interval=None if sd == 0 else mean_interval(rows, confidence, rounding=0),
        no_interval="no spread" if sd == 0 else None,
        p=difference_p(mean, sd, len(rows)),
        p_equivalence=equivalence_p(mean, sd, len(rows), margin),
        detectable=detectable_difference(sd, len(rows), alpha=level, power=POWER),
    )


def _corrected(alone: Sequence[Contrast], alpha: float) -> list[Contrast]:
    """Differences, and apart from them equivalences, by Holm's correction."""
    p, p_same = holm([c.p for c in alone]), holm([c.p_equivalence for c in alone])
    return [replace(c, p_holm=p[i], equivalent=p_same[i] < alpha) for i, c in enumerate(alone)]


def _outcome(shown: Contrast, higher_is_better: bool) -> Outcome:
    return "better" if (shown.mean > 0) == higher_is_better else "worse"


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


def differences(ones: Sequence[float], others: Sequence[float]) -> tuple[tuple[float, ...], float, float]:
    """One by one, at least two; their mean, and their deviation: zero where they are equal but for rounding."""
    rows = tuple(one - other for one, other in zip(ones, others, strict=True))
    mean, sd = mean_and_sd(rows)
    # 0.3 - 0.2 and 0.5 - 0.4 differ by rounding alone; a t of 1e12 would come of it. Means may be in float32.
    rounding = equal_within((*ones, *others))
    if sd <= rounding:
        return rows, 0.0 if abs(mean) <= rounding else mean, 0.0
    return rows, mean, sd


@dataclass(frozen=True)
class Boot:
    """The bootstrap of one contrast, as `Contrast` records it."""

    ends: tuple[float, float] | None = None
    groups: int | None = None
    missing: NoInterval | None = None


def _bootstraps(
    items: Items,
    groups: npt.ArrayLike | None,
    pairs: Sequence[tuple[str, str]],
    shared: Sequence[tuple[int, ...]],
    confidence: float,
) -> list[Boot]:
    """An interval for each pair, where all its runs have values by item."""
    there = [i for i, pair in enumerate(pairs) if all(seed in items.get(arm, {}) for arm in pair for seed in shared[i])]
    runs = {(arm, seed) for i in there for arm in pairs[i] for seed in shared[i]}
    check_items(items, runs)
    made = [Boot(missing="no items")] * len(pairs)
    # Together where the number of seeds is the same: the draws of items, most of the work, serve all.
    for number in {len(shared[i]) for i in there}:
        same = [i for i in there if len(shared[i]) == number]
        stacked = [
            [np.subtract(items[pairs[i][0]][s], items[pairs[i][1]][s], dtype=np.float64) for s in shared[i]]
            for i in same
        ]
        for i, boot in zip(same, boots(np.array(stacked), groups, confidence), strict=True):
            made[i] = boot
    return made


def boots(stacked: npt.NDArray[Any], groups: npt.ArrayLike | None, confidence: float = 0.95) -> list[Boot]:
    """An interval over seeds and items, or why there is none, for each of K contrasts with differences (K, n, N)."""
    codes = group_codes(groups, stacked.shape[2])
    number = None if codes is None else int(codes.max()) + 1
    if number == 1:
        return [Boot(missing="one group")] * len(stacked)
    ends = crossed_bootstrap(stacked, confidence, groups=codes).tolist()
    return [
        Boot((low, high), number) if high - low > equal_within((low, high)) else Boot(missing="no spread")
        for low, high in ends
    ]


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
        listed = ", ".join(f"{arm}, seed {seed}: {size}" for size, (arm, seed) in sorted(sizes.items()))
        raise RunError(f"runs have different numbers of test items ({listed})", "compare runs on the same test items")
