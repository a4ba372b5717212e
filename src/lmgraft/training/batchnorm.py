"""Momentum of batch norms as a function of the epoch alone. Knows no model."""

from __future__ import annotations

from dataclasses import dataclass

from pytorch_lightning import Callback, LightningModule, Trainer
from torch.nn.modules.batchnorm import _BatchNorm

from lmgraft.errors import RecipeError


@dataclass(frozen=True, kw_only=True)
class MomentumConfig:
    """max(start x factor ^ (epoch // every), floor); the defaults are VoteNet's, which SQA3D trains with."""

    start: float = 0.5
    """Weight of a batch in the running means at first (torch's default: 0.1)."""
    factor: float = 0.5
    """What it is multiplied by."""
    every: int = 20
    """After how many epochs."""
    floor: float = 0.001
    """What it does not fall below."""

    def __post_init__(self) -> None:
        for name in ("start", "factor", "floor"):
            if not 0 < getattr(self, name) <= 1:
                raise RecipeError(f"train.batchnorm_momentum.{name}={getattr(self, name)} must be above 0, at most 1")
        if self.every < 1:
            raise RecipeError(f"train.batchnorm_momentum.every={self.every} must be at least 1")

    def at(self, epoch: int) -> float:
        """The momentum in an epoch, counted from 0."""
        return max(self.start * self.factor ** (epoch // self.every), self.floor)


class BatchNormMomentum(Callback):
    """Every batch norm has the epoch's momentum, also after a restart within the epoch."""

    def __init__(self, config: MomentumConfig) -> None:
        self.config = config

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for module in pl_module.modules():
            if isinstance(module, _BatchNorm):
                module.momentum = self.config.at(trainer.current_epoch)
