"""results.json back to a `StudyResult`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lmgraft import records
from lmgraft.analysis.paired import Contrast
from lmgraft.analysis.verdict import Finding, verdict
from lmgraft.contracts import Metric
from lmgraft.errors import RunError
from lmgraft.registry import METRICS
from lmgraft.studies.study.assemble import with_times
from lmgraft.studies.study.results import StudyResult

FILE = "results.json"


def read_study(path: Path) -> StudyResult:
    """Read what `run_study` wrote.

    Args:
        path: A study's folder, or its results.json.

    Raises:
        RunError: If the file is missing, cut short, or no study's of this version.
    """
    file = path / FILE if path.is_dir() else path
    content = records.read_json(file, upgrade=_without_width)
    try:
        result: StudyResult = records.read_as(StudyResult, content, "results")
    except records.UnfitError as error:
        raise RunError(
            f"{file} is no study's result of this version of lmgraft: {error}",
            "lmgraft study NAME --out FOLDER --report-only writes it anew from the runs",
        ) from None
    if "findings" not in content:
        # What an older version found, from its contrasts; its sentences stay as they are.
        kinds = {arm.label: arm.arm for arm in result.arms}
        result = replace(result, findings=verdict(result.contrasts, margin=result.margin, arms=kinds))
    return result if "things" in content else _upgraded(result)


def with_intervals_of(out: Path, result: StudyResult) -> StudyResult:
    """The result with the intervals over items that results.json in `out` has of the very same differences.

    Runs of an early version kept no values of single items; what was found while they were there stays, and is noted.
    """
    if not (out / FILE).exists():
        return result
    earlier = read_study(out)
    before = {(c.arm, c.reference): c for c in (*earlier.contrasts, *earlier.exploratory) if c.bootstrap is not None}
    carried = []

    def kept(contrast: Contrast) -> Contrast:
        known = before.get((contrast.arm, contrast.reference))
        if known is None or known.seeds != contrast.seeds or not np.allclose(known.differences, contrast.differences):
            return contrast
        carried.append(f"{contrast.arm} - {contrast.reference}")
        return replace(contrast, bootstrap=known.bootstrap, groups=known.groups, no_bootstrap=None)

    contrasts, exploratory = [kept(c) for c in result.contrasts], [kept(c) for c in result.exploratory]
    note = [Finding(kind="intervals of before", names=tuple(carried))] if carried else []
    curves = {arm: of_arm or earlier.curves.get(arm, {}) for arm, of_arm in result.curves.items()}
    findings = [*result.findings, *note]
    return replace(result, contrasts=contrasts, exploratory=exploratory, curves=curves, findings=findings)


def _upgraded(result: StudyResult) -> StudyResult:
    """A result of before there were other tasks than image classification, with what went without saying."""
    accuracy = METRICS.find("accuracy")
    return replace(
        with_times(result),
        metric=_with_bounds(result.metric),
        monitor=accuracy if any(arm.val_values for arm in result.arms) else None,
        breakdown=[replace(b, metric=accuracy) if b.kind == "corruption" else b for b in result.breakdown],
    )


def _with_bounds(metric: Metric) -> Metric:
    """A metric of lmgraft's as it was written without its bounds; any other as it is."""
    if metric.name not in METRICS:
        return metric
    known: Metric = METRICS.find(metric.name)
    same = replace(metric, low=known.low, high=known.high, largest_margin=known.largest_margin) == known
    return known if same else metric


def _without_width(values: dict[str, Any]) -> dict[str, Any]:
    """Older versions wrote two equal ends where nothing varies; there is no interval then."""
    ends = {name: values.get(name) for name in ("interval", "bootstrap")}
    flat = [name for name, pair in ends.items() if isinstance(pair, list) and len(pair) == 2 and pair[0] == pair[1]]
    return values | dict.fromkeys(flat)
