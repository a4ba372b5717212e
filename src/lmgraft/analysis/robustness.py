"""Means over conditions of several levels: corruptions in five severities, noise in three."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean


@dataclass(frozen=True, kw_only=True)
class LevelMeans:
    """Plain means; an interval of one over items would have to know that its levels show the same items."""

    by_part: dict[str, float]
    """Over the levels of each part."""
    by_level: dict[int, float]
    """Over the parts at each level."""
    mean: float
    """Of `by_part`."""


def level_means(values: Mapping[str, Mapping[int, float]]) -> LevelMeans:
    """Means of values by part and level.

    Args:
        values: Part -> level -> value; every part at the same levels.

    Raises:
        ValueError: If there are no values, or a part lacks a level.
    """
    levels = sorted({level for row in values.values() for level in row})
    missing = [(part, level) for part, row in values.items() for level in levels if level not in row]
    if not levels or missing:
        raise ValueError(f"no means without {missing or 'values'}")
    by_part = {part: fmean(row[level] for level in levels) for part, row in values.items()}
    by_level = {level: fmean(row[level] for row in values.values()) for level in levels}
    return LevelMeans(by_part=by_part, by_level=by_level, mean=fmean(by_part.values()))
