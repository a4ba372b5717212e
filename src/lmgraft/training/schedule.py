"""Learning rates as functions of the step alone, and rates that were cut on the way.

A restored optimiser carries the rates of its checkpoint; `ExactRates` sets what the schedule says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch.optim.lr_scheduler import LambdaLR

from lmgraft.errors import RecipeError
from lmgraft.training.optim import OptimConfig

CUT = 0.2
"""Factor on the learning rate after a loss that was not finite: a fifth, as the paper's small OPT runs needed."""


def make_schedule(
    optimizer: torch.optim.Optimizer,
    total_steps: int,
    config: OptimConfig,
    *,
    epochs: int = 1,
    cuts: Sequence[int] = (),
) -> LambdaLR:
    """Linear warm-up, then a cosine from `lr` to `min_lr`; a function of the step alone.

    Args:
        total_steps: Steps of the whole run.
        config: With `lr` as it is to be (see `OptimConfig.for_batch`).
        epochs: Epochs of the whole run.
        cuts: Steps from which on the rate is `CUT` times what it would be; a step may come more than once.

    Raises:
        RecipeError: If the warm-up is not shorter than the run.
    """
    check_warmup(config, epochs)
    uncut = (_by_step if config.schedule == "step" else _by_epoch)(total_steps, epochs, config)

    def factor(step: int) -> float:
        return uncut(step) * CUT ** sum(step >= cut for cut in cuts)

    return LambdaLR(optimizer, factor)


def check_warmup(config: OptimConfig, epochs: int) -> None:
    """Refuse a warm-up as long as the run.

    Raises:
        RecipeError: Naming both keys.
    """
    if config.warmup_epochs is not None and config.warmup_epochs >= epochs:
        raise RecipeError(
            f"optim.warmup_epochs={config.warmup_epochs} is not below train.epochs={epochs}",
            "train longer or warm up for fewer epochs",
        )


def _by_step(total_steps: int, epochs: int, config: OptimConfig) -> Callable[[int], float]:
    share = config.warmup if config.warmup_epochs is None else config.warmup_epochs / epochs
    warmup = max(1, round(share * total_steps))
    floor = config.min_lr / config.lr

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        done = min(1.0, (step - warmup) / max(1, total_steps - warmup))
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))

    return factor


def _by_epoch(total_steps: int, epochs: int, config: OptimConfig) -> Callable[[int], float]:
    """DeiT steps timm's scheduler behind each epoch with that epoch's number: rates lag by one."""
    warmup = round(config.warmup * epochs) if config.warmup_epochs is None else config.warmup_epochs
    steps = max(1, total_steps // epochs)

    def factor(step: int) -> float:
        epoch = max(step // steps - 1, 0)
        if epoch < warmup:
            rate = config.warmup_lr + epoch * (config.lr - config.warmup_lr) / warmup
        else:
            rate = config.min_lr + 0.5 * (config.lr - config.min_lr) * (1 + math.cos(math.pi * epoch / epochs))
        return rate / config.lr

    return factor


def base_rate(optimizer: torch.optim.Optimizer) -> float:
    """The rate of the next step, without the factors that layers or mappers have on it."""
    group = optimizer.param_groups[0]
    return float(group["lr"] / group.get("lr_scale", 1.0))


class ExactRates(Callback):
    """Before the first step of a launch, every rate is what the schedule says of that step."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for entry in trainer.lr_scheduler_configs:
            schedule = entry.scheduler
            if not isinstance(schedule, LambdaLR):
                continue
            rates = [
                base * factor(schedule.last_epoch)
                for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
            ]
            for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
            schedule._last_lr = rates
