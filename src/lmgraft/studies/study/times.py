"""Training steps of each arm in turns with the reference arm's, timed once and kept: <out>/times.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypeGuard

from lmgraft.analysis.timing import StepPairs
from lmgraft.checkpoint.digest import json_digest
from lmgraft.studies.progress import silent
from lmgraft.studies.step_times import time_arms
from lmgraft.studies.study.cells import Cell
from lmgraft.studies.study.kept import Row, kept_rows
from lmgraft.studies.worker import in_own_process


def timed_pairs(
    arms: Mapping[str, Cell], reference: str, out: Path, *, measure: bool = True, here: bool = False
) -> dict[str, StepPairs]:
    """Arm -> its steps and the reference arm's in turns; without the reference arm, and arms that cannot be had here.

    Args:
        arms: Arm -> one of its runs.
        reference: The arm whose steps stand beside those of all others.
        out: Folder of times.json.
        measure: Time what is not there; otherwise read only.
        here: Time in this process, not in one of its own.
    """
    if reference not in arms:
        return {}

    def make(missing: Sequence[str]) -> Mapping[str, Row]:
        cells = {arm: arms[arm] for arm in (reference, *missing)}
        return _time(cells, reference) if here else in_own_process(_time, cells, reference)

    recipes = {arm: cell.plan.yaml for arm, cell in arms.items()}
    keys = {
        arm: json_digest({"recipe": recipe, "reference": recipes[reference]})
        for arm, recipe in recipes.items()
        if arm != reference
    }
    rows = kept_rows(out / "times.json", keys, make if measure else None)
    return {arm: pairs for arm, row in rows.items() if (pairs := _pairs(row)) is not None}


def _pairs(row: Row) -> StepPairs | None:
    seconds, beside, device = row.get("seconds"), row.get("reference_seconds"), row.get("device")
    if not _times(seconds) or not _times(beside) or len(seconds) != len(beside) or not isinstance(device, str):
        return None
    return StepPairs(seconds=seconds, reference_seconds=beside, device=device)


def _times(values: object) -> TypeGuard[list[float]]:
    return isinstance(values, list) and bool(values) and all(isinstance(v, float) and v > 0 for v in values)


def _time(cells: Mapping[str, Cell], reference: str) -> dict[str, Row]:
    times, _ = time_arms({arm: cell.load for arm, cell in cells.items()}, reference, silent)
    return {arm: asdict(row) | {"reference": reference} for arm, row in times.items() if row.reference_seconds}
