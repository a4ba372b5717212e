"""results.json back to a `StudyResult`."""

from __future__ import annotations

from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

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
    content = records.read_json(file)
    try:
        result: StudyResult = _as(StudyResult, content, "results")
    except _UnfitError as error:
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


class _UnfitError(Exception):
    pass


def _as(kind: Any, value: Any, where: str) -> Any:
    """`value`, as JSON has it, as the annotated type: JSON knows no tuples, and no keys but strings."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, UnionType):
        return _as_one_of(inner, value, where)
    if origin is Literal:
        return _checked(value in inner, value, where)
    if is_dataclass(kind):
        return _as_record(kind, value, where)
    if origin is dict:
        return {
            _as_key(inner[0], k, where): _as(inner[1], v, f"{where}.{k}")
            for k, v in _checked(isinstance(value, dict), value, where).items()
        }
    if origin in (list, tuple):
        rows = _checked(isinstance(value, list), value, where)
        if origin is list or inner[-1] is Ellipsis:
            return origin(_as(inner[0], v, f"{where}[{i}]") for i, v in enumerate(rows))
        _checked(len(rows) == len(inner), value, where)
        return tuple(_as(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(inner, rows, strict=True)))
    if kind is float:
        return _checked(isinstance(value, int | float) and not isinstance(value, bool), value, where)
    if kind is int:
        return _checked(isinstance(value, int) and not isinstance(value, bool), value, where)
    return _checked(isinstance(value, kind), value, where)


def _as_one_of(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and NoneType in kinds:
        return None
    for kind in kinds:
        try:
            if kind is not NoneType:
                return _as(kind, value, where)
        except _UnfitError:
            continue
    raise _UnfitError(f"{where} is {_short(value)}")


def _as_record(kind: Any, value: Any, where: str) -> Any:
    _checked(isinstance(value, dict), value, where)
    hints = get_type_hints(kind)
    names = {f.name for f in fields(kind)}
    for name in sorted(value.keys() - names):
        raise _UnfitError(f"{where} has {name!r}, which this version does not know")
    needed = {f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING}
    for name in sorted(needed - value.keys()):
        raise _UnfitError(f"{where} has no {name!r}")
    value = {name: None if name in _ENDS and _no_width(own) else own for name, own in value.items()}
    return kind(**{name: _as(hints[name], own, f"{where}.{name}") for name, own in value.items()})


_ENDS = ("interval", "bootstrap")


def _no_width(ends: Any) -> bool:
    """Whether it is two equal ends, as older versions wrote where nothing varies; there is no interval then."""
    return isinstance(ends, list) and len(ends) == 2 and ends[0] == ends[1]


def _as_key(kind: Any, key: str, where: str) -> Any:
    try:
        return kind(key)
    except ValueError:
        raise _UnfitError(f"{where} has the key {key!r}") from None


def _checked(fits: bool, value: Any, where: str) -> Any:
    if not fits:
        raise _UnfitError(f"{where} is {_short(value)}")
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
