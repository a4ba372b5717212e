"""Suites that corrupt a run's own test items on the fly: which corruptions, and from which seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lmgraft.errors import DataError
from lmgraft.registry import suggest
from lmgraft.studies.robustness.suite import Suite


@dataclass(frozen=True, kw_only=True)
class CorruptionSuite(Suite):
    """Options of all suites of corruptions; a subclass names the corruptions that it knows."""

    word, whole = "corruption", "corruptions"
    option_names = {"seed": "corruption-seed"}
    known: ClassVar[tuple[str, ...]]

    corruptions: tuple[str, ...] | None = None
    """Only these, A,B; all by default."""
    seed: int = 0
    """Of what they draw; the same for all models."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise DataError(f"seed {self.seed} of the corruptions must not be negative")
        names = tuple(name.replace("-", "_") for name in self.chosen)
        if self.corruptions is not None:
            object.__setattr__(self, "corruptions", names)
        for name in names:
            if name not in self.known:
                raise DataError(f"there is no corruption {name!r} in suite {self.name}", suggest(name, self.known))
        if not names or len(set(names)) < len(names):
            raise DataError(f"corruptions={list(names)} names {'one twice' if names else 'none'}", "null takes all")

    @property
    def chosen(self) -> tuple[str, ...]:
        """Names of the corruptions that are shown."""
        return self.known if self.corruptions is None else self.corruptions
