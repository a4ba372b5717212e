"""Holm's correction for several tests."""

from __future__ import annotations

from collections.abc import Sequence


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p values (Scandinavian Journal of Statistics, 1979), in the given order.

    Rejecting those below alpha keeps the chance of even one false rejection at or below alpha,
    however the tests depend on each other. The smallest p is multiplied by the number of tests,
    the next by one less, and so on; none falls below an earlier one, or exceeds 1.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted
