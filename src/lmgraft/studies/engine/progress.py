"""What long work says: a line for each part that ends, with the time that the others will take."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

Say = Callable[[str], None]
"""Is given what happens, a line at a time."""


def silent(text: str) -> None:
    """Says nothing."""


def duration(seconds: float) -> str:
    """A length of time, rounded, in words."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"


class Progress:
    """Counts the parts of some work, and says how long the rest will take.

    Args:
        parts: Name -> kind and amount of work. Parts of one kind take as long as their work is much; a kind of which
            none has ended yet is taken to be like the others.
    """

    def __init__(self, parts: Mapping[str, tuple[str, float]]) -> None:
        self._parts = dict(parts)
        self._took: dict[str, float] = {}
        self._started = time.monotonic()

    @property
    def unfinished(self) -> list[str]:
        """Names of the parts that have not ended."""
        return [name for name in self._parts if name not in self._took]

    def line(self, name: str, seconds: float, what: str) -> str:
        """The line for a part that has ended after so many seconds, `what` being what came of it."""
        self._took[name] = seconds
        return f"[{len(self._took)}/{len(self._parts)}] {name}: {what}; {self._left()}"

    def _left(self) -> str:
        todo = self.unfinished
        if not todo:
            return "nothing left"
        beside = max(1.0, sum(self._took.values()) / max(1e-3, time.monotonic() - self._started))
        seconds = sum(self._parts[name][1] * self._rate(self._parts[name][0]) for name in todo) / beside
        return f"about {duration(seconds)} left"

    def _rate(self, kind: str) -> float:
        """Seconds for an amount of one."""
        ended = [name for name in self._took if self._parts[name][0] == kind] or list(self._took)
        return sum(self._took[name] for name in ended) / max(1e-9, sum(self._parts[name][1] for name in ended))
