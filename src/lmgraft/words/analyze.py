"""What an analysis found, in sentences; each figure is written here and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lmgraft.analysis.comparison import Comparison
from lmgraft.contracts import Metric
from lmgraft.words import numbers as write
from lmgraft.words.explore import predicted

SCORES = {
    "best_iou": "IoU at each item's best threshold",
    "iou": "IoU at threshold 0.5",
    "average_precision": "average precision",
    "pointing": "pointing accuracy",
}
WHERE = {"input": "at the encoder's input", "keys": "as keys of the block alone"}
RULES = {
    "amplified": "what the block amplifies",
    "random": "as many random tokens, as clumped",
    "magnitude": "what the encoder itself makes large",
    "attention": "what the encoder's last layer attends to",
    "random block": "what a random block amplifies",
}
EFFORTS = {
    "looked": "looked at, with every measure",
    "untrained": "looked at before training, the floor",
    "masked": "tokens masked by rule",
    "gradients": "gradients compared",
    "cka": "similarity of stages (CKA)",
    "gallery": "shown, each token masked by itself",
}
PARTS = {"whole": "all that was trained", "encoder": "encoder and head", "mappers": "the graft's mappers"}
COHERENCE = (
    "Gradient coherence: how far the items ask for the same change of the weights, by the gradients of their losses, "
    "item by item; 1 where all are equal, 0 where they have nothing in common. Test items and their labels are used, "
    "and nothing is trained. Where a few items' gradients are much larger than all others the interval is too narrow."
)
READING = (
    "Maps are scaled to their own range. IoU at each item's best threshold uses the truth to choose the threshold, "
    "which favours every map: read it beside the floors. The floor “centre” knows nothing of the item: as many tokens "
    "as the object has, nearest the middle."
)
NO_GRADIENT = (
    "Where the head reads the class token alone, the other tokens of the last layer get no gradient: what they show is "
    "what the block makes of them, not what training asked for."
)


def interval(ends: Sequence[float] | None, digits: int = 3) -> str:
    """(0.10 to 0.25); empty where there is none."""
    return "" if ends is None else f"{_minus(f'{ends[0]:.{digits}f}')} to {_minus(f'{ends[1]:.{digits}f}')}"


def object_sentence(c: Comparison) -> str:
    """Whether one map finds the object better than another."""
    against = {"centre": "a blob at the centre"}.get(c.second, c.second)
    verdict = {
        "more": f"{c.first} finds the object better than {against}",
        "less": f"{c.first} finds the object worse than {against}",
        "not shown": f"No difference is shown between {c.first} and {against}",
    }[c.outcome]
    return f"{verdict}: {SCORES[c.score]} {signed(c.difference, c.interval)}."


def causal_sentence(c: Comparison, metric: Metric) -> str:
    """Whether masking what a block amplifies takes more than masking other tokens."""
    costs = {"more": "costs more than", "less": "costs less than", "not shown": "is not shown to differ from"}
    scaled = None if c.interval is None else [metric.scale * end for end in c.interval]
    unit = f" {metric.difference_unit}" if metric.difference_unit else ""
    return (
        f"{c.arm}: masking {RULES['amplified']} ({c.share:.0%} of the tokens, {WHERE[c.score]}) {costs[c.outcome]} "
        f"masking {RULES[c.second]}: {signed(metric.scale * c.difference, scaled, 1)}{unit} of "
        f"{metric.title.removeprefix('test ')}."
    )


def signed(value: float, ends: Sequence[float] | None, digits: int = 3) -> str:
    """A difference with its sign, and its interval behind it."""
    text = _minus(f"{value:+.{digits}f}")
    return text if ends is None else f"{text} (95 % interval {interval(ends, digits)})"


def looked_at(items: int, things: str, shown: Mapping[str, Any] | None) -> str:
    """Which items: "500 test images".

    Args:
        items: How many.
        things: What they are called.
        shown: As `Analysis.shown`.
    """
    return f"{items} test {things}" if shown is None else f"{items} {things} of {shown['name']}"


def other_classes(things: str) -> str:
    """What is left out where items of other data have none of the runs' classes."""
    return (
        f"The {things} are of none of the runs' classes: how well the runs do on them, what masked tokens cost and "
        "gradients were not measured."
    )


def scope(arms: Mapping[str, int], looked: str, comparisons: int) -> str:
    """What the figures speak of.

    Args:
        arms: Arm -> runs.
        looked: Which items were looked at.
        comparisons: How many differences have an interval.
    """
    runs = ", ".join(f"{arm} ({write.counted(count, 'seed')})" for arm, count in arms.items())
    single = " Of arms with one seed the intervals speak of other items only, not of another training." * (
        1 in arms.values()
    )
    corrected = f" {comparisons} comparisons; intervals are not corrected for their number." * (comparisons > 1)
    return f"{runs}; {looked}.{single}{corrected}"


def _minus(text: str) -> str:
    return text.replace("-", write.MINUS)


def first_predictions(predictions: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What comes first of what each run predicts of an item, a sentence a run; none where a task has no words."""
    return [f"{run}: {predicted(*next(iter(of.items())))}" for run, of in predictions.items() if of]
