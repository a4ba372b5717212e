"""How a study's numbers are written, in sentences, tables and figures alike."""

from __future__ import annotations

import math

from lmgraft.contracts import Metric

NONE = "\N{EN DASH}"
"""In place of a number that is not there."""
MINUS = "\N{MINUS SIGN}"
"""As pages print it; tables in text have a hyphen."""


def in_unit(number: float, metric: Metric, *, signed: bool = False) -> str:
    """A value of the metric, or with a sign a difference, in the metric's unit but without its name: 91.23, +0.52."""
    if not math.isfinite(number):
        return NONE
    digits = (2 if metric.scale >= 100 else 4) if metric.digits is None else metric.digits
    written = f"{number * metric.scale:{'+' if signed else ''}.{digits}f}"
    return written.lstrip("+-") if float(written) == 0 else written


def probability(p: float) -> str:
    """A p value with two digits that count."""
    if not math.isfinite(p):
        return NONE
    if p < 0.001:
        return "< 0.001"
    return f"{p:.3f}" if p < 0.1 else f"{p:.2f}"
