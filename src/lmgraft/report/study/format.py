"""How a study's numbers are written: in the metric's unit, differences signed, a dash where there is none."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from lmgraft.analysis.metrics import Metric
from lmgraft.analysis.numbers import MINUS as MINUS
from lmgraft.analysis.numbers import NONE as NONE
from lmgraft.analysis.numbers import in_unit
from lmgraft.analysis.numbers import probability as probability
from lmgraft.analysis.paired import Contrast
from lmgraft.studies.study.results import ArmResult, StudyResult


def value(number: float, metric: Metric) -> str:
    """An arm's value, without its unit: 91.23."""
    return in_unit(number, metric)


def difference(number: float, metric: Metric) -> str:
    """A difference, signed, without its unit: +0.52."""
    return in_unit(number, metric, signed=True)


def size(number: float, metric: Metric) -> str:
    """The size of a difference with its unit: 0.52 points."""
    return f"{in_unit(number, metric)} {metric.difference_unit}"


def interval(ends: Sequence[float] | None, metric: Metric, *, signed: bool = False) -> str:
    """Both ends: 90.11 to 92.35, or with signs -0.10 to +1.14; a dash where there are none, or they are not finite."""
    if not finite_ends(ends):
        return NONE
    return " to ".join(difference(end, metric) if signed else value(end, metric) for end in ends)


def finite_ends(ends: Sequence[float] | None) -> TypeGuard[Sequence[float]]:
    """Whether there is an interval that can be written or drawn."""
    return ends is not None and all(map(math.isfinite, ends))


def contrast_interval(contrast: Contrast, metric: Metric) -> str:
    """Of the difference, signed; a dash where seeds do not spread, so that there is none."""
    return interval(contrast.interval, metric, signed=True)


def share(number: float) -> str:
    """In percent: 95 %."""
    return f"{100 * number:.3g} %"


def count(number: float) -> str:
    """With thousands set apart."""
    return f"{number:,.0f}" if math.isfinite(number) else NONE


def short_count(number: float) -> str:
    """With a prefix: 3.54 M."""
    for prefix, one in ((" T", 1e12), (" G", 1e9), (" M", 1e6), (" k", 1e3)):
        if abs(number) >= one:
            return f"{number / one:.3g}{prefix}"
    return f"{number:.3g}"


def ratio(number: float | None, to: float | None) -> str:
    """number / to: 1.23; a dash without either."""
    found = divide(number, to)
    return NONE if found is None else f"{found:.2f}" if found < 100 else f"{found:.0f}"


def divide(number: float | None, to: float | None) -> float | None:
    """number / to, or None where that is no number."""
    return None if number is None or not to or not math.isfinite(number) else number / to


def memory(size_in_bytes: int | None) -> str:
    """In GiB."""
    return NONE if size_in_bytes is None else f"{size_in_bytes / 2**30:.2f} GiB"


def setting(content: Any) -> str:
    """A value of a recipe: lists as they are written in YAML, numbers without needless zeros."""
    if isinstance(content, float):
        return f"{content:g}"
    if isinstance(content, (list, tuple)):
        return f"[{', '.join(map(setting, content))}]"
    return "null" if content is None else str(content)


def settings(overrides: Mapping[str, Any]) -> str:
    """What an arm changes in the recipe, on one line."""
    return ", ".join(f"{key}: {setting(content)}" for key, content in overrides.items())


def block_name(block: Mapping[str, Any] | None) -> str:
    """Where a block comes from, which layers of how many, and how it was changed."""
    if block is None:
        return NONE
    layers = list(block.get("layers") or ())
    whole = f" of {block['num_layers']}" if block.get("num_layers") else ""
    said = f"{block.get('source', '?')}"
    if layers:
        said += f", layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))}{whole}"
    control = block.get("control")
    kind = control.get("kind") if isinstance(control, Mapping) else control
    return said + (f", {kind}" if kind else "")


def pair(contrast: Contrast, minus: str = "-") -> str:
    """What is subtracted from what: llm - plain."""
    return f"{contrast.arm} {minus} {contrast.reference}"


def outcome(contrast: Contrast) -> str:
    """In words: better, worse or not shown, and whether equivalent within the margin."""
    return f"{contrast.outcome}; equivalent" if contrast.equivalent else contrast.outcome


def reference_arm(result: StudyResult) -> ArmResult | None:
    """The result of the arm that costs and gains are held against; None if it has not run."""
    return next((arm for arm in result.arms if arm.label == result.reference), None)


def gains(result: StudyResult) -> dict[str, Contrast]:
    """Arm -> its contrast with the reference arm, planned or exploratory."""
    return {c.arm: c for c in (*result.exploratory, *result.contrasts) if c.reference == result.reference}
