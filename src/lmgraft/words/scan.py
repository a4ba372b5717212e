"""What a scan's numbers say, and what they do not: records, and the sentences made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lmgraft.analysis.agreement import Agreement
from lmgraft.contracts import Metric
from lmgraft.words import numbers as write
from lmgraft.words import paper

SHOWN_AT = 0.05
"""The p below which an agreement is called one."""

Kind = Literal[
    # Of one score: what it likes best, and what is not told apart from that.
    "no ranking",
    "only one",
    "none apart",
    "apart from all",
    "some tied",
    # Of one score against trainings.
    "too few",
    "no agreement",
    "ranked alike",
    "ranked otherwise",
    # Of all.
    "uncorrected",
    "nothing to train",
    "train: no gain",
    "train: gain",
    "train: untrained",
    "train: known",
    "paper",
]


@dataclass(frozen=True, kw_only=True)
class ScanFinding:
    """One thing that a scan says."""

    kind: Kind
    score: Metric | None = None
    """How the score is called and written."""
    value: float | None = None
    """The best candidate's."""
    signed: bool = False
    """Whether the score is a difference."""
    names: tuple[str, ...] = ()
    """Candidates: the best and those not told apart from it, or those worth training."""
    count: int = 0
    """How many agreements there are."""
    source: str = ""
    """The trainings that the score was held against."""
    agreement: Agreement | None = None
    metric: Metric | None = None
    """Of those trainings."""


def favourite(finding: ScanFinding) -> str:
    """What one score likes best."""
    m = finding.score
    assert m is not None
    if finding.value is None:
        return f"By {m.title} there is no ranking: it could not be had for any candidate."
    best, *tied = finding.names
    value = f"{write.value(finding.value, m, signed=finding.signed)} {m.unit}".strip()
    others = "1 other is" if len(tied) == 1 else f"{len(tied)} others are"
    listed = write.listed(tied, 4, more="and {} more")
    ends = {
        "only one": "; it is the only candidate",
        "none apart": "; no candidate is told apart from it",
        "apart from all": ", apart from all others",
        "some tied": f"; {others} not told apart from it ({listed})",
    }
    return f"By {m.title}, {best} comes first ({value}){ends[finding.kind]}."


def agreed(finding: ScanFinding) -> str:
    """How one score's ranking agreed with trainings."""
    a, m, score = finding.agreement, finding.metric, finding.score
    assert a is not None
    assert m is not None
    assert score is not None
    start = f"{write.sentence_case(score.title)} against {finding.source}: "
    if a.kendall is None:
        return f"{start}{a.note}."
    what = {
        "no agreement": "no agreement is shown, which does not mean that there is none",
        "ranked alike": "it ranked alike more than chance would",
        "ranked otherwise": "it ranked the other way round",
    }[finding.kind]
    lost = ""
    if a.regret is not None and a.regret_of_chance is not None:
        lost = (
            f" Training its favourite only would have lost {write.size(a.regret, m)} to the best of these; a candidate "
            f"drawn at random {write.value(a.regret_of_chance, m)}."
        )
    tau = f"Kendall's tau {a.kendall.value:+.2f}, p {a.kendall.p:.2f}, {len(a.candidates)} candidates"
    return f"{start}{what} ({tau}).{lost}"


def to_train(finding: ScanFinding) -> str:
    """What is worth a real training."""
    listed = write.listed(finding.names, 4, more="and {} more")
    how = {
        "train: no gain": "In the short training no candidate's gain over the plain encoder is told apart from zero, "
        "so the scan does not say that a block helps here. Worth a study with plain beside them, if anything",
        "train: gain": "Worth a real study with enough seeds, before anything is claimed",
        "train: untrained": "Nothing was trained, so these scores are guesses. Worth a short training first",
        "train: known": "Worth a real study with enough seeds",
    }[finding.kind]
    return (
        f"{how}: {listed}. The best of many candidates looks better than it is, by chance alone; a study with new "
        "seeds does not have that fault."
    )


def sentence(finding: ScanFinding) -> str:
    """One finding in words."""
    if finding.kind == "paper":
        return f"{paper.DEPTH} It tested none of these scores. {paper.SMALL_LLMS}"
    if finding.kind == "nothing to train":
        return "There is nothing to recommend: no candidate has a score."
    if finding.kind == "uncorrected":
        return f"The p values of these {finding.count} agreements are not corrected: of several, one is small by luck."
    if finding.kind.startswith("train: "):
        return to_train(finding)
    return favourite(finding) if finding.agreement is None else agreed(finding)


def sentences(findings: Sequence[ScanFinding]) -> list[str]:
    """All of them, in order."""
    return list(map(sentence, findings))
