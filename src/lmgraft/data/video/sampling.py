"""Which frames of a video make a clip: one of each of equal segments, as in TSN (arXiv 1608.00859) and VideoMAE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from lmgraft.data.video.decoding import Times

Spacing = Literal["frames", "time"]
"""Whether segments have equally many frames, as in the published code, or are equally long, which differs where the
frame rate varies."""

Order = Literal["time", "shuffled", "one"]
"""How the frames of a clip follow each other: in time, in a random order, or one random frame of them again and again.
The latter two are controls: what a model reaches with them it reaches without seeing motion."""


def ordered(frames: Sequence[int], order: Order, drawn: npt.NDArray[np.float64]) -> list[int]:
    """The frames of a clip in this order.

    Args:
        drawn: (len(frames),) uniform numbers in [0, 1).
    """
    if order == "shuffled":
        return [frames[n] for n in np.argsort(drawn)]
    return [frames[int(drawn[0] * len(frames))]] * len(frames) if order == "one" else list(frames)


def random_segments(times: Times, count: int, spacing: Spacing, drawn: npt.NDArray[np.float64]) -> list[int]:
    """One random frame of each of `count` segments.

    By frames, segments have as many as fit whole, and what is left behind the last one is never drawn, as in
    VideoMAE. Of a video shorter than `count`, frames are drawn with repeats and sorted (VideoMAE repeats the first
    frame, so that nothing moves).

    Args:
        times: Of all frames.
        count: Frames of a clip.
        spacing: What is equal in all segments.
        drawn: (count,) uniform numbers in [0, 1).
    """
    whole = len(times) // count
    if spacing == "time":
        return _at(times, (np.arange(count) + drawn) / count)
    if whole:
        return [int(segment * whole + u * whole) for segment, u in enumerate(drawn)]
    return sorted(int(u * len(times)) for u in drawn)


def segments(times: Times, count: int, spacing: Spacing, view: int = 0, views: int = 1) -> list[int]:
    """One frame of each of `count` segments: the middle one; of several views those at equal steps from its start.

    With two views the first has the starts of the segments and the second their middles, as in VideoMAE's test.
    """
    part = 0.5 if views == 1 else view / views
    fractions = (np.arange(count) + part) / count
    if spacing == "time":
        return _at(times, fractions)
    tick = len(times) / count
    return [int(tick * part + tick * segment) for segment in range(count)]


def _at(times: Times, fractions: npt.NDArray[np.float64]) -> list[int]:
    """The frames that are shown when these fractions of a video have passed; the last one as long as the median."""
    gaps = np.diff(times)
    length = float(times[-1] + (np.median(gaps) if len(gaps) else 1.0))
    return [int(n) for n in np.searchsorted(times, fractions * length, side="right") - 1]
