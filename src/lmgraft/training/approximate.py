"""Testing a model whose graft is approximate, its error measured on the first test batch."""

from __future__ import annotations

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from torch import nn

from lmgraft.errors import ApproximationError, RunError
from lmgraft.graft import ApproximationReport, approximate, find_grafts
from lmgraft.tasks.base import Task


class ApproximateTest(Callback):
    """Switches the task's `model` before its first test batch, on the device and in the precision of the test.

    Args:
        mode: See `lmgraft.approximate`.
    """

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.report: ApproximationReport | None = None

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self.report is not None:
            return
        model: nn.Module = pl_module.model  # type: ignore[assignment]
        if not find_grafts(model):
            raise RunError("the model of this run has no graft", "leave out --approximate")
        with trainer.precision_plugin.forward_context():
            assert isinstance(pl_module, Task)
            self.report = approximate(model, pl_module.inputs(batch), self.mode)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        grafts = find_grafts(pl_module.model)  # type: ignore[arg-type]
        if any(inserted.compute.approximation.mode is None for inserted in grafts.values()):
            raise ApproximationError("the block changed during the test, which made it exact again", "test it again")
