"""A running mean of what is trained, kept beside the weights and saved with them."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lmgraft.errors import RunError


class KeepEma(Callback):
    """After each optimiser step: mean = decay mean + (1 - decay) weights (DeiT's ModelEma, decay .99996).

    Only what is trained, and buffers, have a mean; a frozen block is neither copied nor saved.

    Args:
        decay: Weight of the mean so far.
        evaluate: Whether validation sees the mean instead of the weights. The paper evaluates the weights.
    """

    def __init__(self, decay: float, evaluate: bool) -> None:
        self.decay, self.evaluate = decay, evaluate
        self.mean: dict[str, Tensor] = {}
        self._weights: dict[str, Tensor] = {}
        self._steps = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        now = _averaged(pl_module)
        self.mean = {name: self.mean[name].to(t.device) if name in self.mean else t.clone() for name, t in now.items()}
        self._steps = trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        stepped, self._steps = trainer.global_step != self._steps, trainer.global_step
        if not stepped:
            return
        for name, tensor in _averaged(pl_module).items():
            mean = self.mean[name]
            if tensor.is_floating_point():
                mean.mul_(self.decay).add_(tensor, alpha=1 - self.decay)
            else:
                mean.copy_(tensor)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.evaluate and self.mean:
            self._weights = {name: tensor.clone() for name, tensor in _averaged(pl_module).items()}
            _set(pl_module, self.mean)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._weights:
            _set(pl_module, self._weights)
            self._weights = {}

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.mean = dict(state_dict["mean"])


def load_mean(module: nn.Module, checkpoint: dict[str, Any]) -> None:
    """Put the running mean of a checkpoint into the module whose weights it is the mean of.

    Raises:
        RunError: If the checkpoint has none.
    """
    kept: dict[str, Any] = checkpoint.get("callbacks", {}).get(KeepEma.__qualname__, {})
    if not kept.get("mean"):
        raise RunError("the checkpoint holds no running mean", "train with train.ema, or set train.evaluate_ema=false")
    _set(module, kept["mean"])


def _averaged(module: nn.Module) -> dict[str, Tensor]:
    """What is trained, and buffers, under the names of `state_dict()`."""
    frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    return {name: tensor for name, tensor in module.state_dict().items() if name not in frozen}


@torch.no_grad()
def _set(module: nn.Module, values: dict[str, Tensor]) -> None:
    for name, tensor in _averaged(module).items():
        tensor.copy_(values[name])
