"""A measured score: its value, its interval, and what it was made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import fmean

from lmgraft.analysis.student import mean_interval


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One score of one candidate; plain data."""

    value: float | None
    """None where it could not be had; see `failed`."""
    interval: tuple[float, float] | None = None
    """95 %; None where there is none, as of draws that are all equal: width zero would claim certainty."""
    draws: list[float] = field(default_factory=list)
    """By draw of W1, or by seed of a training."""
    parts: dict[str, float] = field(default_factory=dict)
    """What the value is made of, for tables."""
    seconds: float = 0.0
    failed: str | None = None
    """Why there is no value."""
    applies: bool = True
    """False where the task has nothing that the score could be of; there is no value then."""


def over_draws(draws: list[float], **parts: float) -> Measured:
    """The mean over draws with its t interval."""
    interval = mean_interval(draws) if len(set(draws)) > 1 else None
    return Measured(value=fmean(draws), interval=interval, draws=draws, parts=parts)


def not_for_task(why: str) -> Measured:
    """A score that this task cannot have."""
    return Measured(value=None, failed=why, applies=False)
