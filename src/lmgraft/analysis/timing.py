"""How much longer one arm trains than another, and on what that rests: runs beside a busy neighbour cannot tell.

Best are training steps of both arms in turns, in one process: whatever else the machine does, it does to
both. Without them the seconds of whole runs are compared, if the runs had about the same share of the
machine (`lmgraft.training.clock`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

MOST_UNEVEN = 1.2
"""Shares of the machine of which one is larger than the other by more than this factor forbid a ratio of times."""

Basis = Literal["reference", "steps", "device", "runs", "share unknown", "uneven shares", "other machine", "no time"]
"""What a ratio of times rests on: steps in turns; seconds of a GPU by its events; seconds of runs; those of runs whose
share of the machine is not known. Or why there is none: the shares differ by more than a fifth; the runs had another
number of threads, or another kind of device; no time was measured. The reference arm itself has 1."""


class Spent(Protocol):
    """What training took, of a run or as medians over runs; None where it is not known."""

    @property
    def seconds(self) -> float: ...
    @property
    def share(self) -> float | None: ...
    @property
    def threads(self) -> int | None: ...
    @property
    def device(self) -> str | None: ...
    @property
    def device_seconds(self) -> float | None: ...


@dataclass(frozen=True, kw_only=True)
class StepPairs:
    """Training steps of an arm and of the reference arm in turns, in one process."""

    seconds: Sequence[float]
    """(rounds,) of the arm."""
    reference_seconds: Sequence[float]
    """(rounds,) of the reference arm."""
    device: str


@dataclass(frozen=True, kw_only=True)
class TimeRatio:
    """How many times as long an arm trains as the reference arm."""

    basis: Basis
    ratio: float | None = None
    quartiles: tuple[float, float] | None = None
    """Of the ratios of single pairs of steps."""
    shares: tuple[float, float] | None = None
    """Of the machine, the arm's and the reference arm's; where they are uneven."""


def time_ratio(arm: Spent, reference: Spent, pairs: StepPairs | None = None) -> TimeRatio:
    """How many times as long `arm` trains as `reference`, by the best there is; no ratio where nothing is fair.

    Args:
        arm: What its training took.
        reference: The same of the reference arm.
        pairs: Steps of both in turns; they do not count where the runs had another kind of device.
    """
    kinds = {spent.device.partition(":")[0] for spent in (arm, reference) if spent.device}
    if pairs is not None and kinds <= {pairs.device}:
        ratios = np.asarray(pairs.seconds) / np.asarray(pairs.reference_seconds)
        low, middle, high = (float(q) for q in np.quantile(ratios, (0.25, 0.5, 0.75)))
        return TimeRatio(basis="steps", ratio=middle, quartiles=(low, high))
    if len(kinds) > 1:
        return TimeRatio(basis="other machine")
    if arm.device_seconds and reference.device_seconds:
        return TimeRatio(basis="device", ratio=arm.device_seconds / reference.device_seconds)
    if not arm.seconds or not reference.seconds:
        return TimeRatio(basis="no time")
    ratio = arm.seconds / reference.seconds
    if arm.share is None or reference.share is None:
        return TimeRatio(basis="share unknown", ratio=ratio)
    if arm.threads != reference.threads:
        return TimeRatio(basis="other machine")
    if max(arm.share, reference.share) > MOST_UNEVEN * min(arm.share, reference.share):
        return TimeRatio(basis="uneven shares", shares=(arm.share, reference.share))
    return TimeRatio(basis="runs", ratio=ratio)
