"""study.yaml says whose folder it is; changes.json what was changed in a study after its results had been read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lmgraft import records
from lmgraft.errors import LmgraftError, RunError
from lmgraft.recipes import load_recipe
from lmgraft.recipes.record import Change, changed_keys
from lmgraft.recipes.run import other_recipe
from lmgraft.studies.study.config import Study, options_of

COMPARISON = "arms.json"
"""In a folder of `lmgraft.compare`: how its arms were made."""

_SHARED = ("recipe", "overrides", "arguments")
_ANALYSIS = ("metric", "margin", "confidence", "contrasts", "reference", "learning_rates")


def check_claim(study: Study, out: Path) -> list[str]:
    """Make sure that study.yaml in `out`, if there is one, is of this study; arms and seeds may be added.

    Returns:
        Sentences on what is changed after results.json was written: a plan that follows the results
        is no plan, and the report has to say so. `write_claim` keeps them, once all other checks have passed.

    Raises:
        RunError: If `out` holds another study, or its study.yaml cannot be read.
    """
    if (out / COMPARISON).exists():
        raise RunError(f"{out} holds a comparison by lmgraft.compare", "choose another --out")
    file = out / "study.yaml"
    if not file.exists() or not holds_runs(out):
        return []
    before, now = _read(file), yaml.safe_load(study.yaml)
    changed = _other_recipe(before, now)
    for label in before["arms"].keys() & now["arms"].keys():
        changes = changed_keys(before["arms"][label], now["arms"][label], f"arms.{label}")
        changed += [change for change in changes if change.key != f"arms.{label}.question"]
    if changed:
        raise RunError(
            f"{out} holds another study; different now: {'; '.join(map(str, changed[:4]))}", "choose another --out"
        )
    return changed_afterwards(study, out)


def holds_runs(out: Path) -> bool:
    """Whether there are runs of a study, begun or finished."""
    return any((out / "runs").glob("**/config.yaml"))


def changed_afterwards(study: Study, out: Path) -> list[str]:
    """Sentences on how the plan differs from that in `out`, if results of that have been written.

    Raises:
        RunError: If the study.yaml there cannot be read.
    """
    file = out / "study.yaml"
    if not file.exists() or not (out / "results.json").exists():
        return []
    return _afterwards(_read(file), yaml.safe_load(study.yaml))


def write_claim(study: Study, out: Path, said: Sequence[str]) -> None:
    """Write study.yaml, and add to changes.json what is new among `said`. The study's lock must be held."""
    before = read_changes(out)
    new = [line for line in dict.fromkeys(said) if line not in before]
    if new:
        records.write_json(out / "changes.json", [*before, *new])
    records.write_text(out / "study.yaml", study.yaml)


def changes_of_others(sources: Iterable[Path], out: Path) -> list[str]:
    """Sentences on finished runs that are taken from elsewhere: whether results of theirs had been written.

    Args:
        sources: Folders of the runs.
        out: The folder they are taken to.
    """
    above = dict.fromkeys(folder for run in sources for folder in list(run.resolve().parents)[:_ABOVE])
    said: list[str] = []
    for folder in above:
        changes = read_changes(folder)
        if folder != out.resolve() and (changes or (folder / "results.json").exists()):
            said.append(f"Runs are of a study whose results were written before ({folder.name}).")
            said += changes
    return said


_ABOVE = 4
"""Folders between a run and its study: runs, the arm, and with a grid the rate."""


def read_changes(out: Path) -> list[str]:
    """Sentences on what was changed after results had been read.

    Raises:
        RunError: If changes.json is damaged.
    """
    file = out / "changes.json"
    if not file.exists():
        return []
    try:
        lines = records.read_json(file)
    except RunError:
        lines = None
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise RunError(
            f"{file} is damaged: it holds no list of sentences",
            "mend it if you can: what it said belongs to the results; or train anew in another folder",
        )
    return lines


def _read(file: Path) -> dict[str, Any]:
    try:
        before = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RunError(
            f"{file} is damaged ({' '.join(str(error).split())[:120]})", "delete it; runs are kept"
        ) from None
    if not isinstance(before, dict) or not isinstance(before.get("arms"), dict):
        raise RunError(
            f"{file} is no study of lmgraft's",
            "delete it if it was cut short: runs are kept; else choose another --out",
        )
    return before


def _other_recipe(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """What all arms share, resolved: other spellings, places of the data and numbers of workers are the same study."""
    if all(before.get(key) == now[key] for key in _SHARED):
        return []
    textual = [change for key in _SHARED for change in changed_keys(before.get(key), now[key], key)]
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
        f"After results had been read, {change}."
        for key in _ANALYSIS
        for change in changed_keys(before.get(key), now[key], key)
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
