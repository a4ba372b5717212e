"""Floating-point operations of each arm, counted once and kept: <out>/flops.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmgraft import records
from lmgraft.checkpoint.digest import json_digest
from lmgraft.errors import LmgraftError, RunError
from lmgraft.recipes.build import set_up_data
from lmgraft.recipes.cost import count_flops
from lmgraft.studies.study.cells import Cell
from lmgraft.studies.worker import in_own_process


def counted_flops(arms: Mapping[str, Cell], out: Path) -> dict[str, tuple[float, float]]:
    """Arm -> operations of a training step and of an evaluation, for each item.

    An arm whose block cannot be had here (its run came from elsewhere) is left out.
    """
    file = out / "flops.json"
    keys = {label: json_digest({"recipe": cell.plan.yaml}) for label, cell in arms.items()}
    known = _known(file)
    todo = {label: cell for label, cell in arms.items() if known.get(label, {}).get("recipe") != keys[label]}
    if todo:
        try:
            counted = in_own_process(_count, todo)
        except (LmgraftError, OSError, RuntimeError):
            counted = {}  # a count that cannot be had must not cost the comparison
        made = {label: {"recipe": keys[label], "train": t, "evaluation": e} for label, (t, e) in counted.items()}
        known |= made
        records.write_json(file, known)
    mine = {label: known[label] for label in arms if known.get(label, {}).get("recipe") == keys[label]}
    return {label: (float(row["train"]), float(row["evaluation"])) for label, row in mine.items()}


def _known(file: Path) -> dict[str, dict[str, Any]]:
    try:
        known = records.read_json(file)
    except RunError:
        return {}  # none yet, or damaged: it is counted again
    return {n: row for n, row in known.items() if isinstance(row, dict)} if isinstance(known, dict) else {}


def _count(cells: Mapping[str, Cell]) -> dict[str, tuple[float, float]]:
    found = {}
    for label, cell in cells.items():
        try:
            recipe = cell.load()
            set_up_data(recipe)
            counted = count_flops(recipe)
        except (LmgraftError, OSError, RuntimeError):
            continue
        found[label] = (counted.train, counted.evaluation)
    return found
