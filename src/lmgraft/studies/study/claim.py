"""study.yaml says whose folder it is; changes.json what was changed in a study after its results had been read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import yaml

from lmgraft import records
from lmgraft.analysis.verdict import CHANGES, Finding
from lmgraft.errors import LmgraftError, RunError
from lmgraft.recipes import load_recipe
from lmgraft.recipes.record import Change, changed_keys
from lmgraft.recipes.run import other_recipe
from lmgraft.studies.study.config import Study, options_of

COMPARISON = "arms.json"
"""In a folder of `lmgraft.compare`: how its arms were made."""

_SHARED = ("recipe", "overrides", "arguments")
_BEFORE: dict[str, Any] = {"rate_seeds": []}
"""What a key younger than the file means there."""
_ANALYSIS = ("metric", "margin", "confidence", "contrasts", "reference", "learning_rates", "rate_seeds")


def check_claim(study: Study, out: Path) -> list[Finding]:
    """Make sure that study.yaml in `out`, if there is one, is of this study; arms and seeds may be added.

    Returns:
        What is changed after results.json was written: a plan that follows the results is no plan, and
        the report has to say so. `write_claim` keeps it, once all other checks have passed.

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
        of_arm = changed_keys(before["arms"][label], now["arms"][label], f"arms.{label}")
        changed += [change for change in of_arm if change.key != f"arms.{label}.question"]
    if changed:
        listed = "; ".join(map(str, changed[:4]))
        raise RunError(f"{out} holds another study; different now: {listed}", "choose another --out")
    return changed_afterwards(study, out)


def holds_runs(out: Path) -> bool:
    """Whether there are runs of a study, begun or finished."""
    return any((out / "runs").glob("**/config.yaml"))


def changed_afterwards(study: Study, out: Path) -> list[Finding]:
    """How the plan differs from that in `out`, if results of that have been written.

    Raises:
        RunError: If the study.yaml there cannot be read.
    """
    file = out / "study.yaml"
    if not file.exists() or not (out / "results.json").exists():
        return []
    return _afterwards(_read(file), yaml.safe_load(study.yaml))


def write_claim(study: Study, out: Path, changed: Sequence[Finding]) -> None:
    """Write study.yaml, and add to changes.json what is new among `changed`. The study's lock must be held."""
    kept = read_changes(out)
    new = [one for i, one in enumerate(changed) if one not in kept and one not in changed[:i]]
    if new:
        records.write_json(out / "changes.json", [_short_form(one) for one in [*kept, *new]])
    records.write_text(out / "study.yaml", study.yaml)


def _short_form(change: Finding) -> dict[str, Any]:
    """For JSON, without the fields that it does not use."""
    empty = asdict(Finding(kind=change.kind))
    return {key: value for key, value in asdict(change).items() if key == "kind" or value != empty[key]}


def changes_of_others(sources: Iterable[Path], out: Path) -> list[Finding]:
    """What finished runs bring along that are taken from elsewhere: whether results of theirs had been written.

    Args:
        sources: Folders of the runs.
        out: The folder they are taken to.
    """
    above = dict.fromkeys(folder for run in sources for folder in list(run.resolve().parents)[:_ABOVE])
    found: list[Finding] = []
    for folder in above:
        theirs = read_changes(folder)
        if folder != out.resolve() and (theirs or (folder / "results.json").exists()):
            found += [Finding(kind="runs of others", names=(folder.name,)), *theirs]
    return found


_ABOVE = 4
"""Folders between a run and its study: runs, the arm, and with a grid the rate."""


def read_changes(out: Path) -> list[Finding]:
    """What was changed after results had been read; an older version's sentences as "stated change".

    Raises:
        RunError: If changes.json is damaged.
    """
    file = out / "changes.json"
    if not file.exists():
        return []
    try:
        return [_change(content) for content in _rows(records.read_json(file))]
    except (RunError, TypeError):
        raise RunError(
            f"{file} is damaged: it holds no list of changes",
            "mend it if you can: what it said belongs to the results; or train anew in another folder",
        ) from None


def _rows(content: Any) -> list[Any]:
    if not isinstance(content, list):
        raise TypeError
    return content


def _change(content: Any) -> Finding:
    if isinstance(content, str):
        return Finding(kind="stated change", key=content)
    known = {field.name for field in fields(Finding)} - {"contrast", "gain", "pair", "counts"}
    if not isinstance(content, dict) or content.get("kind") not in CHANGES or not content.keys() <= known:
        raise TypeError
    return Finding(**content | {"names": tuple(content.get("names", ()))})


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


def _afterwards(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Finding]:
    """What differs in the plan."""
    findings = [
        Finding(kind="setting changed", key=change.key, before=change.before, now=change.now)
        for key in _ANALYSIS
        for change in changed_keys(before.get(key, _BEFORE.get(key)), now[key], key)
    ]
    there, here = _seeds(before.get("seeds")), _seeds(now["seeds"])
    if set(here) != set(there):
        findings.append(Finding(kind="seeds changed", key="seeds", before=len(there), now=len(here)))
    added = tuple(sorted(now["arms"].keys() - before["arms"].keys()))
    left_out = tuple(sorted(before["arms"].keys() - now["arms"].keys()))
    findings += [Finding(kind="arms added", names=added)] if added else []
    return [*findings, *([Finding(kind="arms left out", names=left_out)] if left_out else [])]


def _seeds(given: Any) -> Sequence[int]:
    return list(range(given)) if isinstance(given, int) else list(given or [])
