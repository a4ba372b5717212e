"""What a study will cost, before it is begun: a few training steps of each arm, timed here."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from lightning_fabric import Fabric
from torch import nn

from lmgraft.data.base import on_device
from lmgraft.errors import LmgraftError
from lmgraft.recipes import Recipe, build_model
from lmgraft.recipes.build import set_up_data
from lmgraft.recipes.record import count_params
from lmgraft.studies.study.cells import Cell, State
from lmgraft.training.features import OnTokens, encode, freeze_encoder
from lmgraft.training.fit import on_gpu, precision_of, quiet
from lmgraft.training.optim import make_optimizer

_STEPS = 3
_AFTER_WARM_UP = 1


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What one run of an arm costs."""

    trained_params: int
    frozen_params: int
    seconds: float
    """Of training, without validation."""
    step_seconds: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """One arm in the plan."""

    arm: str
    runs: int
    missing: int
    estimate: Estimate | None
    why_not: str = ""

    @property
    def seconds(self) -> float | None:
        """Of all its missing runs."""
        if self.estimate is None:
            return None if self.missing else 0.0
        return self.estimate.seconds * self.missing


def plan(
    cells: Sequence[Cell], states: Mapping[Cell, State], *, measure: bool, say: Callable[[str], None]
) -> list[Row]:
    """One row an arm; with `measure` the arms that miss runs are timed by a few steps on random items.

    An arm whose data or block cannot be had says so in its row.
    """
    rows = []
    for arm in dict.fromkeys(cell.arm for cell in cells):
        own = [cell for cell in cells if cell.arm == arm]
        missing = [cell for cell in own if states[cell] != "done"]
        estimate, why_not = None, "" if missing else "all done"
        if missing and measure:
            say(f"timing a few steps of {arm}")
            try:
                estimate = _measure(missing[0].load())
            except LmgraftError as error:
                why_not = error.message
        rows.append(Row(arm=arm, runs=len(own), missing=len(missing), estimate=estimate, why_not=why_not))
    return rows


def _measure(recipe: Recipe) -> Estimate:
    set_up_data(recipe)
    data = recipe.data
    with quiet():
        fabric = Fabric(
            accelerator="cuda" if on_gpu(recipe.train) else "cpu", devices=1, precision=precision_of(recipe.train)
        )
    model: nn.Module = build_model(recipe).to(fabric.device).train()
    trained, frozen = count_params(model)
    batch = on_device(data.example(data.batch_size), fabric.device)
    if recipe.features.cached:  # the encoder's tokens are stored once, and a step begins with them
        with torch.no_grad():
            batch = batch._replace(inputs=encode(model, batch.inputs))
        model = OnTokens(freeze_encoder(model))
    step_model, optimizer = fabric.setup(model, make_optimizer(model, recipe.optim.for_batch(data.batch_size)))
    task = recipe.task(step_model)
    seconds = []
    for _ in range(_STEPS + _AFTER_WARM_UP):
        started = time.perf_counter()
        fabric.backward(task.loss(task.outputs(batch), batch))
        optimizer.step()
        optimizer.zero_grad()
        if fabric.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    step = median(seconds[_AFTER_WARM_UP:])
    steps = len(data.loader("train")) * recipe.train.epochs
    return Estimate(trained_params=trained, frozen_params=frozen, step_seconds=step, seconds=step * steps)
