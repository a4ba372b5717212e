"""A row for each arm in a JSON file, made once for an arm's recipe and kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmgraft import records
from lmgraft.errors import LmgraftError, RunError

Row = dict[str, Any]


def kept_rows(
    file: Path, keys: Mapping[str, str], make: Callable[[Sequence[str]], Mapping[str, Row]] | None
) -> dict[str, Row]:
    """The rows of these arms; those that are missing, or of another recipe, are made and written.

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
            made = {}  # a figure that cannot be had must not cost the comparison
        known |= {arm: {"recipe": keys[arm], **row} for arm, row in made.items()}
        records.write_json(file, known)
    return {arm: known[arm] for arm, key in keys.items() if known.get(arm, {}).get("recipe") == key}


def _known(file: Path) -> dict[str, Row]:
    try:
        known = records.read_json(file)
    except RunError:
        return {}  # none yet, or damaged: it is made again
    return {n: row for n, row in known.items() if isinstance(row, dict)} if isinstance(known, dict) else {}
