"""AdamW in parameter groups, and a cosine schedule with warm-up."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from lmgraft.errors import RecipeError


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW and its schedule."""

    lr: float = 1e-3
    """Peak learning rate, for the batch size as given: it is not scaled."""
    weight_decay: float = 0.05
    """Decoupled weight decay; none on vectors, biases and what the model's no_weight_decay() names."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.999
    """Decay of the second moment."""
    warmup: float = 0.05
    """Share of all steps in which the rate rises linearly to its peak."""
    min_lr: float = 1e-5
    """Learning rate at the end of the cosine."""
    layer_decay: float | None = None
    """Factor by which each earlier encoder layer learns slower; None for one rate."""

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise RecipeError(f"optim.lr={self.lr} must be positive")
        if not 0 <= self.warmup < 1:
            raise RecipeError(f"optim.warmup={self.warmup} is a share of all steps, from 0 to below 1")


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over what is trained; frozen tensors are in no group."""
    exempt: Any = getattr(model, "no_weight_decay", set)()
    if config.layer_decay is None:
        groups = param_groups_weight_decay(model, config.weight_decay, no_weight_decay_list=exempt)
    else:
        groups = param_groups_layer_decay(
            model, config.weight_decay, no_weight_decay_list=exempt, layer_decay=config.layer_decay
        )
        for group in groups:
            group["lr"] = config.lr * group["lr_scale"]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2))


def make_schedule(optimizer: torch.optim.Optimizer, total_steps: int, config: OptimConfig) -> LambdaLR:
    """Linear warm-up, then a cosine from `lr` to `min_lr`; a function of the step alone."""
    warmup = max(1, round(config.warmup * total_steps))
    floor = config.min_lr / config.lr

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        done = min(1.0, (step - warmup) / max(1, total_steps - warmup))
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))

    return LambdaLR(optimizer, factor)
