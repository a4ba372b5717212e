"""What is lost against the unchanged items, item by item; the columns of those are kept beside robustness.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lmgraft.analysis.intervals import items_interval
from lmgraft.analysis.items import metric_value
from lmgraft.contracts import Metric
from lmgraft.errors import RunError
from lmgraft.tasks.items import RESERVED, Items
from lmgraft.training.items import read_arrays, write_arrays

FILE = "robustness_clean.npz"
_IDENTITY = "identity"


def write_clean(file: Path, identity: str, items: Items, metrics: Mapping[str, Metric]) -> None:
    """Keep what came of the unchanged items.

    Args:
        file: Beside robustness.json.
        identity: Hexadecimal digits that tell what was evaluated.
        items: The columns of all items.
        metrics: Those whose columns are kept.
    """
    names = {name for metric in metrics.values() for name in _columns(metric)}
    kept = {name: column for name, column in items.items() if name in names}
    write_arrays(file, kept | {_IDENTITY: np.frombuffer(bytes.fromhex(identity), np.uint8)})


def read_clean(file: Path, identity: str) -> Items | None:
    """What `write_clean` kept; None where nothing whole is there, or it is of something else."""
    if not file.exists():
        return None
    try:
        items = read_arrays(file)
    except RunError:
        return None
    there = items.pop(_IDENTITY, np.zeros(0, np.uint8))
    return items if there.tobytes().hex() == identity else None


def _columns(metric: Metric) -> tuple[str, ...]:
    unit = f"{metric.items}/" if metric.items else ""
    return (metric.column, *(f"{unit}{name}" for name in RESERVED))


def lost_intervals(
    clean: Items, changed: Items, metrics: Mapping[str, Metric]
) -> dict[str, tuple[float, float] | None]:
    """Metric -> 95 % interval, over items by group, of what is worse than for the same items unchanged.

    Above 0 is a loss, whichever sense the metric has. None where the differences have no spread; a metric is left out
    that is no mean over items, or whose items are others. It says nothing of another seed.
    """
    lost: dict[str, tuple[float, float] | None] = {}
    for name, metric in metrics.items():
        before, now = metric_value(clean, metric), metric_value(changed, metric)
        index = _columns(metric)[1]
        if before.items is None or now.items is None or not np.array_equal(clean[index], changed[index]):
            continue
        low, high = metric.bounds
        worse = metric.direction * (before.items - now.items)
        ends = items_interval(worse, now.groups, possible=(low - high, high - low), differences=True).ends
        lost[name] = None if ends is None else (float(ends[0]), float(ends[1]))
    return lost
