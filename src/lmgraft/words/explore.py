"""What is seen of one item, in sentences; alternative texts of its picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lmgraft.words import numbers as write

_LONGEST = 120  # letters of a value

ABSENT = {
    "no such stage": "has no such stage: only a run with a block has W1, the block's halves and W2",
    "no such head": "has no head of this number",
    "no attention": "shows no attention here: there is no block, or its layer computes attention in a way of its own",
    "not finite": "gives numbers that are none (NaN or infinite) here: its weights are broken, train it again",
    "other tokens": "has tokens of another number or order here, which do not fit beside the others",
}
"""Why a run shows nothing, by the reason that the study gives."""


def marked_sentence(
    run: str, stage: str, above: int, tokens: int, threshold: float, iou: float | None, best: float | None
) -> str:
    """How much of an item stands out under one run, and how well that meets the object."""
    sentence = (
        f"{run}, {stage}: {above:,} of {write.counted(tokens, 'token')} above {threshold:.2f} "
        f"({write.share(round(above / max(tokens, 1), 3))})"
    )
    if iou is None or best is None:
        return f"{sentence}."
    if iou != iou:
        return f"{sentence}; no token lies on the object."
    return f"{sentence}; IoU with the object {iou:.2f}, {best:.2f} at its best threshold."


def absent_sentence(run: str, reason: str) -> str:
    """Why a run shows nothing."""
    return f"{run} {ABSENT[reason]}."


def picture_alt(item: str, what: str, runs: Sequence[str], threshold: float) -> str:
    """What the picture shows, for those who do not see it; the sentences beneath have the numbers."""
    return (
        f"{item}: {what} of each token under {', '.join(runs)}, and the tokens above {threshold:.2f}; "
        "the numbers are in the list below"
    )


def head_title(head: int | None) -> str:
    """How a choice among heads is called; people count from 1."""
    return "mean of heads" if head is None else f"head {head + 1}"


def upload_label(one: str, beside: Sequence[str]) -> str:
    """What a control for files of one's own asks for.

    Args:
        one: What an item is called.
        beside: Endings of files that may come with it.
    """
    return f"or a file with one {one}" + (f", and what belongs to it ({', '.join(beside)})" if beside else "")


def truth_sentence(truths: Mapping[str, str]) -> str:
    """What the data say of an item; empty where they say nothing."""
    return "; ".join(f"{name}: {value}" for name, value in truths.items())


def predicted(name: str, value: object) -> str:
    """One row of what a task predicts, such as a class and its probability."""
    if isinstance(value, float):
        return f"{name} {value:.3f}"
    text = write.setting(value)
    return f"{name} {text if len(text) <= _LONGEST else f'{text[:_LONGEST]} ...'}"
