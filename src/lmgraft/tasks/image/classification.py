"""Image classification: cross-entropy, optionally mixup and cutmix, top-1 accuracy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from pytorch_lightning import LightningModule
from timm.data.mixup import Mixup
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics.classification import MulticlassAccuracy

from lmgraft.errors import RecipeError


class ImageClassification(LightningModule):
    """A model that maps images to logits, its loss and its accuracy.

    Args:
        model: (B, C, H, W) -> (B, num_classes) logits.
        num_classes: Number of classes.
        optimizer: Makes the optimiser from the model.
        schedule: Makes the step-wise schedule from optimiser and number of steps.
        label_smoothing: Share of the target spread over all classes.
        mixup: Alpha of mixup (arXiv 1710.09412); 0 for none.
        cutmix: Alpha of cutmix (arXiv 1905.04899); 0 for none.
    """

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        optimizer: Callable[[nn.Module], Optimizer],
        schedule: Callable[[Optimizer, int], LRScheduler],
        *,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise RecipeError(f"task.label_smoothing={label_smoothing} must lie in [0, 1)")
        if mixup < 0 or cutmix < 0:
            raise RecipeError(f"task.mixup={mixup} and task.cutmix={cutmix} must not be negative")
        self.model = model
        self._optimizer, self._schedule = optimizer, schedule
        self.label_smoothing = label_smoothing
        # Mixup draws from NumPy's global state, which training seeds for every step.
        self._mix = (
            Mixup(mixup_alpha=mixup, cutmix_alpha=cutmix, label_smoothing=label_smoothing, num_classes=num_classes)
            if mixup or cutmix
            else None
        )
        self._soft_loss = SoftTargetCrossEntropy()
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.test_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.test_class_accuracy = MulticlassAccuracy(num_classes, average=None)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels, _ = batch
        if self._mix is None:
            loss = F.cross_entropy(self(images), labels, label_smoothing=self.label_smoothing)
        else:
            images, soft = self._mix(images, labels)
            loss = self._soft_loss(self(images), soft)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> None:
        images, labels, _ = batch
        logits = self(images)
        self.val_accuracy(logits, labels)
        self.log("val/accuracy", self.val_accuracy, prog_bar=True)
        self.log("val/loss", F.cross_entropy(logits, labels), batch_size=len(labels), sync_dist=True)

    def test_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> None:
        images, labels, _ = batch
        logits = self(images)
        self.test_accuracy(logits, labels)
        self.test_class_accuracy(logits, labels)
        self.log("test/accuracy", self.test_accuracy)
        self.log("test/loss", F.cross_entropy(logits, labels), batch_size=len(labels), sync_dist=True)

    def configure_optimizers(self) -> Any:
        optimizer = self._optimizer(self.model)
        schedule = self._schedule(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
