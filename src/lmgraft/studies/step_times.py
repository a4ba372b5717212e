"""Training steps of arms, timed here: in turns with those of a reference arm, so that a busy machine is fair."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from lmgraft import records
from lmgraft.analysis.timing import StepPairs
from lmgraft.data.base import on_device
from lmgraft.errors import LmgraftError
from lmgraft.recipes import Recipe, build_model
from lmgraft.recipes.build import set_up_data
from lmgraft.recipes.record import count_params
from lmgraft.studies.bench.measure import interleave
from lmgraft.studies.engine.progress import Say
from lmgraft.training.features import OnTokens, encode, freeze_encoder
from lmgraft.training.fit import on_gpu, precision_of, quiet
from lmgraft.training.optim import make_optimizer

_ROUNDS = 3
_SECONDS = 2.0
"""Rounds go on for so long, and there are at least `_ROUNDS`."""


@dataclass(frozen=True, kw_only=True)
class StepTimes:
    """Steps of one arm on this machine."""

    trained_params: int
    frozen_params: int
    run_steps: int
    """Of a whole run."""
    batch_size: int
    device: str
    """cpu or cuda."""
    machine: str
    threads: int
    seconds: list[float]
    """Of single steps."""
    reference_seconds: list[float] | None
    """Of the reference arm's, each beside the one in `seconds`; None for the reference arm, or if it cannot be had."""

    @property
    def pairs(self) -> StepPairs | None:
        """The steps in turns."""
        if self.reference_seconds is None:
            return None
        return StepPairs(seconds=self.seconds, reference_seconds=self.reference_seconds, device=self.device)


def time_arms(
    recipes: Mapping[str, Callable[[], Recipe]], reference: str, say: Say
) -> tuple[dict[str, StepTimes], dict[str, str]]:
    """Time a few steps of each arm on its data's example batch, in turns with the reference arm's.

    Two models are held at a time.

    Args:
        recipes: Arm -> loads its recipe.
        reference: The arm whose steps stand beside those of all others.
        say: Told which arm is timed.

    Returns:
        Arm -> its steps, and arm -> why they cannot be timed here.
    """
    times: dict[str, StepTimes] = {}
    why_not: dict[str, str] = {}
    base: dict[str, _Steps] = {}
    for arm in sorted(recipes, key=lambda label: label != reference):
        say(f"timing a few steps of {arm}")
        try:
            steps = _Steps(recipes[arm]())
            seconds = interleave({arm: steps} | base, rounds=_ROUNDS, seconds=_SECONDS, warmup=1)
            times[arm] = steps.times(seconds[arm], seconds.get(reference) if base else None)
            base = {reference: steps} if arm == reference else base
            del steps  # its model goes before the next one comes
        except (LmgraftError, OSError, torch.OutOfMemoryError) as error:
            why_not[arm] = str(error)
    return times, why_not


class _Steps:
    """Training steps of a recipe's model, in its precision, on its data's example batch."""

    def __init__(self, recipe: Recipe) -> None:
        set_up_data(recipe)
        data = recipe.data
        with quiet():
            self._fabric = Fabric(
                accelerator="cuda" if on_gpu(recipe.train) else "cpu", devices=1, precision=precision_of(recipe.train)
            )
        model: nn.Module = build_model(recipe).to(self._fabric.device).train()
        self._params = count_params(model)
        self._batch = on_device(data.typical(data.batch_size), self._fabric.device)
        if recipe.features.cached:  # the encoder's tokens are stored once, and a step begins with them
            with torch.no_grad():
                self._batch = self._batch._replace(inputs=encode(model, self._batch.inputs))
            model = OnTokens(freeze_encoder(model))
        optimizer = make_optimizer(model, recipe.optim.for_batch(data.batch_size))
        step_model, self._optimizer = self._fabric.setup(model, optimizer)
        self._task = recipe.task(step_model, _unused, _unused)
        self._run_steps = len(data.loader("train")) * recipe.train.epochs
        self._batch_size = data.batch_size

    def __call__(self) -> None:
        """One step."""
        self._fabric.backward(self._task.loss(self._task.outputs(self._batch), self._batch))
        self._optimizer.step()
        self._optimizer.zero_grad()
        if self._fabric.device.type == "cuda":
            torch.cuda.synchronize()

    def times(self, seconds: list[float], reference_seconds: list[float] | None) -> StepTimes:
        """What was measured, with the machine it was measured on."""
        on_cuda, environment = self._fabric.device.type == "cuda", records.environment()
        machine = f"{environment['platform']}, {environment['cpu_count']} CPUs"
        return StepTimes(
            trained_params=self._params[0],
            frozen_params=self._params[1],
            run_steps=self._run_steps,
            batch_size=self._batch_size,
            device=self._fabric.device.type,
            machine=f"{machine}, {torch.cuda.get_device_name()}" if on_cuda else machine,
            threads=torch.get_num_threads(),
            seconds=seconds,
            reference_seconds=reference_seconds,
        )


def _unused(*_: Any) -> Any:
    raise AssertionError("the optimiser is made here, without a schedule")
