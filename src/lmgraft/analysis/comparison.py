"""A paired difference between two maps, or two ways of masking, item by item."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Interval = tuple[float, float]
Outcome = Literal["more", "less", "not shown"]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A paired difference over items (and over seeds, where both arms have the same ones)."""

    kind: Literal["object", "causal"]
    first: str
    """What is compared, such as "llm W2 magnitude" or "amplified"."""
    second: str
    score: str
    """The score, or of kind "causal" the place of masking."""
    share: float | None = None
    difference: float
    interval: Interval | None
    seeds: int
    items: int
    arm: str = ""
    """Of kind "causal": whose tokens are masked."""

    @property
    def outcome(self) -> Outcome:
        if self.interval is None or self.interval[0] <= 0 <= self.interval[1]:
            return "not shown"
        return "more" if self.interval[0] > 0 else "less"
