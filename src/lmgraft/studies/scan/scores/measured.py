"""A measured score: its value, its interval, and what it was made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import fmean

from lmgraft.analysis.intervals import NoInterval
from lmgraft.analysis.student import mean_interval


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One score of one candidate; plain data."""

    value: float | None
    """None where it could not be had; see `failed`."""
    interval: tuple[float, float] | None = None
    """95 %; None where there is none, see `no_interval`, or no value."""
    draws: list[float] = field(default_factory=list)
    """By draw of W1, or by seed of a training."""
    parts: dict[str, float] = field(default_factory=dict)
    """What the value is made of, for tables."""
    seconds: float = 0.0
    failed: str | None = None
    """Why there is no value."""
    no_interval: NoInterval | None = None
    """Why a value has no interval over its draws; None in scans of older versions too."""
    applies: bool = True
    """False where the task has nothing that the score could be of; there is no value then."""


def over_draws(draws: list[float], *, rounding: float | None = None, **parts: float) -> Measured:
    """The mean over draws with its t interval; with `rounding` as in `mean_interval`."""
    interval = mean_interval(draws, rounding=rounding)
    missing: NoInterval | None = None if interval else "one value" if len(draws) < 2 else "no spread"
    return Measured(value=fmean(draws), interval=interval, draws=draws, parts=parts, no_interval=missing)


def not_for_task(why: str) -> Measured:
    """A score that this task cannot have."""
    return Measured(value=None, failed=why, applies=False)
