"""A paired difference between two maps, or two ways of masking, item by item."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lmgraft.analysis.intervals import NoInterval

Interval = tuple[float, float]
Outcome = Literal["more", "less", "not shown"]
Kind = Literal["object", "causal", "effect"]
LEVEL = 0.05
"""Below which a corrected p shows something; intervals are at 1 minus this."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A paired difference over items, and over seeds where both sides have the same ones."""

    kind: Kind
    """Of "object", how well two maps find the object; of "causal", what masking by two rules takes from an arm; of
    "effect", how much more masking what is amplified takes than masking at random, in two arms."""
    first: str
    """What is compared, such as "llm W2 magnitude" or "amplified"; of kind "effect" an arm."""
    second: str
    score: str
    """The score; of kinds "causal" and "effect" the place of masking."""
    share: float | None = None
    arm: str = ""
    """Of kind "causal": whose tokens are masked."""
    difference: float
    interval: Interval | None
    """Not corrected: paired t over seeds where there are several, else over items or groups of them."""
    over_items: Interval | None = None
    """Secondary, of several seeds: over seeds and items drawn anew (`crossed_bootstrap`)."""
    missing: NoInterval | None = None
    """Why there is no `interval`."""
    seeds: int
    items: int
    planned: bool = False
    """One of the few that the page speaks of, and whose p is corrected; all others are exploratory."""
    p: float | None = None
    """Paired t over seeds, two-sided; None with one seed."""
    p_holm: float | None = None
    """Corrected by Holm over the planned ones of the analysis; None where it is not planned."""
    detectable: float | None = None
    """The smallest true difference that so many seeds would show with a probability of 0.8 at Holm's first step."""
    margin: float | None = None
    """Within which a difference counts as none; None where there is no such size."""
    equivalent: bool = False
    """Within the margin, by two one-sided tests, corrected too."""

    @property
    def outcome(self) -> Outcome:
        """By the corrected p where it is planned, else by its own interval."""
        if self.planned:
            is_shown = self.p_holm is not None and self.p_holm < LEVEL
        else:
            is_shown = self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]
        if not is_shown:
            return "not shown"
        return "more" if self.difference > 0 else "less"
