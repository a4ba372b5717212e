"""run.json: what is needed to repeat a run, and whether a repetition has it.

retries.json, beside it, holds the restarts at a lower learning rate.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any, NamedTuple

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
        "things": recipe.data.things,
        "categories": {name: list(parts) for name, parts in recipe.data.categories().items()},
        "selection": recipe.data.selection,
        "splits": recipe.data.split_names(),
        "remarks": list(recipe.data.remarks),
        "block": inserted.block.provenance.to_dict() if inserted is not None else None,
        "trained_params": trained,
        "frozen_params": frozen,
        "encoder": {"pretrained": is_pretrained(recipe), "digest": _encoder_digest(model)},
        "environment": records.environment((*recipe.data.packages, *recipe.task_class.packages)),
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


class Change(NamedTuple):
    """A dotted key whose value is another one now."""

    key: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key} is {_brief(self.now)}, was {_brief(self.before)}"


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
    errors, warned = compare_records(records.read_json(file), record)
    if errors and not allow_difference:
        raise RunError(
            f"this is no repetition of {original}; different: {_listed(errors)}",
            "give the same data and block, or add --allow-difference",
        )
    if errors or warned:
        warnings.warn(f"not as it was in {file}: {_listed([*errors, *warned])}", RunWarning, stacklevel=2)


def check_resumes(record: dict[str, Any], run_dir: Path) -> None:
    """Compare a launch that goes on with a run with the launch before; without one there is nothing to compare.

    Other versions or another commit are a warning.

    Raises:
        RunError: If data, block or pretrained weights differ.
    """
    file = run_dir / "run.json"
    if not file.exists():
        return
    errors, warned = compare_records(records.read_json(file), record)
    if errors:
        raise RunError(
            f"{run_dir} was trained otherwise; different: {_listed(errors)}",
            "give the data and the block it was started with, or choose another --out",
        )
    if warned:
        warnings.warn(f"not as it was in {file}: {_listed(warned)}", RunWarning, stacklevel=2)


def _listed(changes: list[Change]) -> str:
    return "; ".join(map(str, changes[:6])) + ("; ..." if len(changes) > 6 else "")


def compare_records(before: dict[str, Any], now: dict[str, Any]) -> tuple[list[Change], list[Change]]:
    """What differs between two records: what makes it another run, and what may only change its numbers."""
    environments = [record.get("environment") or {} for record in (before, now)]
    versions = [environment.get("versions") or {} for environment in environments]
    warned = [
        Change(name, versions[0].get(name), version)
        for name, version in versions[1].items()
        if versions[0].get(name) != version
    ]
    pairs = {name: tuple(environment.get(name) for environment in environments) for name in ("python", "git_commit")}
    warned += [Change(name, *pair) for name, pair in pairs.items() if pair[0] != pair[1]]
    errors = []
    blocks = [_short((record.get("block") or {}).get("digest")) for record in (before, now)]
    if blocks[0] != blocks[1]:
        errors.append(Change("block.digest", *blocks))
    errors += [
        Change(f"data.{key}", before.get("data", {}).get(key), now["data"].get(key))
        for key in sorted(before.get("data", {}).keys() | now["data"].keys())
        if _plain(before.get("data", {}).get(key)) != _plain(now["data"].get(key))
    ]
    encoders = [(record.get("encoder") or {}).get("digest") for record in (before, now)]
    if encoders[0] != encoders[1] and None not in encoders:
        change = Change("encoder.digest", *map(_short, encoders))
        (errors if now["encoder"]["pretrained"] else warned).append(change)  # random ones follow seed and versions
    return errors, warned


def changed_keys(before: Any, now: Any, key: str = "") -> list[Change]:
    """Dotted keys that differ in two nested mappings."""
    if not isinstance(before, dict) or not isinstance(now, dict):
        return [] if before == now else [Change(key, before, now)]
    return [
        change
        for name in dict.fromkeys([*now, *before])
        for change in changed_keys(before.get(name), now.get(name), f"{key}.{name}" if key else str(name))
    ]


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
        "samples": list(error.samples),
        "files": list(error.files),
        "from_step": 0 if path is None else int(read_checkpoint(path)["global_step"]),
        "factor": CUT,
    }


def write_retries(run_dir: Path, retries: list[dict[str, Any]]) -> None:
    """Write retries.json."""
    records.write_json(run_dir / "retries.json", {"retries": retries})
