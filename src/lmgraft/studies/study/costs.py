"""What each arm costs, measured once and kept: counted operations, and steps in turns with the reference arm's.

<out>/flops.json   arm -> operations of a training step and of an evaluation
<out>/times.json   arm -> seconds of steps

A row belongs to an arm's recipe, and is made again for another one. What cannot be measured here, as where the block of
a run that came from elsewhere is missing, is left out: it must not cost the comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeGuard

from lmgraft import records
from lmgraft.analysis.timing import StepPairs
from lmgraft.checkpoint.digest import json_digest
from lmgraft.errors import LmgraftError, RunError
from lmgraft.recipes.build import set_up_data
from lmgraft.recipes.cost import count_flops
from lmgraft.studies.engine.progress import silent
from lmgraft.studies.engine.runs import Run
from lmgraft.studies.engine.worker import in_own_process
from lmgraft.studies.step_times import time_arms

Row = dict[str, Any]


def counted_flops(arms: Mapping[str, Run], out: Path, *, here: bool = False) -> dict[str, tuple[float, float]]:
    """Arm -> operations of a training step and of an evaluation, for each item.

    Args:
        arms: Arm -> one of its runs.
        out: Folder of flops.json.
        here: Count in this process, not in one of its own.
    """

    def make(missing: Sequence[str]) -> Mapping[str, Row]:
        runs = {arm: arms[arm] for arm in missing}
        return _count(runs) if here else in_own_process(_count, runs)

    keys = {arm: json_digest({"recipe": run.plan.yaml}) for arm, run in arms.items()}
    rows = _kept_rows(out / "flops.json", keys, make)
    return {arm: (float(row["train"]), float(row["evaluation"])) for arm, row in rows.items()}


def _count(runs: Mapping[str, Run]) -> dict[str, Row]:
    rows = {}
    for arm, run in runs.items():
        try:
            recipe = run.load()
            set_up_data(recipe)
            counted = count_flops(recipe)
        except (LmgraftError, OSError, RuntimeError):
            continue
        rows[arm] = {"train": counted.train, "evaluation": counted.evaluation}
    return rows


def timed_pairs(
    arms: Mapping[str, Run], reference: str, out: Path, *, measure: bool = True, here: bool = False
) -> dict[str, StepPairs]:
    """Arm -> its steps and the reference arm's in turns; without the reference arm.

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
        runs = {arm: arms[arm] for arm in (reference, *missing)}
        return _time(runs, reference) if here else in_own_process(_time, runs, reference)

    recipes = {arm: run.plan.yaml for arm, run in arms.items()}
    keys = {
        arm: json_digest({"recipe": recipe, "reference": recipes[reference]})
        for arm, recipe in recipes.items()
        if arm != reference
    }
    rows = _kept_rows(out / "times.json", keys, make if measure else None)
    return {arm: pairs for arm, row in rows.items() if (pairs := _pairs(row)) is not None}


def _time(runs: Mapping[str, Run], reference: str) -> dict[str, Row]:
    times, _ = time_arms({arm: run.load for arm, run in runs.items()}, reference, silent)
    return {arm: asdict(row) | {"reference": reference} for arm, row in times.items() if row.reference_seconds}


def _pairs(row: Row) -> StepPairs | None:
    seconds, beside, device = row.get("seconds"), row.get("reference_seconds"), row.get("device")
    if not _times(seconds) or not _times(beside) or len(seconds) != len(beside) or not isinstance(device, str):
        return None
    return StepPairs(seconds=seconds, reference_seconds=beside, device=device)


def _times(values: object) -> TypeGuard[list[float]]:
    return isinstance(values, list) and bool(values) and all(isinstance(v, float) and v > 0 for v in values)


def _kept_rows(
    file: Path, keys: Mapping[str, str], make: Callable[[Sequence[str]], Mapping[str, Row]] | None
) -> dict[str, Row]:
    """The rows of these arms in a file; those that are missing, or of another key, are made and written.

    Args:
        file: Where they are kept.
        keys: Arm -> digest of what its row is a function of.
        make: Makes rows for these arms; arms that it leaves out have none. None to read only.
    """
    known = _known(file)
    missing = [arm for arm, key in keys.items() if known.get(arm, {}).get("recipe") != key]
    if missing and make is not None:
        try:
            made = make(missing)
        except (LmgraftError, OSError, RuntimeError):
            made = {}
        known |= {arm: {"recipe": keys[arm], **row} for arm, row in made.items()}
        records.write_json(file, known)
    return {arm: known[arm] for arm, key in keys.items() if known.get(arm, {}).get("recipe") == key}


def _known(file: Path) -> dict[str, Row]:
    try:
        known = records.read_json(file)
    except RunError:
        return {}  # none yet, or damaged: it is made again
    return {n: row for n, row in known.items() if isinstance(row, dict)} if isinstance(known, dict) else {}
