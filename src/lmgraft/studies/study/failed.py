"""failed.json: runs that failed, and why, until they finish. What is left is a selection, and the page must say so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lmgraft import records
from lmgraft.analysis.verdict import Finding
from lmgraft.studies.engine.runs import Run

FILE = "failed.json"


def read_failed(out: Path) -> dict[str, str]:
    """Name of a run -> why it failed.

    Raises:
        RunError: If the file cannot be read.
    """
    file = out / FILE
    return {str(name): str(why) for name, why in records.read_json(file).items()} if file.exists() else {}


def note_failed(out: Path, name: str, why: str) -> None:
    """Add a run."""
    records.write_json(out / FILE, read_failed(out) | {name: why})


def forget_finished(out: Path, cells: Sequence[Run]) -> dict[str, str]:
    """Take runs that have finished since out of the file; what is left of it."""
    before = read_failed(out)
    finished = {cell.name for cell in cells if cell.finished}
    left = {name: why for name, why in before.items() if name not in finished}
    if left != before:
        records.write_json(out / FILE, left)
    if not left:
        (out / FILE).unlink(missing_ok=True)
    return left


def failures(cells: Sequence[Run], failed: Mapping[str, str], chosen: Mapping[str, float | None]) -> list[Finding]:
    """What failures mean for the comparison: first for the seeds compared, then for a grid's other rates.

    Args:
        cells: All runs.
        failed: As `read_failed` gives it.
        chosen: Arm -> the rate of the grid that it is compared at.
    """
    there = [cell for cell in cells if cell.name in failed]
    compared = tuple(cell.name for cell in there if _compared(cell, chosen))
    others = tuple(cell.name for cell in there if not _compared(cell, chosen))
    findings = [Finding(kind="failed runs", names=compared), Finding(kind="failed rates", names=others)]
    return [finding for finding in findings if finding.names]


def _compared(cell: Run, chosen: Mapping[str, float | None]) -> bool:
    return cell.learning_rate == chosen.get(cell.arm, cell.learning_rate)
