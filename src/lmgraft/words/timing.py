"""Ratios of times, and why there are none, in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from lmgraft.analysis.timing import MOST_UNEVEN, Basis, TimeRatio

_UNEVEN = f"another share of the machine, by more than {100 * (MOST_UNEVEN - 1):.0f} %"

_ONE: dict[Basis, str] = {
    "steps": "A training step with the block took {ratio:.2f} times as long as one without it, by steps of both in "
    "turns (quartiles {low:.2f} to {high:.2f}).",
    "device": "Training steps with the block took {ratio:.2f} times as long as those without it, by the GPU's clock.",
    "runs": "Training with the block took {ratio:.2f} times as long as without it.",
    "share unknown": "Training with the block took {ratio:.2f} times as long as without it; what share of the machine "
    "the runs had is not known, so another program may have made the difference.",
    "uneven shares": f"Times are not compared: the runs had {_UNEVEN} ({{arm:.2f}} with the block, {{reference:.2f}} "
    "without it).",
    "other machine": "Times are not compared: the runs had other devices, or other numbers of threads.",
    "no time": "Times are not compared: none was measured.",
}

_SEVERAL: dict[Basis, str] = {
    "share unknown": "What share of the machine the runs of {arms} or of {reference} had is not known: another program "
    "may have made a part of their ratios of times.",
    "uneven shares": f"No ratio of times is given for {{arms}}: their runs had {_UNEVEN}, than those of {{reference}}.",
    "other machine": "No ratio of times is given for {arms}: their runs had other devices, or other numbers of "
    "threads, than those of {reference}.",
}


def of_the_block(time: TimeRatio, operations: float | None) -> list[str]:
    """What one run with the block cost against one without it.

    Args:
        time: The arm with the block against the one without.
        operations: Counted operations of a training step, with the block as a multiple of those without.
    """
    low, high = time.quartiles or (0.0, 0.0)
    arm, reference = time.shares or (0.0, 0.0)
    counted = "By counted operations a training step costs {:.2f} times as much."
    sentence = _ONE[time.basis].format(ratio=time.ratio, low=low, high=high, arm=arm, reference=reference)
    return [sentence, *([] if operations is None else [counted.format(operations)])]


def caution(basis: Basis, arms: Sequence[str], reference: str) -> str:
    """What a reader of a table of costs must know of these arms' ratios of times against `reference`."""
    return _SEVERAL[basis].format(arms=", ".join(arms), reference=reference)
