"""What a study could not have seen, and what would speak against its verdict, in sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lmgraft.analysis.paired import Contrast
from lmgraft.words import numbers as write
from lmgraft.words.verdict import Setting

_MOST = 4
"""Contrasts of which nothing was shown that get a sentence each; more share one."""


def limits(contrasts: Sequence[Contrast], setting: Setting) -> list[str]:
    """Sentences on planned contrasts, each about the numbers of this study."""
    left = [c for c in contrasts if math.isfinite(c.mean)]
    sentences = []
    undecided = [c for c in left if c.outcome == "not shown" and not c.equivalent]
    if len(undecided) > _MOST:
        sentences.append(_together(undecided, setting))
        left = [c for c in left if c not in undecided]
    equal = [c for c in left if c.outcome == "not shown" and c.equivalent]
    if len(equal) > _MOST:
        sentences.append(_within(", ".join(map(_pair, equal)), setting))
        left = [c for c in left if c not in equal]
    return [*sentences, *(_one(c, setting) for c in left)]


def scope(seeds: Sequence[int], items: int, things: str) -> str:
    """How much the study looked at."""
    listed = ", ".join(map(str, seeds))
    tested = f"{items:,} test {things}, " if items else ""
    return (
        f"{write.counted(len(seeds), 'seed')} ({listed}), {tested}one data set, one recipe: other data, sizes or "
        "longer training may come out otherwise."
    )


def of_margin(setting: Setting) -> str:
    """What the margin is."""
    return (
        f"Differences within {setting.size(setting.margin)} count as equal here; who thinks less matters must judge "
        "anew by the intervals."
    )


def of_missing(number: int) -> str:
    """Runs that are not there."""
    runs = write.counted(number, "run is", "runs are")
    return f"{runs} missing (listed below): verdicts speak of the seeds that both arms have."


def _pair(c: Contrast) -> str:
    return f"{c.arm} {write.MINUS} {c.reference}"


def _together(contrasts: Sequence[Contrast], setting: Setting) -> str:
    most = setting.metric.largest_difference
    seen = [c for c in contrasts if c.sd > 0 and math.isfinite(c.detectable) and c.detectable <= most]
    missed = ""
    if seen:
        ends = (pick(seen, key=lambda c: c.detectable) for pick in (min, max))
        listed = " to ".join(f"{setting.size(c.detectable)} ({_pair(c)})" for c in ends)
        missed = f" True differences under {listed} would often be missed."
    return f"{len(contrasts)} contrasts: neither better nor worse was shown.{missed} More seeds could show either."


def _within(names: str, setting: Setting) -> str:
    return (
        f"{names}: within {setting.size(setting.margin)} of zero. Another margin, or other data, could say otherwise."
    )


def _one(c: Contrast, setting: Setting) -> str:
    if c.outcome == "not shown" and c.equivalent:
        return _within(_pair(c), setting)
    if c.outcome == "not shown":
        missed = f" True differences under {setting.size(c.detectable)} would often be missed by {len(c.seeds)} seeds."
        if c.sd == 0 or not math.isfinite(c.detectable):
            missed = ""
        elif c.detectable > setting.metric.largest_difference:
            missed = f" Any difference would often be missed by {len(c.seeds)} seeds."
        return f"{_pair(c)}: neither better nor worse was shown.{missed} More seeds could show either."
    start, again = f"{_pair(c)}: {c.outcome} was shown.", "new seeds whose interval holds zero would speak against it."
    if c.interval is None:
        return f"{start} {write.sentence_case(again)}"
    m = setting.metric
    near = f"{write.difference(min(c.interval, key=abs), m)} {m.difference_unit}"
    return f"{start} The end of the interval nearest to zero is {near}; {again}"
