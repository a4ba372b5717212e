"""How a number is written, in sentences, tables and figures alike: in its unit, differences signed, a dash for none."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lmgraft.contracts import Metric

NONE = "\N{EN DASH}"
"""In place of a number that is not there."""
MINUS = "\N{MINUS SIGN}"
"""As figures print it; tables in text have a hyphen."""

MISSING = {
    "one value": "a single value has no spread",
    "no items": "there are no values of single test items",
    "one group": "all test items belong together",
    "no spread": "all values are equal, which tells nothing of others",
}
"""Why there is no interval, by the reason that the analysis records."""


def value(number: float, metric: Metric, *, signed: bool = False) -> str:
    """A value of the metric in its unit but without the unit's name: 91.23; with a sign +0.52."""
    if not math.isfinite(number):
        return NONE
    digits = metric.digits if metric.digits is not None else 2 if metric.scale >= 100 else 4
    written = f"{number * metric.scale:{'+' if signed else ''}.{digits}f}"
    return written.lstrip("+-") if float(written) == 0 else written


def difference(number: float, metric: Metric) -> str:
    """A difference, signed, without its unit: +0.52."""
    return value(number, metric, signed=True)


def size(number: float, metric: Metric) -> str:
    """The size of a difference with its unit: 0.52 points."""
    return f"{value(abs(number), metric)} {metric.difference_unit}".rstrip()


def interval(ends: Sequence[float] | None, metric: Metric, *, signed: bool = False) -> str:
    """Both ends: 90.11 to 92.35, or with signs -0.10 to +1.14; a dash where `is_interval` says that there is none."""
    if ends is None or not is_interval(ends):
        return NONE
    return " to ".join(value(end, metric, signed=signed) for end in ends)


def is_interval(ends: Sequence[float] | None) -> bool:
    """Whether there is an interval: two finite ends, not equal; without any width it would claim certainty."""
    return ends is not None and all(map(math.isfinite, ends)) and ends[0] != ends[1]


def in_unit(title: str, unit: str) -> str:
    """A title with the unit of what stands under it: "test accuracy, %"; the title alone for a bare number."""
    return f"{title}, {unit}" if unit else title


def better(metric: Metric, separator: str = "; ") -> str:
    """What to add where it is not plain that less is better; nothing where more is."""
    return "" if metric.higher_is_better else f"{separator}less is better"


def better_side(metric: Metric) -> str:
    """Where in a chart of differences the better ones lie."""
    return f"{'right' if metric.higher_is_better else 'left'} of zero, the first arm is better"


def probability(p: float) -> str:
    """A p value with two digits that count."""
    if not math.isfinite(p):
        return NONE
    if p < 0.001:
        return "< 0.001"
    return f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def share(number: float) -> str:
    """A share in percent: 95 %."""
    return f"{100 * number:.3g} %"


def count(number: float) -> str:
    """A whole number with thousands set apart."""
    return f"{number:,.0f}" if math.isfinite(number) else NONE


def counted(number: int, singular: str, plural: str = "") -> str:
    """A number with its noun: 1 run, 2 runs."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def short_count(number: float, *, unit: str = "", smallest: float = 1e3) -> str:
    """A number with a prefix: 3.54 M; below `smallest` with thousands set apart."""
    for prefix, one in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= one >= smallest:
            return f"{number / one:.3g} {prefix}{unit}"
    return (f"{number:.3g}" if abs(number) < 1e3 else f"{number:,.0f}") + (f" {unit}" if unit else "")


def divide(number: float | None, to: float | None) -> float | None:
    """number / to, or None where that is no number."""
    return None if number is None or not to or not math.isfinite(number) else number / to


def ratio(quotient: float) -> str:
    """A ratio: 1.23, from a hundred on without digits behind the point."""
    return f"{quotient:.2f}" if quotient < 100 else f"{quotient:.0f}"


def memory(size_in_bytes: float) -> str:
    """Bytes in GiB."""
    return f"{size_in_bytes / 2**30:.2f} GiB"


def setting(content: Any) -> str:
    """A value of a recipe: lists as they are written in YAML, numbers without needless zeros."""
    if isinstance(content, float):
        return f"{content:g}"
    if isinstance(content, (list, tuple)):
        return f"[{', '.join(map(setting, content))}]"
    return "null" if content is None else str(content)


def settings(overrides: Mapping[str, Any]) -> str:
    """The keys that an arm changes in the recipe, with their values, on one line."""
    return ", ".join(f"{key}: {setting(content)}" for key, content in overrides.items())


def listed(names: Sequence[str], most: int, separator: str = "; ", more: str = "...") -> str:
    """The first `most` names; what stands for the others, with {} for their number."""
    rest = [more.format(len(names) - most)] if len(names) > most else []
    return separator.join([*names[:most], *rest])


def sentence_case(text: str) -> str:
    """The text with a capital at its beginning."""
    return text[:1].upper() + text[1:]
