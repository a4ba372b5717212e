"""What an analysis found, in sentences; each figure is written here and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lmgraft.analysis.comparison import Comparison, Outcome
from lmgraft.contracts import Metric
from lmgraft.words import numbers as write
from lmgraft.words.arms import words_of
from lmgraft.words.explore import predicted

SCORES = {
    "best_iou": "IoU at each item's best threshold",
    "iou": "IoU at threshold 0.5",
    "average_precision": "average precision",
    "pointing": "pointing accuracy",
    "share": "share that falls on it",
}
WHERE = {"input": "at the encoder's first layer", "keys": "as keys of the block alone"}
RULES = {
    "amplified": "what the block amplifies",
    "random": "as many random tokens, as clumped",
    "magnitude": "what the encoder itself makes large",
    "attention": "what the encoder's last layer attends to",
    "random block": "what the random block of another run amplifies",
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
OBJECT, CAUSAL = "Does what stands out lie on the object?", "Does the model need what its block amplifies?"
STANDING_OUT = (
    "A token stands out when it lies far from the mean over the item's tokens; W2 is where they leave the graft. "
    "Average precision is 1 when all of the object's tokens stand out more than all others, and about the object's "
    "share of the tokens by chance."
)
MASKING = (
    "Tokens are hidden, and what the run then loses is compared with what it loses when as many random ones are "
    "hidden. It is more, if the block picks out what is needed; and more than with a random block, if what the LLM "
    "learnt does it."
)
EXPLORATORY = (
    "Planned are the comparisons of the sentences above, whose p is corrected by Holm for all of them; all others are "
    "exploratory, with intervals that are not corrected. Of several seeds a difference's interval is a paired t over "
    "seeds, and “seeds and items” one over both drawn anew; of one seed it is over items."
)
READING = (
    "Maps are scaled to their own range. IoU at each item's best threshold uses the truth to choose the threshold, "
    "which favours every map: read it beside the floors. The floor “centre” knows nothing of the item: as many tokens "
    "as the object has, nearest the middle. The share that falls on the object is of attention, or of how far tokens "
    "lie from their mean, before scaling; the floor's is that of all tokens alike."
)
NO_GRADIENT = (
    "Where the head reads the class token alone, the other tokens of the last layer get no gradient: what they show is "
    "what the block makes of them, not what training asked for."
)


def interval(ends: Sequence[float] | None, digits: int = 3) -> str:
    """(0.10 to 0.25); empty where there is none."""
    return "" if ends is None else f"{_minus(f'{ends[0]:.{digits}f}')} to {_minus(f'{ends[1]:.{digits}f}')}"


_MAPS = {
    " untrained W2 magnitude": "what stands out behind W2 of {arm} before training",
    " W2 magnitude": "what stands out behind W2 of {arm}",
    " untrained encoder magnitude": "what stands out behind the encoder of {arm} before training",
    " encoder magnitude": "what stands out behind the encoder of {arm}",
    " encoder attention": "what the last layer of {arm}'s encoder attends to",
}
"""How a map's name ends -> the same in a sentence."""


def map_in_words(name: str) -> str:
    """A map of a comparison, "llm W2 magnitude", as a sentence calls it."""
    if name == "centre":
        return "a blob at the centre with the object's area"
    ending = next((ending for ending in _MAPS if name.endswith(ending)), None)
    return name if ending is None else _MAPS[ending].format(arm=name.removesuffix(ending))


def object_sentence(c: Comparison) -> str:
    """Whether one map finds the object better than another."""
    one, other = map_in_words(c.first), map_in_words(c.second)
    verdict = {
        "more": f"{one[0].upper()}{one[1:]} lies on the object more than {other}",
        "less": f"{one[0].upper()}{one[1:]} lies on the object less than {other}",
        "not shown": f"No difference is shown between {one} and {other}",
    }[c.outcome]
    return f"{verdict}: {SCORES[c.score]} {signed(c.difference, c.interval)}{_sureness(c, None)}."


def object_answer(comparisons: Sequence[Comparison]) -> str:
    """What the leading arm's map finds the object better than, and what not."""
    one = map_in_words(comparisons[0].first)
    return f"{one[0].upper()}{one[1:]} lies on the object {_sorted_out(comparisons, map_in_words)}."


def _sorted_out(comparisons: Sequence[Comparison], name: Callable[[str], str]) -> str:
    """More than these; less than those; not measurably more or less than the rest."""
    words: dict[Outcome, str] = {
        "more": "more than",
        "less": "less than",
        "not shown": "not measurably more or less than",
    }
    parts = []
    for outcome, verdict in words.items():
        names = [name(c.second) for c in comparisons if c.outcome == outcome]
        if names:
            before = f"{', '.join(names[:-1])} and " if len(names) > 1 else ""
            parts.append(f"{verdict} {before}{names[-1]}")
    return "; ".join(parts)


_COSTS: Mapping[Outcome, str] = {
    "more": "costs more than",
    "less": "costs less than",
    "not shown": "is not shown to cost more or less than",
}


def causal_answer(comparisons: Sequence[Comparison]) -> str:
    """Whether masking what the block amplifies costs more than masking at random, and more so than in another arm.

    Args:
        comparisons: Of kinds "causal" and "effect", at one share of the tokens.
    """
    of_rules, effects = ([c for c in comparisons if c.kind == kind] for kind in ("causal", "effect"))
    sentences = []
    if of_rules:
        places = [f"{WHERE[c.score]}, {_COSTS[c.outcome]} masking {RULES[c.second]}" for c in of_rules]
        sentences.append(f"Masking what the block of {of_rules[0].arm} amplifies, {'; and '.join(places)}.")
    if effects:
        more = {
            "more": "it is more in {}",
            "less": "it is less in {}",
            "not shown": "no difference between both is shown",
        }
        places = [f"{WHERE[c.score]} {more[c.outcome].format(c.first)}" for c in effects]
        sentences.append(f"Beside {effects[0].second}: {'; '.join(places)}.")
    return " ".join(sentences)


def causal_sentence(c: Comparison, metric: Metric) -> str:
    """Whether masking what a block amplifies takes more than masking other tokens, or more than in another arm."""
    share = "" if c.share is None else f"{100 * c.share:.0f} %"
    unit = f" {metric.difference_unit}" if metric.difference_unit else ""
    size = f"{write.difference(c.difference, metric)}{unit} of {metric.title.removeprefix('test ')}"
    ends = "" if c.interval is None else f" (95 % interval {write.interval(c.interval, metric, signed=True)})"
    behind = f"{size}{ends}{_sureness(c, metric)}."
    if c.kind == "effect":
        verdict = {
            "more": f"more in {c.first} than in {c.second}",
            "less": f"less in {c.first} than in {c.second}",
            "not shown": f"not shown to be more or less in {c.first} than in {c.second}",
        }[c.outcome]
        return (
            f"What the block amplifies, masked ({share} of the tokens, {WHERE[c.score]}), costs beyond "
            f"{RULES['random']}: {verdict}: {behind}"
        )
    return (
        f"{c.arm}: masking {RULES['amplified']} ({share} of the tokens, {WHERE[c.score]}) {_COSTS[c.outcome]} "
        f"masking {RULES[c.second]}: {behind}"
    )


def _sureness(c: Comparison, metric: Metric | None) -> str:
    """How sure a difference is: its corrected p, what would have been shown, whether both count as equal.

    Args:
        metric: In whose unit it is; None: a score from 0 to 1.
    """

    def sized(number: float) -> str:
        return f"{number:.3f}" if metric is None else write.size(number, metric)

    parts = []
    if c.interval is None:
        parts.append(f"no interval: {write.MISSING[c.missing or 'no items']}")
    if c.p_holm is not None:
        parts.append(f"p {write.probability(c.p_holm)} after Holm, {write.counted(c.seeds, 'seed')}")
    else:
        parts.append("one seed" if c.seeds == 1 else "exploratory")
    if c.equivalent and c.margin is not None:
        parts.append(f"equal within {sized(c.margin)}")
    elif c.planned and c.outcome == "not shown" and c.detectable:
        parts.append(f"a true difference of {sized(c.detectable)} would be shown in four of five such analyses")
    return f"; {', '.join(parts)}" if parts else ""


def signed(value: float, ends: Sequence[float] | None, digits: int = 3) -> str:
    """A difference with its sign, and its interval behind it."""
    text = _minus(f"{value:+.{digits}f}")
    return text if ends is None else f"{text} (95 % interval {interval(ends, digits)})"


FOUND = "“Found” is what a run ranks first, second and third; what fits has a blue frame, what does not an orange one."


def chosen_by(has_truth: bool, metric: str, run: str) -> str:
    """By what items of a gallery were chosen; the number beside each.

    Args:
        has_truth: Whether the data know the object.
        metric: What chose them otherwise.
        run: Whose score it is.
    """
    score = f"the {SCORES['best_iou']} of the last stage of {run}" if has_truth else f"the {metric} of {run}"
    return f"Best, median and worst by {score}, and some by chance."


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


def scope(arms: Mapping[str, int], looked: str, comparisons: Sequence[Comparison]) -> str:
    """What the figures speak of.

    Args:
        arms: Arm -> runs.
        looked: Which items were looked at.
        comparisons: All of the analysis.
    """
    runs = "; ".join(f"{arm} ({words_of(arm).noun}, {write.counted(count, 'seed')})" for arm, count in arms.items())
    single = " Of arms with one seed the intervals speak of other items only, not of another training." * (
        1 in arms.values()
    )
    planned = sum(c.planned for c in comparisons)
    corrected = f" {write.counted(planned, 'planned comparison')} corrected together by Holm." * bool(planned)
    return f"Compared: {runs}; on {looked}.{single}{corrected}"


def _minus(text: str) -> str:
    return text.replace("-", write.MINUS)


def first_predictions(predictions: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What comes first of what each run predicts of an item, a sentence a run; none where a task has no words."""
    return [f"{run}: {predicted(*next(iter(of.items())))}" for run, of in predictions.items() if of]
