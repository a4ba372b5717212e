"""What came of each item of a split, as columns, and the metrics that are their means.

A column named like a metric holds for each item a number whose plain mean over the split is the metric. `index` and
`group` say which item it is and which items belong together; `by_NAME` numbers the part of a category.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lmgraft.contracts import Metric
from lmgraft.errors import RecipeError

Items = dict[str, NDArray[Any]]
"""Column -> (N, ...), in order of index; "UNIT/NAME" for columns of other items than the split's own."""


class NotFiniteColumnError(RecipeError):
    """A column of a metric holds something that is no finite number."""


RESERVED = ("index", "group")
_TOLERANCE = 1e-5
"""Relative difference between a metric and the mean of its column; metrics may be summed in 32 bits, and one item of
50,000 counts for twice as much."""


def check_columns(columns: Mapping[str, Any], size: int, task: str, things: str) -> Items:
    """Columns of one batch as arrays.

    Args:
        columns: (B, ...) tensors by name.
        size: B.
        task: Whose columns these are, for errors.
        things: What the items are, in the plural.

    Raises:
        RecipeError: If a column is no tensor or of another length than the batch.
    """
    arrays: Items = {}
    for name, values in columns.items():
        if not isinstance(values, Tensor) or values.dim() == 0 or len(values) != size:
            shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise RecipeError(
                f"task {task}: score() returns {name!r} of {shape} for {size} {things}", "return a row for each of them"
            )
        detached = values.detach().cpu()
        arrays[name] = (
            detached.float() if detached.dtype.itemsize < 4 and detached.is_floating_point() else detached
        ).numpy()
    return arrays


def joined(parts: Sequence[Items]) -> Items:
    """The columns of several parts one behind the other, in order of index."""
    whole = [part for part in parts if part]
    if not whole:
        return {}
    columns = {name: np.concatenate([part[name] for part in whole]) for name in whole[0]}
    order = np.argsort(columns["index"], kind="stable")
    return {name: values[order] for name, values in columns.items()}


def values_of(
    items: Items,
    metrics: Mapping[str, Metric],
    measured: Mapping[str, float],
    categories: Mapping[str, Sequence[str]],
    task: str,
) -> dict[str, float]:
    """Metric -> value: the mean of its column, or what was measured where it has none.

    Args:
        items: Of a whole split.
        metrics: All that must have a value.
        measured: Values by the metric's own definition, of some or all.
        categories: See `Data.categories`.
        task: Whose columns these are, for errors.

    Raises:
        RecipeError: If a metric has no value, a column's mean is not the metric, or a column is not as it must be.
    """
    _check_units(items, task)
    _check_categories(items, categories, task)
    values = {}
    for name, metric in metrics.items():
        column = items.get(metric.column)
        if column is None and name not in measured:
            raise RecipeError(
                f"task {task} has no value for its metric {name!r}",
                f"score() or finish() must return a column {metric.column!r}, or measure() the value",
            )
        value = float(measured[name]) if column is None else _mean(metric.column, column, items, task)
        if name in measured and column is not None and not is_mean_of(measured[name], column):
            raise RecipeError(
                f"task {task}: the mean of column {metric.column!r} is {value:.6g}, and measure() says that {name} is "
                f"{measured[name]:.6g}",
                "return a column whose plain mean is the metric (lmgraft.tasks.influence has forms for ratios, "
                "correlations and mean-class accuracy), or none",
            )
        if not metric.possible(value):
            raise RecipeError(f"task {task}: {name} is {value}, which it cannot be", "check score() and measure()")
        values[name] = value
    return values


def is_mean_of(value: float, column: NDArray[Any]) -> bool:
    """Whether a value is the plain mean of a column, but for rounding."""
    wide = column.astype(np.float64)
    return abs(float(wide.mean()) - value) <= _TOLERANCE * max(abs(value), float(np.abs(wide).mean()))


def _mean(name: str, column: NDArray[Any], items: Items, task: str) -> float:
    if column.ndim != 1:
        raise RecipeError(f"task {task}: column {name!r} has shape {column.shape}", "return one number for each item")
    bad = np.flatnonzero(~np.isfinite(column))
    if len(bad):
        unit, slash, _ = name.rpartition("/")
        index = items[f"{unit}{slash}index"][bad[0]]
        raise NotFiniteColumnError(
            f"task {task}: column {name!r} is {column[bad[0]]} for item {index}"
            + (f" and {len(bad) - 1} more" if len(bad) > 1 else ""),
            "score() must return a number for each item: leave out of the data what cannot be scored",
        )
    return float(np.mean(column, dtype=np.float64))


def _check_units(items: Items, task: str) -> None:
    """Each kind of item has an index and a group, and columns of one length."""
    units: dict[str, dict[str, NDArray[Any]]] = {"": {}}
    for name, column in items.items():
        unit, _, short = name.rpartition("/")
        units.setdefault(unit, {})[short] = column
    for unit, columns in units.items():
        place = f" of unit {unit!r}" if unit else ""
        missing = [name for name in RESERVED if name not in columns]
        if missing:
            raise RecipeError(
                f"task {task}: the items{place} have no {missing[0]!r}",
                "every item has an index and a group; where items are independent, the group is the index",
            )
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) > 1:
            raise RecipeError(f"task {task}: columns{place} have unequal lengths {lengths}", "one row for each item")
        if len(np.unique(columns["index"])) != lengths["index"]:
            raise RecipeError(f"task {task}: two items{place} have one index", "number the items of a split")


def _check_categories(items: Items, categories: Mapping[str, Sequence[str]], task: str) -> None:
    for name, codes in items.items():
        if not name.startswith("by_"):
            continue
        parts = categories.get(name[3:])
        if parts is None:
            raise RecipeError(
                f"task {task}: column {name!r}, but the data have no category {name[3:]!r}",
                "name it and its parts in the data's categories()",
            )
        if codes.dtype.kind not in "iu" or (len(codes) and not 0 <= codes.min() <= codes.max() < len(parts)):
            raise RecipeError(f"task {task}: column {name!r} must hold whole numbers from 0 to {len(parts) - 1}")


def by_category(items: Items, metric: Metric, categories: Mapping[str, Sequence[str]]) -> dict[str, dict[str, float]]:
    """Category -> part -> mean of the metric's column over the part's items; parts without an item are left out.

    Empty where the metric has no column, or counts other items than the split's own.
    """
    column = items.get(metric.column)
    if column is None or metric.items:
        return {}
    table: dict[str, dict[str, float]] = {}
    for category, names in categories.items():
        codes = items.get(f"by_{category}")
        if codes is None:
            continue
        sums = np.bincount(codes, weights=column.astype(np.float64), minlength=len(names))
        counts = np.bincount(codes, minlength=len(names))
        table[category] = {name: float(s / n) for name, s, n in zip(names, sums, counts, strict=True) if n}
    return table


def by_unit(items: Items) -> dict[str, Items]:
    """The columns of each kind of item, under their short names; "" for the split's own."""
    units: dict[str, Items] = {}
    for name, column in items.items():
        unit, _, short = name.rpartition("/")
        units.setdefault(unit, {})[short] = column
    return units
