"""run.json: what is needed to repeat a run, and whether a repetition has it.

retries.json, beside it, holds the restarts at a lower learning rate.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from lmgraft import records
from lmgraft.errors import RecipeError, RunError
from lmgraft.graft import find_graft
from lmgraft.recipes.recipe import Recipe
from lmgraft.training.checkpoints import RunWarning, newest_whole, read_checkpoint
from lmgraft.training.features import encoder_digest
from lmgraft.training.schedule import CUT
from lmgraft.training.stopping import NotFiniteError


def make_record(recipe: Recipe, model: nn.Module) -> dict[str, Any]:
    """Everything but the recipe itself: data, block, seeds, environment, command line."""
    inserted = find_graft(model)
    trained, frozen = count_params(model)
    return {
        "arm": recipe.arm,
        "seed": recipe.seed,
        "seeds": {"weights": recipe.seed, "order_and_augmentation": recipe.data.seed, "steps": recipe.seed},
        "data": recipe.data.fingerprint(),
        "selection": getattr(recipe.data, "selection", "val"),
        "block": inserted.block.provenance.to_dict() if inserted is not None else None,
        "trained_params": trained,
        "frozen_params": frozen,
        "encoder": {"pretrained": is_pretrained(recipe), "digest": _encoder_digest(model)},
        "environment": records.environment(),
        "command": records.command(),
    }


def is_pretrained(recipe: Recipe) -> bool:
    """Whether the encoder begins with weights from elsewhere."""
    return bool(recipe.backbone.kwargs.get("pretrained"))


def _encoder_digest(model: nn.Module) -> str | None:
    try:
        return encoder_digest(model)
    except RecipeError:
        return None  # a host whose classifier cannot be told from the rest


def write_record(run_dir: Path, record: dict[str, Any]) -> None:
    """Write run.json: this launch's environment and command, and under `launches` those of all launches so far."""
    file = run_dir / "run.json"
    before = records.read_json(file) if file.exists() else {}
    earlier = before.get("launches") or [{"command": command} for command in before.get("commands", ())]
    launch = {"command": record["command"], "environment": record["environment"]}
    records.write_json(file, record | {"launches": [*earlier, launch]})


def count_params(model: nn.Module) -> tuple[int, int]:
    """Trained and frozen parameters."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return trained, sum(p.numel() for p in model.parameters()) - trained


def check_repeats(record: dict[str, Any], original: Path, allow_difference: bool) -> None:
    """Compare a run that is about to start with the run folder that it repeats.

    Other versions or another commit are a warning; other data, another block or other pretrained weights an error.

    Args:
        record: As `make_record` gives it.
        original: The run folder.
        allow_difference: Make the error a warning too.

    Raises:
        RunError: If there is such a difference.
    """
    file = original / "run.json"
    grave, slight = _differences(record, records.read_json(file))
    if grave and not allow_difference:
        raise RunError(
            f"this is no repetition of {original}; different is {'; '.join(grave[:4])}",
            "give the same data and block, or add --allow-difference",
        )
    if slight or grave:
        warnings.warn(f"not as it was in {file}: {'; '.join([*grave, *slight])}", RunWarning, stacklevel=2)


def check_resumes(record: dict[str, Any], run_dir: Path) -> None:
    """Compare a launch that goes on with a run with the launch before; without one there is nothing to compare.

    Other versions or another commit are a warning.

    Raises:
        RunError: If data, block or pretrained weights differ.
    """
    file = run_dir / "run.json"
    if not file.exists():
        return
    grave, slight = _differences(record, records.read_json(file))
    if grave:
        raise RunError(
            f"{run_dir} was trained otherwise; different is {'; '.join(grave[:4])}",
            "give the data and the block it was started with, or choose another --out",
        )
    if slight:
        warnings.warn(f"not as it was in {file}: {'; '.join(slight)}", RunWarning, stacklevel=2)


def _differences(record: dict[str, Any], theirs: dict[str, Any]) -> tuple[list[str], list[str]]:
    """What is different in another record: what makes it another run, and what may change its numbers."""
    here, there = record["environment"], theirs.get("environment", {})
    versions = there.get("versions", {})
    slight = [f"{n} {versions.get(n)} there, {v} here" for n, v in here["versions"].items() if versions.get(n) != v]
    slight += [
        f"{name} {there.get(name)} there, {here[name]} here"
        for name in ("python", "git_commit")
        if there.get(name) != here[name]
    ]
    blocks = [(r.get("block") or {}).get("digest") for r in (theirs, record)]
    grave = [] if blocks[0] == blocks[1] else [f"the block: digest {_short(blocks[0])} there, {_short(blocks[1])} here"]
    data = theirs.get("data", {})
    grave += [
        f"the data: {key} is {_brief(data.get(key))} there, {_brief(record['data'].get(key))} here"
        for key in sorted(data.keys() | record["data"].keys())
        if _plain(data.get(key)) != _plain(record["data"].get(key))
    ]
    encoders = [(r.get("encoder") or {}).get("digest") for r in (theirs, record)]
    if encoders[0] != encoders[1] and None not in encoders:
        said = f"the encoder's initial weights: digest {_short(encoders[0])} there, {_short(encoders[1])} here"
        (grave if record["encoder"]["pretrained"] else slight).append(said)  # random ones follow seed and versions
    return grave, slight


@dataclass(frozen=True)
class Change:
    """A setting that is not what it was."""

    key: str
    """Dotted."""
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key} is {_brief(self.now)}, was {_brief(self.before)}"


def changes(before: Any, now: Any, key: str = "") -> list[Change]:
    """Dotted keys that differ in two nested mappings, each with both values."""
    if not isinstance(before, dict) or not isinstance(now, dict):
        return [] if before == now else [Change(key, before, now)]
    return [
        change
        for name in dict.fromkeys([*now, *before])
        for change in changes(before.get(name), now.get(name), f"{key}.{name}" if key else str(name))
    ]


def changed_keys(before: Any, now: Any, key: str = "") -> list[str]:
    """`changes` in words."""
    return [str(change) for change in changes(before, now, key)]


def _plain(value: Any) -> Any:
    """As it comes back from JSON."""
    return json.loads(json.dumps(value))


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _short(digest: str | None) -> str:
    return "none" if digest is None else digest[:12]


def read_retries(run_dir: Path) -> list[dict[str, Any]]:
    """The restarts of a run at a lower learning rate so far."""
    file = run_dir / "retries.json"
    return list(records.read_json(file)["retries"]) if file.exists() else []


def plan_retry(run_dir: Path, error: NotFiniteError, number: int) -> dict[str, Any]:
    """The entry of a restart from the last good checkpoint, at `CUT` times the rate from there on."""
    path = newest_whole(run_dir)
    return {
        "number": number,
        "reason": error.message,
        "epoch": error.epoch,
        "step_in_epoch": error.step,
        "learning_rate": error.learning_rate,
        "images": list(error.samples),
        "files": list(error.files),
        "from_step": 0 if path is None else int(read_checkpoint(path)["global_step"]),
        "factor": CUT,
    }


def write_retries(run_dir: Path, retries: list[dict[str, Any]]) -> None:
    """Write retries.json."""
    records.write_json(run_dir / "retries.json", {"retries": retries})
