"""Findings of a study in sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from lmgraft.analysis.bootstrap_coverage import coverage_words
from lmgraft.analysis.paired import Contrast
from lmgraft.analysis.verdict import CONTROLS, ENOUGH_GROUPS, ENOUGH_SEEDS, NOTES, VERDICT, Finding, explains
from lmgraft.contracts import Metric
from lmgraft.words import numbers as write
from lmgraft.words.arms import words_of
from lmgraft.words.timing import caution


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all sentences of a study share."""

    metric: Metric
    margin: float
    confidence: float
    arms: Mapping[str, str]
    """Label -> kind of arm."""

    def named(self, label: str) -> str:
        """An arm by its kind and label: the frozen LLM block (layer_4)."""
        return f"{words_of(self.arms.get(label, label)).noun} ({label})"

    def size(self, number: float) -> str:
        return write.size(number, self.metric)

    @property
    def within(self) -> str:
        return f"within the margin of {self.size(self.margin)}"

    def pair(self, c: Contrast) -> tuple[str, str]:
        return self.named(c.arm), self.named(c.reference)

    def evidence(self, c: Contrast) -> str:
        """llm - plain: +0.21 points, 95 % interval -0.10 to +0.52, p = 0.04 after Holm's correction, 5 paired seeds."""
        tested = "no interval"
        if c.interval is not None:
            p = write.probability(c.p_holm)
            ends = write.interval(c.interval, self.metric, signed=True)
            held = f"p {'' if p.startswith('<') else '= '}{p} after Holm's correction" if c.sd else "no test"
            tested = f"{100 * self.confidence:g} % interval {ends}, {held}"
        groups = "" if c.groups is None else f", {write.counted(c.groups, 'group')} of test items"
        difference = f"{write.difference(c.mean, self.metric)} {self.metric.difference_unit}"
        return f"{c.arm} - {c.reference}: {difference}, {tested}, {len(c.seeds)} paired seeds{groups}."


def sentences(finding: Finding, setting: Setting) -> list[str]:
    """One finding: the sentence that says it, and those that belong to it."""
    return _WORDS[finding.kind](finding, setting)


def verdict_sentences(findings: Iterable[Finding], setting: Setting) -> list[str]:
    """The whole verdict, in order; without what stands among the notes alone."""
    return [s for f in findings if f.kind in VERDICT for s in sentences(f, setting)]


def note_sentences(findings: Iterable[Finding], setting: Setting) -> list[str]:
    """What stands among a study's notes, in order."""
    return [s for f in findings if f.kind in NOTES for s in sentences(f, setting)]


def _contrast(finding: Finding) -> Contrast:
    assert finding.contrast is not None, finding.kind
    return finding.contrast


def _against_plain(f: Finding, s: Setting) -> list[str]:
    c = _contrast(f)
    (arm, reference), m = s.pair(c), s.metric
    way = "higher" if c.mean > 0 else "lower"
    lower = "" if m.higher_is_better else " (lower is better)"
    equal = [f"The difference is shown, and {s.within}, so it counts as equal here."] if c.equivalent else []
    sentence = f"with {arm}, {m.title}{lower} is {s.size(c.mean)} {way} than with {reference}. {s.evidence(c)}"
    return [f"{f.kind.capitalize()}: {sentence}", *equal]


def _shown(f: Finding, s: Setting) -> list[str]:
    c = _contrast(f)
    arm, reference = s.pair(c)
    words = words_of(s.arms.get(c.reference, c.reference))
    no_gain = f.gain is not None and f.gain.outcome != "better"
    follows = " It does not follow that the block helps." if f.kind == "better" and no_gain else ""
    start = f.kind.capitalize()
    if _is_control(f, s):
        start = words.better if f.kind == "better" else "Worse than its control"
    return [f"{start}: {arm} is {f.kind} than {reference}. {s.evidence(c)}{follows}"]


def _not_shown(f: Finding, s: Setting) -> list[str]:
    c = _contrast(f)
    arm, reference = s.pair(c)
    if _is_control(f, s):
        words = words_of(s.arms.get(c.reference, c.reference))
        start = f"Neither shown: {words.question}, and that {words.explained} would do as well. "
        both = f"{write.sentence_case(arm)} and {reference} were found neither different nor equivalent {s.within}."
        return [f"{start}{both} {s.evidence(c)}", detectable(c, s)]
    rest = f"{detectable(c, s)} That the two are equivalent {s.within} was not shown either."
    return [_nothing_shown(c, s), rest]


def _equivalent(f: Finding, s: Setting) -> list[str]:
    c = _contrast(f)
    arm, reference = s.pair(c)
    if not _is_control(f, s):
        return [_nothing_shown(c, s), f"The two are equivalent {s.within}."]
    return [f"{write.sentence_case(arm)} and {reference} are equivalent {s.within}: {_explained(f, s)} {s.evidence(c)}"]


def _nothing_shown(c: Contrast, s: Setting) -> str:
    """That no difference was shown, of a pair that is not the LLM block and a control."""
    (arm, reference), m = s.pair(c), s.metric
    if s.arms.get(c.reference, c.reference) != "plain":
        return f"Not shown: that {arm} is better or worse than {reference}. {s.evidence(c)}"
    lower = "" if m.higher_is_better else " (lower is better)"
    title = f"{write.sentence_case(m.title)}{lower}"
    return f"Not shown: that {arm} helps or hurts against {reference}. {title}, {s.evidence(c)}"


def _equal(f: Finding, s: Setting) -> list[str]:
    c = _contrast(f)
    arm, reference = s.pair(c)
    also = f" {write.sentence_case(_explained(f, s))}" if explains(c, f.gain, s.margin) else ""
    return [
        f"A difference was shown, and it is {s.within}, so it counts as equal here: {arm} is {c.outcome} than "
        f"{reference}. {s.evidence(c)}{also}"
    ]


def _is_control(f: Finding, s: Setting) -> bool:
    """Whether it is of the LLM block against a control, which may explain what it does."""
    c = _contrast(f)
    kinds = s.arms.get(c.arm, c.arm), s.arms.get(c.reference, c.reference)
    return kinds[0] == "llm" and kinds[1] in CONTROLS


def _explained(f: Finding, s: Setting) -> str:
    gain, c = f.gain, _contrast(f)
    if gain is None:
        return "whatever the block does, this control does as well, within the margin."
    if gain.outcome == "not shown":
        return f"but no gain over {s.named(gain.reference)} was shown that this could explain."
    what = "gain" if gain.outcome == "better" else "loss"
    if not explains(c, gain, s.margin):
        return f"but the {what} itself is not shown to exceed the margin, so this does not tell what explains it."
    return f"the {what} is explained by {words_of(s.arms.get(c.reference, c.reference)).explained}, within the margin."


def detectable(c: Contrast, s: Setting) -> str:
    """The difference that would have been shown."""
    if c.sd == 0:
        return "Without any spread between seeds it cannot be told how large a difference could have been shown."
    possible = c.detectable <= s.metric.largest_difference
    start = f"A true difference of {s.size(c.detectable)}" if possible else "No difference that is possible"
    return (
        f"{start} would have been shown with {100 * c.power:g} % probability, if the spread seen here is the true one."
    )


def coverage(contrasts: Sequence[Contrast], confidence: float) -> str:
    """How often the secondary interval covers, as it was measured: of the contrast with the fewest seeds."""
    groups = [c.groups for c in contrasts if c.groups is not None]
    return coverage_words(min(len(c.seeds) for c in contrasts), confidence, min(groups, default=None))


def _other_items(f: Finding, s: Setting) -> list[str]:
    c = _contrast(f)
    ends = f"{write.interval(c.bootstrap, s.metric, signed=True)} {s.metric.difference_unit}"
    return [
        f"For {c.arm} - {c.reference} the secondary interval, over other seeds and other test items, holds zero "
        f"({ends}; {coverage([c], s.confidence)}): what was shown holds for these test items, and may not for others."
    ]


def _few_groups(f: Finding, s: Setting) -> list[str]:
    c = _contrast(f)
    return [
        f"The test items of {c.arm} - {c.reference} form {write.counted(c.groups or 0, 'group')}, fewer than "
        f"{ENOUGH_GROUPS}: of so few, the secondary interval says little of others ({coverage([c], s.confidence)})."
    ]


def _tally(f: Finding, s: Setting) -> list[str]:
    words = (("better", "help"), ("worse", "hurt"), ("not shown", "not shown"))
    counts = ", ".join(f"{word}: {f.counts[outcome]}" for outcome, word in words)
    return [f"Of {f.counts['blocks']} frozen LLM blocks against the encoder alone: {counts}."]


def _failed(f: Finding, rest: str, start: str = "") -> list[str]:
    return [f"{start}{write.counted(len(f.names), 'run')} failed ({write.listed(f.names, 12)}): {rest}."]


_AFTER = "After results had been read,"
_Words = Callable[[Finding, Setting], list[str]]

_WORDS: dict[str, _Words] = {
    "helps": _against_plain,
    "hurts": _against_plain,
    "better": _shown,
    "worse": _shown,
    "not shown": _not_shown,
    "equivalent": _equivalent,
    "explained": _equivalent,
    "equal": _equal,
    "tally": _tally,
    "nothing planned": lambda *_: ["Nothing is concluded: no contrast was planned."],
    "no spread": lambda f, _: [
        f"The differences {_contrast(f).arm} - {_contrast(f).reference} are the same for every seed: the spread cannot "
        "be judged, so neither a difference nor equivalence is claimed."
    ],
    "no interval": lambda f, _: [
        f"There is no interval for {_contrast(f).arm} - {_contrast(f).reference}: "
        f"{write.MISSING.get(_contrast(f).no_interval or '', 'none was recorded')}."
    ],
    "other items": _other_items,
    "few groups": _few_groups,
    "few seeds": lambda f, _: [
        f"{len(_contrast(f).seeds)} paired seeds ({_contrast(f).arm} - {_contrast(f).reference}) are fewer than "
        f"{ENOUGH_SEEDS}: this is a first look, not a verdict."
    ],
    "no own contrast": lambda f, _: [
        f"No planned contrast holds {', '.join(f.names)} against a frozen LLM block: that the one is shown to help "
        "and the other is not is no evidence of a difference between them."
    ],
    "failed runs": lambda f, _: _failed(
        f, "the seeds compared are those that did not; survivors may be a favourable selection"
    ),
    "setting changed": lambda f, _: [f"{_AFTER} {changed(f.key, f.before, f.now)}."],
    "seeds changed": lambda f, _: [
        f"After results with {f.before} seeds had been read, the study went on with {f.now}: p values do not account "
        "for looking in between."
    ],
    "arms added": lambda f, _: [f"{_AFTER} arms were added: {', '.join(f.names)}."],
    "arms left out": lambda f, _: [f"{_AFTER} arms were left out: {', '.join(f.names)}."],
    "runs of others": lambda f, _: [f"Runs are of a study whose results were written before ({', '.join(f.names)})."],
    "stated change": lambda f, _: [f.key],
    "few seeds planned": lambda f, _: [
        f"{f.counts['seeds']} seeds are fewer than the {ENOUGH_SEEDS} that a verdict should rest on."
    ],
    "several commits": lambda f, _: [_several(f, "commits of lmgraft")],
    "several machines": lambda f, _: [_several(f, "kinds of machine")],
    "uncommitted changes": lambda *_: ["Some runs were made by a checkout of lmgraft with uncommitted changes."],
    "items of some runs": lambda *_: [
        "Some runs have no values of single test items: there is no bootstrap over items."
    ],
    "intervals of before": lambda *_: [
        "These runs kept no values of single test items: the intervals over other seeds and other test items are "
        "those of the results that were written while there were such."
    ],
    "share unknown": lambda f, _: [caution("share unknown", f.names, f.key)],
    "uneven shares": lambda f, _: [caution("uneven shares", f.names, f.key)],
    "other machine": lambda f, _: [caution("other machine", f.names, f.key)],
    "restarts": lambda f, _: [f"Arms with restarts at a lower learning rate: {', '.join(f.names)}."],
    "unfinished seeds": lambda f, _: [
        f"Not all seeds are finished for {', '.join(f.names)}; contrasts use those that both arms have."
    ],
    "cells left out": lambda f, _: [
        f"By {f.key}: {_pair(f)} leaves out {f.counts['left_out']} of {f.counts['all']} cells "
        f"({write.listed(f.names, 4, ', ')}), which not all its runs were shown under the same conditions."
    ],
    "failed rates": lambda f, _: _failed(
        f,
        "their rates are out, and held-out values shown for them are of the seeds that did not fail",
        "In the grid of learning rates ",
    ),
}


def _pair(f: Finding) -> str:
    return " - ".join(f.pair or ())


def _several(f: Finding, what: str) -> str:
    return f"The runs are of {len(f.names)} {what}: {', '.join(name[:40] for name in f.names)}."


def changed(key: str, before: object, now: object) -> str:
    """One change of a setting: margin is 0.01, was 0.005."""
    return f"{key} is {_brief(now)}, was {_brief(before)}"


def _brief(content: object) -> str:
    text = repr(content)
    return text if len(text) <= 120 else f"{text[:117]}..."
