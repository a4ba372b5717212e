"""Floating-point operations of each arm, counted once and kept: <out>/flops.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lmgraft.checkpoint.digest import json_digest
from lmgraft.errors import LmgraftError
from lmgraft.recipes.build import set_up_data
from lmgraft.recipes.cost import count_flops
from lmgraft.studies.study.cells import Cell
from lmgraft.studies.study.kept import Row, kept_rows
from lmgraft.studies.worker import in_own_process


def counted_flops(arms: Mapping[str, Cell], out: Path, *, here: bool = False) -> dict[str, tuple[float, float]]:
    """Arm -> operations of a training step and of an evaluation, for each item.

    An arm whose block cannot be had here (its run came from elsewhere) is left out.

    Args:
        arms: Arm -> one of its runs.
        out: Folder of flops.json.
        here: Count in this process, not in one of its own.
    """

    def make(missing: Sequence[str]) -> Mapping[str, Row]:
        cells = {arm: arms[arm] for arm in missing}
        return _count(cells) if here else in_own_process(_count, cells)

    keys = {arm: json_digest({"recipe": cell.plan.yaml}) for arm, cell in arms.items()}
    rows = kept_rows(out / "flops.json", keys, make)
    return {arm: (float(row["train"]), float(row["evaluation"])) for arm, row in rows.items()}


def _count(cells: Mapping[str, Cell]) -> dict[str, Row]:
    rows = {}
    for arm, cell in cells.items():
        try:
            recipe = cell.load()
            set_up_data(recipe)
            counted = count_flops(recipe)
        except (LmgraftError, OSError, RuntimeError):
            continue
        rows[arm] = {"train": counted.train, "evaluation": counted.evaluation}
    return rows
