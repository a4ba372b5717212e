"""What a study's planned contrasts show, as findings: kinds and figures that claim no more than the numbers.

`lmgraft.words` puts them into sentences; nothing here knows one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from lmgraft.analysis.paired import Contrast, Outcome

ENOUGH_SEEDS = 5
ENOUGH_GROUPS = 30
"""Groups of test items below which the secondary interval covers less than it says."""

CONTROLS = frozenset(
    {"random_frozen", "shuffled", "spectrum", "random_trained", "mlp", "linear", "attention_only", "mlp_only"}
    | {"random_attention_only", "random_mlp_only", "plain_equal_flops"}
)
"""Kinds of arms that explain what an LLM block does, where they do as well."""

OfContrast = Literal["helps", "hurts", "better", "worse", "not shown", "equivalent", "explained", "equal"]
OfAll = Literal["tally", "nothing planned"]
Caution = Literal[
    "no spread", "no interval", "other items", "few groups", "few seeds", "no own contrast", "failed runs"
]
Changed = Literal["setting changed", "seeds changed", "arms added", "arms left out", "runs of others", "stated change"]
OfTimes = Literal["share unknown", "uneven shares", "other machine"]
Note = Literal[
    "few seeds planned",
    "several commits",
    "several machines",
    "uncommitted changes",
    "items of some runs",
    "intervals of before",
    "restarts",
    "unfinished seeds",
    "cells left out",
    "failed rates",
]
Kind = OfContrast | OfAll | Caution | Changed | OfTimes | Note
"""What a finding says. "equivalent" is: no difference shown, and equivalence; "explained" the same of a control that so
explains a gain or loss beyond the margin; "equal" is: a difference that is shown, and within the margin."""

CHANGES: frozenset[str] = frozenset(get_args(Changed))
"""The plan, or what is compared, was changed when results were known."""
CAUTIONS: frozenset[str] = CHANGES | set(get_args(Caution))
"""Kinds that limit what was shown."""
NOTES: frozenset[str] = CHANGES | set(get_args(Note)) | set(get_args(OfTimes)) | {"failed runs"}
"""Kinds that stand among a study's notes: what a reader must know and the numbers do not say."""
VERDICT: frozenset[str] = frozenset({*get_args(OfContrast), *get_args(OfAll), *get_args(Caution)})
"""Kinds that make up the verdict."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that a study found, or that its reader must know."""

    kind: Kind
    contrast: Contrast | None = None
    """What was compared; the LLM block first and the encoder alone second, however it was planned."""
    gain: Contrast | None = None
    """The LLM block against the encoder alone, where `contrast` is that of the same block against a control."""
    pair: tuple[str, str] | None = None
    """The arm and the reference of a finding that has no contrast of its own."""
    names: tuple[str, ...] = ()
    """The arms, runs, commits or cells that it speaks of."""
    counts: dict[str, int] = field(default_factory=dict)
    key: str = ""
    """What was changed in the plan; of a stated change the sentence that an older version of lmgraft wrote."""
    before: Any = None
    now: Any = None


def verdict(planned: Sequence[Contrast], *, margin: float, arms: Mapping[str, str]) -> list[Finding]:
    """Findings of a study's planned contrasts: first whether the block helps, then what explains it, then cautions.

    "helps", "hurts", "better" and "worse" need significance after Holm's correction; "explained"
    needs equivalence within the margin, and a gain whose whole interval lies beyond the margin.
    What is both different and equivalent counts as equal; of the block against the encoder alone
    that is told beside "helps" or "hurts". What is neither is "not shown".

    Args:
        planned: All contrasts that were fixed in advance, as `contrasts(correct=True)` gives them.
        margin: The difference that counts as equal, in the metric's own unit.
        arms: Label -> kind of arm, a row of `recipes.arms.ARMS`.
    """
    if not planned:
        return [Finding(kind="nothing planned")]

    def kind(label: str) -> str:
        return arms.get(label, label)

    turned = [_turned(contrast, kind(contrast.arm), kind(contrast.reference)) for contrast in planned]
    gains = {c.arm: c for c in turned if (kind(c.arm), kind(c.reference)) == ("llm", "plain")}
    findings = [Finding(kind=_against_plain(c), contrast=c) for c in gains.values()]
    if len(gains) > 1:
        findings.append(Finding(kind="tally", counts=_tally(gains.values())))
    for c in turned:
        if c in gains.values():
            continue
        if kind(c.reference) == "plain":
            findings.append(Finding(kind=_against_plain(c), contrast=c))
        elif kind(c.arm) == "llm" and kind(c.reference) in CONTROLS:
            gain = gains.get(c.arm)
            findings.append(Finding(kind=_against_control(c, gain, margin), contrast=c, gain=gain))
        else:
            findings.append(Finding(kind=_plain_kind(c), contrast=c))
    return [*findings, *_cautions(turned), *_not_held_against(turned, arms)]


def explains(control: Contrast, gain: Contrast | None, margin: float) -> bool:
    """Whether a control that is equivalent to the LLM block explains its gain or loss, which must exceed the margin.

    A difference is shown, and the whole of its interval is larger than the margin.
    """
    if gain is None or gain.interval is None or gain.outcome == "not shown" or not control.equivalent:
        return False
    return gain.interval[0] > margin or gain.interval[1] < -margin


_SWAPPED: dict[Outcome, Outcome] = {"better": "worse", "worse": "better", "not shown": "not shown"}


def _turned(contrast: Contrast, arm: str, reference: str) -> Contrast:
    """The contrast with the LLM block first, and the encoder alone second, however it was planned."""
    plain_first = arm == "plain" and reference != "plain"
    control_first = reference == "llm" and arm in CONTROLS
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


def _negated(interval: tuple[float, float] | None) -> tuple[float, float] | None:
    return None if interval is None else (-interval[1], -interval[0])


def _against_plain(c: Contrast) -> Kind:
    if c.outcome == "not shown":
        return "equivalent" if c.equivalent else "not shown"
    return "helps" if c.outcome == "better" else "hurts"


def _against_control(c: Contrast, gain: Contrast | None, margin: float) -> Kind:
    if c.outcome == "not shown" and explains(c, gain, margin):
        return "explained"
    return _plain_kind(c)


def _plain_kind(c: Contrast) -> Kind:
    if c.outcome == "not shown":
        return "equivalent" if c.equivalent else "not shown"
    return "equal" if c.equivalent else c.outcome


def _tally(gains: Iterable[Contrast]) -> dict[str, int]:
    outcomes = [c.outcome for c in gains]
    return {"blocks": len(outcomes)} | {o: outcomes.count(o) for o in ("better", "worse", "not shown")}


def _cautions(contrasts: Sequence[Contrast]) -> Iterator[Finding]:
    for c in contrasts:
        if c.sd == 0:
            yield Finding(kind="no spread", contrast=c)
        elif c.interval is None:
            yield Finding(kind="no interval", contrast=c)
        if c.bootstrap is not None and c.outcome != "not shown" and c.bootstrap[0] <= 0 <= c.bootstrap[1]:
            yield Finding(kind="other items", contrast=c)
        if c.groups is not None and c.groups < ENOUGH_GROUPS:
            yield Finding(kind="few groups", contrast=c)
    fewest = min(contrasts, key=lambda c: len(c.seeds))
    if len(fewest.seeds) < ENOUGH_SEEDS:
        yield Finding(kind="few seeds", contrast=fewest)


def _not_held_against(planned: Sequence[Contrast], arms: Mapping[str, str]) -> list[Finding]:
    """Controls that no planned contrast holds against an LLM block: the fallacy that they invite."""
    if "llm" not in arms.values():
        return []
    pairs = [pair for c in planned for pair in ((c.arm, c.reference), (c.reference, c.arm))]
    held = {label for label, other in pairs if arms.get(other, other) == "llm"}
    controls = tuple(label for label, kind in arms.items() if kind in CONTROLS and label not in held)
    return [Finding(kind="no own contrast", names=controls)] if controls else []
