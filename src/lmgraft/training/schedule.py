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
from lmgraft.training.config import OptimConfig

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
    """The warm-up and what `config.schedule` says comes behind it; a function of the step alone.

    Args:
        total_steps: Steps of the whole run.
        config: With `lr` as it is to be (see `OptimConfig.for_batch`).
        epochs: Epochs of the whole run.
        cuts: Steps from which on the rate is `CUT` times what it would be; a step may come more than once.

    Raises:
        RecipeError: If the warm-up is not shorter than the run.
    """
    check_warmup(config, epochs)
    uncut = (_by_epoch if config.schedule == "epoch" else _by_step)(total_steps, epochs, config)

    def factor(step: int) -> float:
        return uncut(step) * CUT ** sum(step >= cut for cut in cuts)

    return LambdaLR(optimizer, factor)


def check_warmup(config: OptimConfig, epochs: int) -> None:
    """Refuse a warm-up as long as the run, or as the fall of the rate.

    Raises:
        RecipeError: Naming both keys.
    """
    lengths = {"train.epochs": epochs} | ({"optim.decay_epochs": config.decay_epochs} if config.decay_epochs else {})
    for key, length in lengths.items():
        if config.warmup_epochs is not None and config.warmup_epochs >= length:
            raise RecipeError(
                f"optim.warmup_epochs={config.warmup_epochs} is not below {key}={length}",
                "train longer or warm up for fewer epochs",
            )


def _by_step(total_steps: int, epochs: int, config: OptimConfig) -> Callable[[int], float]:
    warmup = _warmup_steps(total_steps, epochs, config)
    rise, fall = _RISES[config.warmup_rise], _fall(total_steps, epochs, warmup, config)
    return lambda step: rise(step, warmup) if step < warmup else fall(step)


def _warmup_steps(total_steps: int, epochs: int, config: OptimConfig) -> int:
    if config.warmup_steps is not None and config.warmup_steps >= total_steps:
        raise RecipeError(
            f"optim.warmup_steps={config.warmup_steps} is not below the {total_steps} steps of the run",
            "train longer or warm up for fewer steps",
        )
    share = config.warmup if config.warmup_epochs is None else config.warmup_epochs / epochs
    steps = round(share * total_steps) if config.warmup_steps is None else config.warmup_steps
    # The cosine has always had a first step at its peak.
    return max(1, steps) if config.schedule == "step" and config.warmup_rise == "from_first" else steps


_RISES: dict[str, Callable[[int, int], float]] = {
    "from_first": lambda step, warmup: (step + 1) / warmup,
    "from_zero": lambda step, warmup: step / warmup,
    "zero_to_peak": lambda step, warmup: step / max(1, warmup - 1),
}


def _fall(total_steps: int, epochs: int, warmup: int, config: OptimConfig) -> Callable[[int], float]:
    """What the rate is multiplied by behind the warm-up."""
    steps = max(1, total_steps // epochs)
    end = total_steps if config.decay_epochs is None else steps * config.decay_epochs
    drops = config.drop_steps or [epoch * steps for epoch in config.drop_epochs]
    floor = config.min_lr / config.lr

    def done(step: int) -> float:
        return min(1.0, (step - warmup) / max(1, end - warmup))

    falls: dict[str, Callable[[int], float]] = {
        "step": lambda step: floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done(step))),
        "linear": lambda step: floor + (1 - floor) * (1 - done(step)),
        "drops": lambda step: config.drop_factor ** sum(step >= drop for drop in drops),
    }
    falls["constant"] = falls["drops"]  # of which it has none
    return falls[config.schedule]


def _by_epoch(total_steps: int, epochs: int, config: OptimConfig) -> Callable[[int], float]:
    """DeiT steps timm's scheduler behind each epoch with that epoch's number: rates lag by one."""
    warmup = round(config.warmup * epochs) if config.warmup_epochs is None else config.warmup_epochs
    steps = max(1, total_steps // epochs)
    end = config.decay_epochs or epochs

    def factor(step: int) -> float:
        epoch = max(step // steps - 1, 0)
        if epoch < warmup:
            rate = config.warmup_lr + epoch * (config.lr - config.warmup_lr) / warmup
        else:
            angle = math.pi * min(epoch, end) / end
            rate = config.min_lr + 0.5 * (config.lr - config.min_lr) * (1 + math.cos(angle))
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
