"""Image classification: cross-entropy, optionally mixup and cutmix, top-1 and top-5 accuracy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pytorch_lightning import LightningModule
from timm.data.mixup import Mixup
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from lmgraft.errors import RecipeError


class ImageClassification(LightningModule):
    """A model that maps images to logits, its loss and its accuracy.

    Top-5 accuracy comes with it where there are more than five classes. All metrics are over all
    processes, every image once.

    Args:
        model: (B, C, H, W) -> (B, num_classes) logits.
        num_classes: Number of classes.
        optimizer: Makes the optimiser from the model.
        schedule: Makes the step-wise schedule from optimiser and number of steps.
        label_smoothing: Share of the target spread over all classes.
        mixup: Alpha of mixup (arXiv 1710.09412); 0 for none.
        cutmix: Alpha of cutmix (arXiv 1905.04899); 0 for none.
        mixup_prob: Share of batches that are mixed at all.
        switch_prob: Share of those that cutmix mixes, where both are on.
        mixup_mode: What shares one draw: the batch, a pair of images, or each image by itself ("elem").
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
        mixup_prob: float = 1.0,
        switch_prob: float = 0.5,
        mixup_mode: Literal["batch", "pair", "elem"] = "batch",
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise RecipeError(f"task.label_smoothing={label_smoothing} must lie in [0, 1)")
        if mixup < 0 or cutmix < 0:
            raise RecipeError(f"task.mixup={mixup} and task.cutmix={cutmix} must not be negative")
        for key, share in {"mixup_prob": mixup_prob, "switch_prob": switch_prob}.items():
            if not 0 <= share <= 1:
                raise RecipeError(f"task.{key}={share} must lie in [0, 1]")
        self.model = model
        self._optimizer, self._schedule = optimizer, schedule
        self.label_smoothing = label_smoothing
        # Mixup draws from NumPy's global state, which training seeds for every step.
        self._mix = (
            Mixup(
                mixup_alpha=mixup,
                cutmix_alpha=cutmix,
                prob=mixup_prob,
                switch_prob=switch_prob,
                mode=mixup_mode,
                label_smoothing=label_smoothing,
                num_classes=num_classes,
            )
            if mixup or cutmix
            else None
        )
        self._soft_loss = SoftTargetCrossEntropy()
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.test_accuracy = MulticlassAccuracy(num_classes, average="micro")
        top5 = num_classes > 5
        self.val_top5 = MulticlassAccuracy(num_classes, top_k=5, average="micro") if top5 else None
        self.test_top5 = MulticlassAccuracy(num_classes, top_k=5, average="micro") if top5 else None
        self.val_loss, self.test_loss = MeanMetric(), MeanMetric()
        self.test_class_accuracy = MulticlassAccuracy(num_classes, average=None)

    def forward(self, images: Tensor) -> Tensor:
        out = self.model(images)
        logits: Tensor = getattr(out, "logits", out)  # transformers' classifiers return them by name
        return logits

    def check_batch_size(self, size: int) -> None:
        """Refuse a training batch that this task cannot take.

        Raises:
            RecipeError: If it is odd, where images are mixed in pairs.
        """
        if self._mix is not None and size % 2:
            raise RecipeError(
                f"data.batch_size={size} is odd, and mixup and cutmix mix pairs",
                "make it even, or set task.mixup and task.cutmix to 0",
            )

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels, _ = batch
        if self._mix is None:
            loss = F.cross_entropy(self(images), labels, label_smoothing=self.label_smoothing)
        else:
            images, soft = self._mix(images, labels)
            loss = self._soft_loss(self(images), soft)
        self.log("train/loss", loss, prog_bar=True, sync_dist=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> None:
        images, labels, _ = batch
        logits = self(images)
        self.val_accuracy(logits, labels)
        self.log("val/accuracy", self.val_accuracy, prog_bar=True)
        self._log_more("val", logits, labels, self.val_top5, self.val_loss)

    def test_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Count, and return for each image its label, the class it was taken for, its cross-entropy and its rank.

        `rank` is that of the right class, from 0: below 5 it is among the top five.
        """
        images, labels, _ = batch
        logits = self(images)
        self.test_accuracy(logits, labels)
        self.test_class_accuracy(logits, labels)
        self.log("test/accuracy", self.test_accuracy)
        self._log_more("test", logits, labels, self.test_top5, self.test_loss)
        right = logits.gather(1, labels[:, None])
        return {
            "label": labels.to(torch.int32),
            "predicted": logits.argmax(1).to(torch.int32),
            "nll": F.cross_entropy(logits.float(), labels, reduction="none"),
            "rank": (logits > right).sum(1).to(torch.int32),
        }

    def _log_more(
        self, split: str, logits: Tensor, labels: Tensor, top5: MulticlassAccuracy | None, loss: MeanMetric
    ) -> None:
        if top5 is not None:
            top5(logits, labels)
            self.log(f"{split}/top5", top5)
        loss(F.cross_entropy(logits, labels), len(labels))
        self.log(f"{split}/loss", loss)

    def configure_optimizers(self) -> Any:
        optimizer = self._optimizer(self.model)
        schedule = self._schedule(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
