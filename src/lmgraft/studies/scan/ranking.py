"""Ranks by each score, and how well a score's ranking agreed with trainings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lmgraft.analysis.agreement import Agreement, agreement
from lmgraft.studies.scan.results import GAIN, Scan, Scanned
from lmgraft.studies.scan.scores import SCORES
from lmgraft.studies.scan.scores.measured import Measured


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """One candidate in the order of one score."""

    label: str
    measured: Measured
    rank: int
    tied: bool
    """Its interval overlaps the best one's: not told apart from it. The best itself is not tied."""


def column(scanned: Scanned, name: str) -> Measured | None:
    """The score `name` of a candidate, or its gain."""
    return scanned.gain if name == GAIN else scanned.scores.get(name)


def columns(scan: Scan) -> list[str]:
    """Scores that some candidate has, in the table's order; the gain last."""
    names = [name for name in SCORES if any(name in s.scores for s in scan.chosen())]
    return names + ([GAIN] if any(s.gain is not None for s in scan.chosen()) else [])


def rank(scan: Scan, name: str) -> list[Ranked]:
    """Candidates that have the score, best first. Without an interval nothing is told apart."""
    found = {label: m for label, s in scan.candidates.items() if (m := column(s, name)) and m.value is not None}
    order = sorted(found, key=lambda label: -found[label].value)  # type: ignore[operator]
    return [
        Ranked(
            label=label, measured=found[label], rank=place, tied=place > 1 and _overlap(found[label], found[order[0]])
        )
        for place, label in enumerate(order, start=1)
    ]


def _overlap(one: Measured, best: Measured) -> bool:
    if one.interval is None or best.interval is None:
        return True
    return one.interval[1] >= best.interval[0]


def agreements(scan: Scan, truth: Mapping[str, float]) -> dict[str, Agreement]:
    """For each score and the short training, how its ranking agreed with `truth` (label -> gain).

    The short training is not held against itself.
    """
    own = values_of(scan, GAIN) == dict(truth)
    return {name: agreement(values_of(scan, name), truth) for name in columns(scan) if not (own and name == GAIN)}


def values_of(scan: Scan, name: str) -> dict[str, float]:
    """Label -> score, or with `GAIN` what the short training gave; best first."""
    return {r.label: r.measured.value for r in rank(scan, name) if r.measured.value is not None}
