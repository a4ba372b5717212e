"""Momentum of batch norms as a function of the epoch alone. Knows no model."""

from __future__ import annotations

from pytorch_lightning import Callback, LightningModule, Trainer
from torch.nn.modules.batchnorm import _BatchNorm

from lmgraft.training.config import MomentumConfig


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
