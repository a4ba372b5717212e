"""`lmgraft.compare`: a study of a training loop of one's own.

<out>/trials/<arm>/seed<k>.json   what a call of the loop returned and cost, and the block it had
<out>/trials/<arm>/seed<k>.npz    the metric of each test item, where the loop returned it
<out>/results.json                as of a study
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lmgraft import records
from lmgraft.analysis.metrics import Metric, find_metric
from lmgraft.checkpoint.digest import json_digest, tensor_digest
from lmgraft.errors import RecipeError, RunError
from lmgraft.graft import GraftConfig, find_graft
from lmgraft.recipes import ARMS
from lmgraft.recipes.grafted import graft_arm
from lmgraft.recipes.record import count_params
from lmgraft.studies.study.arms import ArmSpec
from lmgraft.studies.study.assemble import assemble
from lmgraft.studies.study.config import Study, StudyConfig, check_study
from lmgraft.studies.study.facts import Fact
from lmgraft.studies.study.results import StudyResult
from lmgraft.training.items import read_arrays, write_arrays

Outcome: TypeAlias = "float | Mapping[str, Any]"
"""The metric on the test items, or {"value": it, "items": (N,) the metric of each item}."""


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

    def graft(self, model: nn.Module) -> nn.Module:
        """Put this arm's block into `model`, in place, and return it; nothing for plain.

        Call it once, before the optimiser is made. It draws from a generator of its own: what you
        draw afterwards is the same in every arm.

        Raises:
            RunError: If it is called twice.
            LmgraftError: If the block cannot be had or the model cannot take it.
        """
        if self.facts:
            raise RunError(f"trial.graft was called twice for {self.label}, seed {self.seed}", "graft one model a call")
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


def compare(
    train: Callable[[Trial], Outcome],
    *,
    llm: str = "smollm2-135m",
    layer: int | tuple[int, ...] = -1,
    arms: Sequence[str] | Mapping[str, Mapping[str, Any]] = ("plain", "llm", "random_frozen", "mlp"),
    seeds: int | Sequence[int] = 5,
    metric: str | Metric = "accuracy",
    contrasts: Sequence[tuple[str, str]] | None = None,
    reference: str | None = None,
    margin: float | None = None,
    confidence: float = 0.95,
    out: str | Path | None = None,
    question: str = "Does the frozen LLM block help?",
    notes: Sequence[str] = (),
    say: Callable[[str], None] | None = print,
    **graft_options: Any,
) -> StudyResult:
    """Call a training loop for every arm and seed, and say what that shows.

        def train(trial):
            model = trial.graft(timm.create_model("vit_small_patch16_224", num_classes=10))
            ...                                  # your loop; draw from torch's generators or trial.seed
            return test_accuracy

        result = lmgraft.compare(train, llm="Qwen/Qwen2.5-1.5B", seeds=5, out="runs/mine")
        print(*result.verdict, sep="\\n")

    Args:
        train: Makes a model, calls `trial.graft` on it, trains, and returns the metric on test items that
            chose nothing; or a mapping with "value" and "items", (N,) numbers in the test set's order,
            which adds the bootstrap over items.
        llm: Source of the block.
        layer: Its layer, or several consecutive ones.
        arms: Kinds of arms, or label -> {"arm": kind, and what of `graft_options`, llm and layer it changes}.
        seeds: How many, from 0, or which; at least 2, and 5 for a verdict.
        metric: accuracy, top5 or nll, or a `Metric` of your own.
        contrasts: Planned pairs (arm, reference); by default llm against plain, random_frozen and mlp.
        reference: The arm that all others are held against; by default plain.
        margin: What counts as equal, in the metric's unit; by default the metric's.
        confidence: Of intervals; tests are at 1 minus this.
        out: Folder that keeps finished trials, so that the same call goes on where it stopped.
        question: For the report.
        notes: Cautions for the report.
        say: Told what happens; None is silent.
        graft_options: Further fields of `GraftConfig`: at, residual, final_norm ...

    Returns:
        The comparison; `lmgraft.report.study_report.write_report(result, folder)` writes its page.

    Raises:
        RecipeError: If arms, seeds or metric do not fit, before anything is trained.
        RunError: If a trial returns what is no number, models start from different weights for one
            seed, or `out` holds another comparison.
    """
    say = say or _silent
    if not callable(train):
        raise RecipeError(f"compare() takes a training loop, got {train!r}", "lmgraft study takes a recipe")
    measure = find_metric(metric) if isinstance(metric, str) else metric
    given = arms if isinstance(arms, Mapping) else {name: {} for name in arms}
    config = StudyConfig(
        recipe="a training loop of its own",
        question=question,
        arms={label: {_key(name): value for name, value in body.items()} for label, body in given.items()},
        seeds=seeds if isinstance(seeds, int) else list(seeds),
        reference=reference,
        contrasts=None if contrasts is None else [list(pair) for pair in contrasts],
        margin=margin,
        confidence=confidence,
        overrides={_key(name): value for name, value in {"llm": llm, "layer": layer, **graft_options}.items()},
        notes=list(notes),
    )
    study = check_study(config, (), name="comparison", where="compare()", metric=measure)
    configs = {label: _graft_config(label, spec, study.overrides) for label, spec in study.arms.items()}
    folder = None if out is None else Path(out)
    if folder is not None:
        _claim(folder, study, configs)
    facts: list[Fact] = []
    for seed in study.seeds:
        for label, spec in study.arms.items():
            trial = Trial(label=label, arm=spec.arm, seed=seed, config=configs[label])
            fact = None if folder is None else _kept(folder, trial)
            if fact is None:
                say(f"{label}, seed {seed}")
                fact = _call(train, trial, measure)
                if folder is not None:
                    _keep(folder, trial, fact)
                say(f"{label}, seed {seed}: {measure.name} {fact.value:.4f} in {fact.seconds:.0f} s")
            facts.append(fact)
            _check_same_start(facts)
    result = assemble(study, facts, ())
    if folder is not None:
        records.write_json(folder / "results.json", asdict(result))
    return result


def _key(name: str) -> str:
    return name if name in ("arm", "question") else f"graft.{name}"


def _graft_config(label: str, spec: ArmSpec, overrides: Mapping[str, Any]) -> GraftConfig:
    if ARMS[spec.arm].equal_flops is not None:
        raise RecipeError(
            f"compare() cannot enlarge a model that your loop makes: arm {label}",
            "make a larger model in your loop, in a second arm of kind plain",
        )
    fields = {key.removeprefix("graft."): value for key, value in {**overrides, **spec.overrides}.items()}
    try:
        return GraftConfig(**fields)
    except TypeError as error:
        raise RecipeError(f"compare(), arm {label}: {error}", "graft options are fields of GraftConfig") from None


def _call(train: Callable[[Trial], Outcome], trial: Trial, metric: Metric) -> Fact:
    random.seed(trial.seed)
    np.random.seed(trial.seed)  # what users' augmentations draw from
    torch.manual_seed(trial.seed)
    started = time.monotonic()
    outcome = train(trial)
    seconds = time.monotonic() - started
    name = f"{trial.label}, seed {trial.seed}"
    if not trial.facts:
        raise RunError(f"the training loop did not call trial.graft for {name}", "model = trial.graft(model)")
    items = None
    if isinstance(outcome, Mapping):
        if "value" not in outcome and "items" not in outcome:
            raise RunError(f"the training loop returned {sorted(outcome)} for {name}", 'return {"items": ...}')
        if outcome.get("items") is not None:
            items = np.asarray(outcome["items"], dtype=np.float64)
            if items.ndim != 1 or not len(items) or not np.isfinite(items).all():
                raise RunError(f"the items of {name} are no finite numbers in one row", "one number for each test item")
        outcome = outcome.get("value", None if items is None else items.mean())
    try:
        value = float(outcome)
    except (TypeError, ValueError):
        raise RunError(f"the training loop returned {outcome!r} for {name}", f"return its {metric.title}") from None
    if not np.isfinite(value):
        raise RunError(f"the training loop returned {value} for {name}", "did its loss stay finite?")
    if items is not None and abs(items.mean() - value) > 1e-6 * max(1.0, abs(value)):
        raise RunError(f"{name}: the value is {value}, its items' mean {items.mean()}", "give one metric in both")
    return _fact(trial, value, items, seconds, trial.facts)


def _fact(
    trial: Trial, value: float, items: NDArray[np.float64] | None, seconds: float, facts: Mapping[str, Any]
) -> Fact:
    return Fact(
        arm=trial.label,
        seed=trial.seed,
        learning_rate=None,
        in_grid=None,
        value=value,
        items=items,
        val_accuracy=None,
        by_class={},
        by_corruption={},
        trained_params=facts["trained_params"],
        frozen_params=facts["frozen_params"],
        seconds=seconds,
        peak_memory=None,
        position=trial.config.at,
        block=facts["block"],
        curves={},
        test_items=0 if items is None else len(items),
        record={"encoder": {"digest": facts["encoder"]}, "environment": records.environment()},
    )


def _claim(folder: Path, study: Study, configs: Mapping[str, GraftConfig]) -> None:
    """Write arms.json, or make sure that the arms there are these."""
    file = folder / "arms.json"
    kinds = {label: study.arms[label].arm for label in configs}
    now: dict[str, Any] = {
        label: {"arm": kinds[label]} | ({} if ARMS[kinds[label]].block is None else asdict(config))
        for label, config in configs.items()
    }
    now = json.loads(json.dumps(now))  # as it comes back
    before = records.read_json(file) if file.exists() else {}
    changed = [label for label in now if label in before and before[label] != now[label]]
    if changed:
        raise RunError(f"{folder} holds another comparison: arm {changed[0]} was made otherwise", "choose another out=")
    records.write_json(file, before | now)
    records.write_text(folder / "study.yaml", study.yaml)


def _keep(folder: Path, trial: Trial, fact: Fact) -> None:
    file = folder / "trials" / trial.label / f"seed{trial.seed}.json"
    if fact.items is not None:
        write_arrays(file.with_suffix(".npz"), {"items": fact.items})
    digest = None if fact.items is None else hashlib.sha256(fact.items.tobytes()).hexdigest()
    content = {"value": fact.value, "seconds": fact.seconds, "items": digest, **trial.facts}
    records.write_json(file, content | {"environment": fact.record["environment"]})


def _kept(folder: Path, trial: Trial) -> Fact | None:
    file = folder / "trials" / trial.label / f"seed{trial.seed}.json"
    if not file.exists():
        return None
    content = records.read_json(file)
    items = None
    try:
        if content["items"] is not None:
            items = read_arrays(file.with_suffix(".npz"))["items"]
            if hashlib.sha256(items.tobytes()).hexdigest() != content["items"]:
                raise ValueError("not the items it was written with")
        fact = _fact(trial, content["value"], items, content["seconds"], content)
        fact.record["environment"] = content["environment"]
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{file} is damaged ({error})", "delete it and call compare() again") from None
    return fact


def _check_same_start(facts: Sequence[Fact]) -> None:
    """The pairing by seed is what makes few seeds tell something."""
    last = facts[-1]
    for fact in facts[:-1]:
        if fact.seed == last.seed and fact.record["encoder"] != last.record["encoder"]:
            raise RunError(
                f"{fact.arm} and {last.arm} started from different weights for seed {last.seed}",
                "make the model first thing in your loop, or seed torch by trial.seed before it",
            )


def _silent(text: str) -> None:
    """Says nothing."""
