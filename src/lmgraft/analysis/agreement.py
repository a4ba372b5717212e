"""How well a cheap score ranks candidates as real training does."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from lmgraft.errors import RunError

FEWEST = 4
"""Candidates. Of three, a perfect ranking comes by luck once in six times."""
EXACT_UP_TO = 8
"""Candidates up to which every permutation is looked at, and no interval is given."""
_DRAWS = 10_000
_BOOTSTRAPS = 2000

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Rank:
    """One coefficient of agreement: 1 the same order, 0 none, -1 the opposite."""

    value: float
    p: float
    """Two-sided, of as much agreement or disagreement under random order: exact for few candidates, else by draws."""
    interval: tuple[float, float] | None
    """95 %, percentile bootstrap over candidates; None for few, where it would be no better than a guess."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How a score's ranking agrees with real training's."""

    candidates: tuple[str, ...] = ()
    """Those that have both."""
    kendall: Rank | None = None
    """tau-b; None where there are too few candidates, or all are tied."""
    spearman: Rank | None = None
    favourite: str | None = None
    """What the score likes best; the first of several."""
    best: str | None = None
    """What real training likes best; the first of several."""
    regret: float | None = None
    """In the metric's unit, not negative: what is lost by training the favourite only; mean over tied favourites.
    Noise in training is part of it: one of the candidates is best by luck."""
    regret_of_chance: float | None = None
    """The same for a candidate drawn at random."""
    note: str = ""
    """Why something is None, in words; empty otherwise."""


def agreement(
    scores: Mapping[str, float],
    trained: Mapping[str, float],
    *,
    score_higher_is_better: bool = True,
    higher_is_better: bool = True,
    confidence: float = 0.95,
    seed: int = 0,
) -> Agreement:
    """Compare a score with real training over the candidates that have both.

    Args:
        scores: Candidate -> the cheap score.
        trained: Candidate -> what training gave, for instance the gain in accuracy.
        score_higher_is_better: Of the score.
        higher_is_better: Of what training gave.
        confidence: Of intervals.
        seed: Of permutations and bootstrap draws.

    Raises:
        RunError: If a number is not finite.
    """
    for what, numbers in (("score", scores), ("result of training", trained)):
        for name, value in numbers.items():
            if not math.isfinite(value):
                raise RunError(f"candidate {name}: its {what} is {value}", "leave the candidate out, or measure again")
    names = tuple(name for name in scores if name in trained)
    x = np.array([scores[name] for name in names]) * (1 if score_higher_is_better else -1)
    y = np.array([trained[name] for name in names]) * (1 if higher_is_better else -1)
    if not names:
        return Agreement(note="no candidate has both a score and a real training")
    found = Agreement(
        candidates=names,
        favourite=names[int(x.argmax())],
        best=names[int(y.argmax())],
        regret=float(y.max() - y[x == x.max()].mean()),
        regret_of_chance=float(y.max() - y.mean()),
    )
    if len(names) < FEWEST:
        counted = "1 candidate is" if len(names) == 1 else f"{len(names)} candidates are"
        return replace(found, note=f"{counted} too few to say whether rankings agree: it takes {FEWEST}")
    for what, values in (("the score", x), ("what training gave", y)):
        if (values == values[0]).all():
            return replace(found, note=f"{what} is the same for all candidates")
    generator = np.random.default_rng(seed)
    orders = _orders(len(names), generator)
    drawn = generator.integers(0, len(names), (_BOOTSTRAPS, len(names))) if len(names) > EXACT_UP_TO else None
    return replace(
        found,
        kendall=_rank(kendall_tau_b, x, y, orders, drawn, confidence),
        spearman=_rank(spearman, x, y, orders, drawn, confidence),
    )


def kendall_tau_b(x: Array, y: Array) -> Array:
    """(..., n) twice -> (...): Kendall's tau-b, which takes account of ties; nan where all are tied."""
    first, second = np.triu_indices(x.shape[-1], 1)
    a, b = (np.sign(v[..., first] - v[..., second]) for v in (x, y))
    return _quotient((a * b).sum(-1), np.abs(a).sum(-1), np.abs(b).sum(-1))


def spearman(x: Array, y: Array) -> Array:
    """(..., n) twice -> (...): the correlation of ranks, ties sharing theirs; nan where all are tied."""
    a, b = (_centred_ranks(v) for v in (x, y))
    return _quotient((a * b).sum(-1), (a * a).sum(-1), (b * b).sum(-1))


def _centred_ranks(values: Array) -> Array:
    """Each value's rank minus the mean rank: half of (how many are less - how many are more)."""
    ranks: Array = np.sign(values[..., :, None] - values[..., None, :]).sum(-1) / 2
    return ranks


def _quotient(both: Array, first: Array, second: Array) -> Array:
    root = np.sqrt(first * second)
    value: Array = np.divide(both, root, out=np.full_like(root, np.nan), where=root > 0)
    return value


def _orders(n: int, generator: np.random.Generator) -> Array:
    """(P, n): all permutations of few, or draws of many, the first of which is no change."""
    if n <= EXACT_UP_TO:
        return np.array(list(itertools.permutations(range(n))))
    drawn = generator.permuted(np.tile(np.arange(n), (_DRAWS, 1)), axis=1)
    return np.concatenate([np.arange(n)[None], drawn])


def _rank(
    coefficient: Callable[[Array, Array], Array],
    x: Array,
    y: Array,
    orders: Array,
    drawn: Array | None,
    confidence: float,
) -> Rank:
    value = float(coefficient(x, y))
    by_chance = np.abs(coefficient(x, y[orders]))
    p = float((by_chance >= abs(value) - 1e-9).mean())
    if drawn is None:
        return Rank(value=value, p=p, interval=None)
    again = coefficient(x[drawn], y[drawn])
    low, high = np.nanquantile(again, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Rank(value=value, p=p, interval=(float(low), float(high)))
