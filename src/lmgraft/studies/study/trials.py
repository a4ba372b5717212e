"""Trials of `lmgraft.compare`: what a loop is given, and how finished ones are kept.

<out>/arms.json                   the metric, and how each arm was made
<out>/trials/<arm>/seed<k>.json   what a call of the loop returned and cost, and the block it had
<out>/trials/<arm>/seed<k>.npz    the metric of each test item, where the loop returned it
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from lmgraft import records
from lmgraft.analysis.items import MetricValue
from lmgraft.checkpoint.digest import json_digest, tensor_digest
from lmgraft.contracts import Metric
from lmgraft.errors import RunError
from lmgraft.graft import GraftConfig, find_graft
from lmgraft.recipes import ARMS
from lmgraft.recipes.grafted import graft_arm
from lmgraft.recipes.record import count_params
from lmgraft.studies.study.claim import COMPARISON, holds_runs
from lmgraft.studies.study.config import Study
from lmgraft.studies.study.facts import Fact
from lmgraft.studies.study.results import Cost
from lmgraft.training.clock import Clock
from lmgraft.training.items import read_arrays, write_arrays


@dataclass(kw_only=True)
class Trial:
    """One call of the user's training loop: which arm, which seed.

    torch's, NumPy's and Python's generators are seeded by `seed` before the call, so that a model
    made first thing in it has the same initial weights in every arm.
    """

    label: str
    """The arm's name in this comparison."""
    arm: str
    """Its kind, a row of `lmgraft.recipes.ARMS`."""
    seed: int
    config: GraftConfig
    facts: dict[str, Any] = field(default_factory=dict)
    """What `graft` saw, for the record."""

    @property
    def name(self) -> str:
        """For progress lines and errors."""
        return f"{self.label}, seed {self.seed}"

    def graft(self, model: nn.Module) -> nn.Module:
        """Put this arm's block into `model`, in place, and return it; nothing for plain.

        Call it once, before the optimiser is made. It draws from a generator of its own: what you
        draw afterwards is the same in every arm.

        Raises:
            RunError: If it is called twice.
            LmgraftError: If the block cannot be had or the model cannot take it.
        """
        if self.facts:
            raise RunError(f"trial.graft was called twice for {self.name}", "graft one model a call")
        encoder = json_digest({name: tensor_digest(t) for name, t in sorted(model.state_dict().items())})
        model = graft_arm(model, self.arm, self.config, self.seed)
        trained, frozen = count_params(model)
        inserted = find_graft(model)
        self.facts |= {
            "encoder": encoder,
            "trained_params": trained,
            "frozen_params": frozen,
            "block": None if inserted is None else inserted.block.provenance.to_dict(),
        }
        return model


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What the file of a trial holds."""

    value: float
    items: str | None
    """SHA-256 of the metric of each test item."""
    metric: dict[str, Any]
    seconds: float
    share: float | None = None
    threads: int | None = None
    encoder: str
    trained_params: int
    frozen_params: int
    block: dict[str, Any] | None
    environment: dict[str, Any]


def make_fact(trial: Trial, kept: Kept, measured: MetricValue) -> Fact:
    """A trial as a study's run."""
    return Fact(
        arm=trial.label,
        seed=trial.seed,
        learning_rate=None,
        in_grid=None,
        measured=measured,
        cost=Cost(
            trained_params=kept.trained_params,
            frozen_params=kept.frozen_params,
            seconds=kept.seconds,
            peak_memory=None,
            share=kept.share,
            threads=kept.threads,
        ),
        position=trial.config.at,
        block=kept.block,
        test_items=0 if measured.items is None else len(measured.items),
        record={"encoder": {"digest": kept.encoder}, "environment": kept.environment},
    )


def check_arms(folder: Path, study: Study, configs: Mapping[str, GraftConfig]) -> dict[str, Any]:
    """What arms.json is to hold; arms may be added to those that are there.

    Raises:
        RunError: If the folder holds a comparison by another metric, or of arms that were made otherwise.
    """
    file = folder / COMPARISON
    if not file.exists() and holds_runs(folder):
        raise RunError(f"{folder} holds a study by lmgraft study", "choose another out=")
    kinds = {label: study.arms[label].arm for label in configs}
    now: dict[str, Any] = {
        label: {"arm": kinds[label]} | ({} if ARMS[kinds[label]].block is None else asdict(config))
        for label, config in configs.items()
    }
    now, metric = json.loads(json.dumps(now)), _read_as(study.metric)  # as it comes back
    if not file.exists():
        return {"metric": metric, "arms": now}
    held = records.read_json(file)
    if not isinstance(held, dict) or not {"metric", "arms"} <= held.keys():
        raise RunError(f"{file} does not say by what metric its trials were measured", "choose another out=")
    if held["metric"] != metric:
        raise RunError(
            f"{folder} holds a comparison by {_words(held['metric'])}, not by {_words(metric)}",
            "choose another out=: the loop has to be called again for another metric",
        )
    before = held["arms"]
    changed = [label for label in now if label in before and before[label] != now[label]]
    if changed:
        raise RunError(f"{folder} holds another comparison: arm {changed[0]} was made otherwise", "choose another out=")
    return {"metric": metric, "arms": before | now}


def _read_as(metric: Metric) -> dict[str, Any]:
    """What a number means: two values are of one kind only if all of it is equal."""
    return {"name": metric.name, "scale": float(metric.scale), "higher_is_better": metric.higher_is_better}


def _words(metric: Any) -> str:
    if not isinstance(metric, dict):
        return repr(metric)
    better = "more" if metric.get("higher_is_better") else "less"
    return f"{metric.get('name')} (times {metric.get('scale'):g}, {better} is better)"


def record_of(trial: Trial, measured: MetricValue, metric: Metric, clock: Clock) -> Kept:
    """What is to be kept of a trial that has just ended."""
    return Kept(
        value=measured.value,
        items=None if measured.items is None else _digest(measured.items),
        metric=_read_as(metric),
        seconds=clock.seconds,
        share=clock.share,
        threads=clock.threads,
        environment=records.environment(),
        **trial.facts,
    )


def write_trial(folder: Path, trial: Trial, kept: Kept, measured: MetricValue) -> None:
    """Write a finished trial; its .json last."""
    file = _file(folder, trial)
    if measured.items is not None and measured.groups is not None:
        write_arrays(file.with_suffix(".npz"), {"items": measured.items, "groups": measured.groups})
    records.write_json(file, asdict(kept))


def read_trial(folder: Path, trial: Trial, metric: Metric) -> Fact | None:
    """A finished trial; None where there is none.

    Raises:
        RunError: If it is damaged, or of another metric.
    """
    file = _file(folder, trial)
    if not file.exists():
        return None
    content = records.read_json(file)
    try:
        kept: Kept = records.read_as(Kept, content, "the trial")
        measured = MetricValue(value=kept.value)
        if kept.items is not None:
            arrays = read_arrays(file.with_suffix(".npz"))
            items, groups = arrays["items"], arrays.get("groups")
            if _digest(items) != kept.items:
                raise ValueError("not the items it was written with")
            measured = MetricValue(
                value=kept.value, items=items, groups=np.arange(len(items)) if groups is None else groups
            )
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{file} is damaged ({error})", "delete it and call compare() again") from None
    if kept.metric != _read_as(metric):
        raise RunError(f"{file} holds {_words(kept.metric)}, not {_words(_read_as(metric))}", "choose another out=")
    return make_fact(trial, kept, measured)


def _file(folder: Path, trial: Trial) -> Path:
    return folder / "trials" / trial.label / f"seed{trial.seed}.json"


def _digest(items: NDArray[np.float64]) -> str:
    return hashlib.sha256(items.tobytes()).hexdigest()
