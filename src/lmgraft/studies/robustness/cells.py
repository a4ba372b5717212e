"""What came of the conditions of a suite, in <run>/robustness.json.

Version 1, when only right answers among images were counted, is read as accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lmgraft import records
from lmgraft.analysis.intervals import wilson_interval
from lmgraft.errors import RunError

FILE = "robustness.json"
VERSION = 2


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What a model reached under one condition."""

    suite: str
    title: str
    part: str | None
    level: int | None
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float] | None]
    """Metric -> 95 % interval over the items, of this one trained model; None where there is none."""
    items: int
    conditions: dict[str, Any]
    """What besides key and weights decides the values."""
    lost: dict[str, tuple[float, float] | None] = field(default_factory=dict)
    """Metric -> 95 % interval of what is lost against the same items unchanged; empty where they are not compared, and
    in files of earlier versions."""


def read_cells(file: Path) -> tuple[str, dict[str, Cell]]:
    """The digest of the weights that were evaluated, and what came of each condition, by key.

    Raises:
        RunError: If the file is damaged.
    """
    try:
        content = records.read_json(file)
        read = {1: _version_1, VERSION: _version_2}[content.get("version", 1)]
        return str(content["weights"]), {key: read(key, cell) for key, cell in content["cells"].items()}
    except (KeyError, TypeError, AttributeError, ValueError, ZeroDivisionError) as error:
        raise RunError(
            f"{file} is damaged ({type(error).__name__}: {error})", "delete it, and evaluate the run again"
        ) from None


def write_cells(file: Path, weights: str, environment: Mapping[str, Any], cells: Mapping[str, Cell]) -> None:
    """Write robustness.json."""
    content = {"version": VERSION, "weights": weights, "environment": environment}
    records.write_json(file, content | {"cells": {key: asdict(cell) for key, cell in cells.items()}})


def _version_2(key: str, cell: Mapping[str, Any]) -> Cell:
    read: Cell = records.read_as(Cell, cell, key)
    return read


def _version_1(key: str, cell: Mapping[str, Any]) -> Cell:
    correct, total = cell["correct"], cell["total"]
    first, *rest = key.split("/")
    suite = "corruptions" if first in ("corruptions", "clean") else "imagenet-robustness"
    part, level = (rest[0], int(rest[1])) if len(rest) == 2 else (None if first == "clean" else first, None)
    return Cell(
        suite=suite,
        title=key,
        part=part,
        level=level,
        metrics={"accuracy": float(correct / total)},
        intervals={"accuracy": wilson_interval(correct, total)},
        items=total,
        conditions=dict(cell["conditions"]),
    )
