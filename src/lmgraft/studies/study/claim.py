"""study.yaml says whose folder it is; changes.json what was changed in a study after its results had been read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lmgraft import records
from lmgraft.errors import LmgraftError, RunError
from lmgraft.recipes import load_recipe
from lmgraft.recipes.record import changed_keys
from lmgraft.recipes.run import other_recipe
from lmgraft.studies.study.config import Study, options_of

_SHARED = ("recipe", "overrides", "arguments")
_ANALYSIS = ("metric", "margin", "confidence", "contrasts", "reference", "learning_rates")


def claim(study: Study, out: Path) -> None:
    """Write study.yaml, or make sure that the one there is of this study; arms and seeds may be added.

    What is changed after results.json was written goes to changes.json: a plan that follows the
    results is no plan, and the report has to say so.

    Raises:
        RunError: If `out` holds another study, or its study.yaml cannot be read.
    """
    file = out / "study.yaml"
    now = yaml.safe_load(study.yaml)
    if file.exists() and any((out / "runs").glob("**/config.yaml")):
        before = _read(file)
        changed = _other_recipe(before, now)
        for label in before["arms"].keys() & now["arms"].keys():
            lines = changed_keys(before["arms"][label], now["arms"][label], f"arms.{label}")
            changed += [line for line in lines if not line.startswith(f"arms.{label}.question")]
        if changed:
            raise RunError(
                f"{out} holds another study; different now: {'; '.join(changed[:4])}", "choose another --out"
            )
        said = _afterwards(before, now) if (out / "results.json").exists() else []
        if said:
            records.write_json(out / "changes.json", [*read_changes(out), *said])
    records.write_text(file, study.yaml)


def read_changes(out: Path) -> list[str]:
    """Sentences on what was changed after results had been read."""
    file = out / "changes.json"
    return [str(line) for line in records.read_json(file)] if file.exists() else []


def _read(file: Path) -> dict[str, Any]:
    try:
        before = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RunError(
            f"{file} is damaged ({' '.join(str(error).split())[:120]})", "delete it; runs are kept"
        ) from None
    if not isinstance(before, dict) or not isinstance(before.get("arms"), dict):
        raise RunError(f"{file} is no study of lmgraft's", "choose another --out")
    return before


def _other_recipe(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What all arms share, resolved: other spellings, places of the data and numbers of workers are the same study."""
    if all(before.get(key) == now[key] for key in _SHARED):
        return []
    textual = [line for key in _SHARED for line in changed_keys(before.get(key), now[key], key)]
    if before.get("recipe") != now["recipe"]:
        return textual
    try:
        there, here = (
            load_recipe(s["recipe"], [*options_of(s.get("overrides") or {}), *(s.get("arguments") or [])])
            for s in (before, now)
        )
    except (LmgraftError, TypeError, AttributeError):
        return textual
    return other_recipe(there, here)


def _afterwards(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Sentences on what differs in the plan."""
    said = [
        f"After results had been read, {line}."
        for key in _ANALYSIS
        for line in changed_keys(before.get(key), now[key], key)
    ]
    there, here = _seeds(before.get("seeds")), _seeds(now["seeds"])
    if set(here) != set(there):
        said.append(
            f"After results with {len(there)} seeds had been read, the study went on with {len(here)}: p values do "
            "not account for looking in between."
        )
    for what, labels in (
        ("added", now["arms"].keys() - before["arms"].keys()),
        ("left out", before["arms"].keys() - now["arms"].keys()),
    ):
        if labels:
            said.append(f"After results had been read, arms were {what}: {', '.join(sorted(labels))}.")
    return said


def _seeds(given: Any) -> Sequence[int]:
    return list(range(given)) if isinstance(given, int) else list(given or [])
