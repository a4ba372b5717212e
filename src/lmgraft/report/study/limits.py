"""What a study could not have seen, and what would speak against its verdict, in sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lmgraft.analysis.paired import Contrast
from lmgraft.report.study import format as write
from lmgraft.studies.study.results import StudyResult

_MOST = 4
"""Contrasts of which nothing was shown that get a sentence each; more share one."""


def limits(result: StudyResult) -> list[str]:
    """Sentences, each about the numbers of this study."""
    seeds, m = len(result.seeds), result.metric
    items = f"{result.test_items:,} test items, " if result.test_items else ""
    said = [
        f"{seeds} seed{'s' * (seeds != 1)} ({', '.join(map(str, result.seeds))}), {items}"
        "one data set, one recipe: other data, sizes or longer training may come out otherwise."
    ]
    finite = [c for c in result.contrasts if math.isfinite(c.mean)]
    open_ones = [c for c in finite if c.outcome == "not shown" and not c.equivalent]
    if len(open_ones) > _MOST:
        said.append(_together(open_ones, result))
        finite = [c for c in finite if c not in open_ones]
    equal = [c for c in finite if c.outcome == "not shown" and c.equivalent]
    if len(equal) > _MOST:
        said.append(_within(", ".join(write.pair(c, write.MINUS) for c in equal), result))
        finite = [c for c in finite if c not in equal]
    said += [_contrast(c, result) for c in finite]
    if result.contrasts or result.exploratory:
        said.append(
            f"Differences within {write.size(result.margin, m)} count as equal here; who thinks less matters "
            "must judge anew by the intervals."
        )
    if result.missing:
        said.append(
            f"{len(result.missing)} run{'s are' if len(result.missing) != 1 else ' is'} missing (listed below): "
            "verdicts speak of the seeds that both arms have."
        )
    return said


def _together(contrasts: Sequence[Contrast], result: StudyResult) -> str:
    said = f"{len(contrasts)} contrasts: neither better nor worse was shown."
    most = result.metric.largest_difference
    seen = sorted(
        (c for c in contrasts if c.sd > 0 and math.isfinite(c.detectable) and c.detectable <= most),
        key=lambda c: c.detectable,
    )
    if seen:
        ends = [
            f"{write.size(c.detectable, result.metric)} ({write.pair(c, write.MINUS)})" for c in (seen[0], seen[-1])
        ]
        said += f" True differences under {' to '.join(ends)} would often be missed."
    return f"{said} More seeds could show either."


def _within(names: str, result: StudyResult) -> str:
    margin = write.size(result.margin, result.metric)
    return f"{names}: within {margin} of zero. Another margin, or other data, could say otherwise."


def _contrast(c: Contrast, result: StudyResult) -> str:
    m, name = result.metric, write.pair(c, write.MINUS)
    seen = f" True differences under {write.size(c.detectable, m)} would often be missed by {len(c.seeds)} seeds."
    if c.sd == 0 or not math.isfinite(c.detectable):
        seen = ""
    elif c.detectable > m.largest_difference:
        seen = f" Any difference would often be missed by {len(c.seeds)} seeds."
    if c.outcome == "not shown" and c.equivalent:
        return _within(name, result)
    if c.outcome == "not shown":
        return f"{name}: neither better nor worse was shown.{seen} More seeds could show either."
    near = min(c.interval or (c.mean,), key=abs)
    return (
        f"{name}: {c.outcome} was shown. The end of the interval nearest to zero is {write.difference(near, m)} "
        f"{m.difference_unit}; new seeds whose interval holds zero would speak against it."
    )
