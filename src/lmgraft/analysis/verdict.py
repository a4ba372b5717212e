"""What a study's planned contrasts say, in words that claim no more than the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lmgraft.analysis.bootstrap_coverage import coverage_words
from lmgraft.analysis.metrics import Metric, largest_difference
from lmgraft.analysis.numbers import in_unit, probability
from lmgraft.analysis.paired import Contrast, Outcome
from lmgraft.analysis.verdict_words import words_of

ENOUGH_SEEDS = 5


@dataclass(frozen=True, kw_only=True)
class _Setting:
    """What all sentences share."""

    metric: Metric
    margin: float
    confidence: float
    arms: Mapping[str, str]
    gains: Mapping[str, Contrast]
    """Label of an LLM arm -> its contrast with the encoder alone, where one was planned."""

    def kind(self, label: str) -> str:
        return self.arms.get(label, label)

    def named(self, label: str) -> str:
        """the frozen LLM block (layer_4)"""
        return f"{words_of(self.kind(label)).noun} ({label})"

    def size(self, value: float) -> str:
        return f"{in_unit(abs(value), self.metric)} {self.metric.difference_unit}"

    @property
    def nominal(self) -> str:
        return f"{100 * self.confidence:g} %"

    def evidence(self, contrast: Contrast) -> str:
        """llm - plain: +0.21 points, 95 % interval -0.10 to +0.52, p = 0.04 after Holm's correction, 5 paired seeds."""
        found = "no interval"
        if contrast.interval is not None:
            low, high = (in_unit(end, self.metric, signed=True) for end in contrast.interval)
            found = f"{self.nominal} interval {low} to {high}, {_p(contrast.p_holm)} after Holm's correction"
        return (
            f"{contrast.arm} - {contrast.reference}: {in_unit(contrast.mean, self.metric, signed=True)} "
            f"{self.metric.difference_unit}, {found}, {len(contrast.seeds)} paired seeds."
        )

    @property
    def within(self) -> str:
        return f"within the margin of {self.size(self.margin)}"


def verdict(
    planned: Sequence[Contrast],
    metric: Metric,
    *,
    margin: float,
    confidence: float,
    arms: Mapping[str, str],
) -> list[str]:
    """Sentences for a study's planned contrasts: first whether the block helps, then what explains it.

    "Helps", "hurts" and "better" need significance after Holm's correction; "explained by"
    needs equivalence within the margin, and a gain whose whole interval lies beyond the margin.
    What is both different and equivalent counts as equal. What is neither is called not shown,
    with the smallest difference that could have been.

    Args:
        planned: All contrasts that were fixed in advance, as `contrasts(correct=True)` gives them.
        metric: What was compared.
        margin: What counts as equal, in the metric's own unit.
        confidence: Of the study.
        arms: Label -> kind of arm, a row of `recipes.arms.ARMS`.
    """
    if not planned:
        return ["Nothing is concluded: no contrast was planned."]
    turned = [_turned(contrast, arms) for contrast in planned]
    gains = {c.arm: c for c in turned if _is_gain(c, arms)}
    setting = _Setting(metric=metric, margin=margin, confidence=confidence, arms=arms, gains=gains)
    said = [sentence for c in gains.values() for sentence in _against_plain(c, setting)]
    if len(gains) > 1:
        said.append(_tally(list(gains.values())))
    for contrast in turned:
        if contrast in gains.values():
            continue
        if setting.kind(contrast.reference) == "plain":
            said += _against_plain(contrast, setting)
        elif setting.kind(contrast.arm) == "llm" and words_of(setting.kind(contrast.reference)).question:
            said += _against_control(contrast, setting)
        else:
            said += _other(contrast, setting)
    return [*said, *_cautions(turned, setting), *_not_held_against(turned, arms)]


def _is_gain(contrast: Contrast, arms: Mapping[str, str]) -> bool:
    kinds = arms.get(contrast.arm, contrast.arm), arms.get(contrast.reference, contrast.reference)
    return kinds == ("llm", "plain")


_SWAPPED: dict[Outcome, Outcome] = {"better": "worse", "worse": "better", "not shown": "not shown"}


def _turned(contrast: Contrast, arms: Mapping[str, str]) -> Contrast:
    """With the LLM block first, and the encoder alone second, however it was planned."""
    arm, reference = (arms.get(label, label) for label in (contrast.arm, contrast.reference))
    plain_first = arm == "plain" and reference != "plain"
    control_first = reference == "llm" and words_of(arm).question != ""
    if not (plain_first or control_first):
        return contrast
    return replace(
        contrast,
        arm=contrast.reference,
        reference=contrast.arm,
        differences=tuple(-value for value in contrast.differences),
        mean=-contrast.mean,
        interval=_negated(contrast.interval),
        bootstrap=_negated(contrast.bootstrap),
        outcome=_SWAPPED[contrast.outcome],
    )


def _negated(ends: tuple[float, float] | None) -> tuple[float, float] | None:
    return None if ends is None else (-ends[1], -ends[0])


def _against_plain(contrast: Contrast, setting: _Setting) -> list[str]:
    arm, reference, metric = setting.named(contrast.arm), setting.named(contrast.reference), setting.metric
    better = "" if metric.higher_is_better else " (lower is better)"
    if contrast.outcome == "not shown":
        return [
            f"Not shown: that {arm} helps or hurts against {reference}. "
            f"{_sentence_case(metric.title)}{better}, {setting.evidence(contrast)}",
            *_what_could_be_shown(contrast, setting),
        ]
    word = "Helps" if contrast.outcome == "better" else "Hurts"
    way = "higher" if contrast.mean > 0 else "lower"
    said = [
        f"{word}: with {arm}, {metric.title}{better} is {setting.size(contrast.mean)} {way} than with {reference}. "
        f"{setting.evidence(contrast)}"
    ]
    if contrast.equivalent:
        said.append(f"The difference is shown, and {setting.within}, so it counts as equal here.")
    return said


def _against_control(contrast: Contrast, setting: _Setting) -> list[str]:
    words = words_of(setting.kind(contrast.reference))
    arm, reference = setting.named(contrast.arm), setting.named(contrast.reference)
    evidence = setting.evidence(contrast)
    gain = setting.gains.get(contrast.arm)
    if contrast.equivalent:
        explained = _explained(gain, words.explained, setting)
        if contrast.outcome == "not shown":
            return [
                f"{_sentence_case(arm)} and {reference} are equivalent {setting.within}: {explained} {evidence}",
            ]
        also = f" {_sentence_case(explained)}" if gain is not None and _beyond_margin(gain, setting) else ""
        return [f"{_counts_as_equal(contrast, setting)}{also}"]
    if contrast.outcome == "better":
        no_gain = gain is not None and gain.outcome != "better"
        follows = " It does not follow that the block helps." if no_gain else ""
        return [f"{words.better}: {arm} is better than {reference}. {evidence}{follows}"]
    if contrast.outcome == "worse":
        return [f"Worse than its control: {arm} is worse than {reference}. {evidence}"]
    return [
        f"Neither shown: {words.question}, and that {words.explained} would do as well. "
        f"{_sentence_case(arm)} and {reference} were found neither different nor equivalent {setting.within}. "
        f"{evidence}",
        _detectable(contrast, setting),
    ]


def _counts_as_equal(contrast: Contrast, setting: _Setting) -> str:
    """Of a difference that is shown, and equivalence too."""
    return (
        f"A difference was shown, and it is {setting.within}, so it counts as equal here: "
        f"{setting.named(contrast.arm)} is {contrast.outcome} than {setting.named(contrast.reference)}. "
        f"{setting.evidence(contrast)}"
    )


def _beyond_margin(gain: Contrast, setting: _Setting) -> bool:
    """Whether a difference is shown, and the whole of its interval is larger than the margin."""
    if gain.interval is None or gain.outcome == "not shown":
        return False
    low, high = gain.interval
    return low > setting.margin or high < -setting.margin


def _explained(gain: Contrast | None, by: str, setting: _Setting) -> str:
    if gain is None:
        return "whatever the block does, this control does as well, within the margin."
    if gain.outcome == "not shown":
        return f"but no gain over {setting.named(gain.reference)} was shown that this could explain."
    what = "gain" if gain.outcome == "better" else "loss"
    if not _beyond_margin(gain, setting):
        return f"but the {what} itself is not shown to exceed the margin, so this does not tell what explains it."
    return f"the {what} is explained by {by}, within the margin."


def _other(contrast: Contrast, setting: _Setting) -> list[str]:
    arm, reference, evidence = (
        setting.named(contrast.arm),
        setting.named(contrast.reference),
        setting.evidence(contrast),
    )
    if contrast.outcome == "not shown":
        return [
            f"Not shown: that {arm} is better or worse than {reference}. {evidence}",
            *_what_could_be_shown(contrast, setting),
        ]
    if contrast.equivalent:
        return [_counts_as_equal(contrast, setting)]
    return [f"{contrast.outcome.capitalize()}: {arm} is {contrast.outcome} than {reference}. {evidence}"]


def _what_could_be_shown(contrast: Contrast, setting: _Setting) -> list[str]:
    if contrast.equivalent:
        return [f"The two are equivalent {setting.within}."]
    return [f"{_detectable(contrast, setting)} That the two are equivalent {setting.within} was not shown either."]


def _detectable(contrast: Contrast, setting: _Setting) -> str:
    if contrast.sd == 0:
        return "Without any spread between seeds it cannot be told how large a difference could have been shown."
    if contrast.detectable > largest_difference(setting.metric):
        return (
            f"No difference that is possible would have been shown with {100 * contrast.power:g} % probability, if the "
            "spread seen here is the true one."
        )
    return (
        f"A true difference of {setting.size(contrast.detectable)} would have been shown with "
        f"{100 * contrast.power:g} % probability, if the spread seen here is the true one."
    )


def _tally(gains: Sequence[Contrast]) -> str:
    counts = {
        word: sum(c.outcome == outcome for c in gains)
        for outcome, word in (("better", "help"), ("worse", "hurt"), ("not shown", "not shown"))
    }
    told = ", ".join(f"{word}: {count}" for word, count in counts.items())
    return f"Of {len(gains)} frozen LLM blocks against the encoder alone: {told}."


def _cautions(contrasts: Sequence[Contrast], setting: _Setting) -> list[str]:
    said = []
    for c in contrasts:
        name = f"{c.arm} - {c.reference}"
        if c.sd == 0:
            said.append(
                f"The differences {name} are the same for every seed: the spread cannot be judged, "
                "so neither a difference nor equivalence is claimed."
            )
        if c.bootstrap is not None and c.outcome != "not shown" and c.bootstrap[0] <= 0 <= c.bootstrap[1]:
            low, high = (in_unit(end, setting.metric, signed=True) for end in c.bootstrap)
            covered = coverage_words(len(c.seeds), setting.confidence, c.groups)
            said.append(
                f"For {name} the secondary interval, over other seeds and other test items, holds zero "
                f"({low} to {high} {setting.metric.difference_unit}; {covered}): "
                "what was shown holds for these test items, and may not for others."
            )
    fewest = min(contrasts, key=lambda c: len(c.seeds))
    if len(fewest.seeds) < ENOUGH_SEEDS:
        said.append(
            f"{len(fewest.seeds)} paired seeds ({fewest.arm} - {fewest.reference}) are fewer than {ENOUGH_SEEDS}: "
            "this is a first look, not a verdict."
        )
    return said


def _not_held_against(planned: Sequence[Contrast], arms: Mapping[str, str]) -> list[str]:
    """Controls that no planned contrast holds against an LLM block: the fallacy that they invite."""
    if "llm" not in arms.values():
        return []
    kinds = {label: arms.get(label, label) for c in planned for label in (c.arm, c.reference)}
    held = {
        label for c in planned for label, other in ((c.arm, c.reference), (c.reference, c.arm)) if kinds[other] == "llm"
    }
    controls = [label for label, kind in arms.items() if words_of(kind).question and label not in held]
    if not controls:
        return []
    return [
        f"No planned contrast holds {', '.join(controls)} against a frozen LLM block: that the one is shown to help "
        "and the other is not is no evidence of a difference between them."
    ]


def _p(p: float) -> str:
    written = probability(p)
    return f"p {written}" if written.startswith("<") else f"p = {written}"


def _sentence_case(text: str) -> str:
    return text[0].upper() + text[1:]
