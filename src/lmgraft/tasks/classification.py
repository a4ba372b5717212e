"""Classification of images, clips or point clouds: cross-entropy, mixup and cutmix, top-1 and top-5 accuracy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmgraft.contracts import Metric
from lmgraft.data.base import Data, SplitName
from lmgraft.data.labelled import LabelledBatch, LabelledData
from lmgraft.errors import RecipeError
from lmgraft.tasks.answers import best
from lmgraft.tasks.base import MakeOptimizer, MakeSchedule, Task
from lmgraft.tasks.influence import mean_class_accuracy
from lmgraft.tasks.items import Items

# A tenth of a share is ten points: a margin of 0.5, meant as half a point, would call anything equal.
ACCURACY = Metric(
    name="accuracy", title="test accuracy", higher_is_better=True, scale=100, unit="%", difference_unit="points",
    margin=0.005, low=0.0, high=1.0, largest_margin=0.1,
)  # fmt: skip
TOP5 = Metric(
    name="top5", title="test top-5 accuracy", higher_is_better=True, scale=100, unit="%", difference_unit="points",
    margin=0.005, low=0.0, high=1.0, largest_margin=0.1,
)  # fmt: skip
NLL = Metric(
    name="nll", title="test cross-entropy", higher_is_better=False, scale=1, unit="nats", difference_unit="nats",
    margin=0.01, low=0.0, largest_margin=1.0,
)  # fmt: skip
CLASS_MEAN = Metric(
    name="class_mean", title="mean of the classes' test accuracies", higher_is_better=True, scale=100, unit="%",
    difference_unit="points", margin=0.005, low=0.0, high=1.0, largest_margin=0.1,
)  # fmt: skip


class Classification(Task):
    """A model that maps items to logits, its loss and its accuracy.

    Top-5 accuracy comes with it where there are more than five classes, the mean of the classes' accuracies where the
    data report it.

    Args:
        model: (B, ...) -> (B, num_classes) logits.
        data: The items and their classes.
        optimizer: Makes the optimiser from the model.
        schedule: Makes the step-wise schedule from optimiser and number of steps.
        label_smoothing: Share of the target spread over all classes.
        mixup: Alpha of mixup (arXiv 1710.09412); 0 for none.
        cutmix: Alpha of cutmix (arXiv 1905.04899); 0 for none.
        mixup_prob: Share of batches that are mixed at all.
        switch_prob: Share of those that cutmix mixes, where both are on.
        mixup_mode: What shares one draw: the batch, a pair of items, or each item by itself ("elem").
        views: What is averaged where an item is shown several times: logits, or the classes' probabilities.
    """

    data_type: ClassVar[type[Data]] = LabelledData  # type: ignore[type-abstract]
    packages: ClassVar[tuple[str, ...]] = ("timm",)
    agreement_metric: ClassVar[Metric] = ACCURACY

    def __init__(
        self,
        model: nn.Module,
        data: LabelledData,
        optimizer: MakeOptimizer,
        schedule: MakeSchedule,
        *,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        mixup_prob: float = 1.0,
        switch_prob: float = 0.5,
        mixup_mode: Literal["batch", "pair", "elem"] = "batch",
        views: Literal["logits", "probabilities"] = "logits",
    ) -> None:
        super().__init__(model, data, optimizer, schedule)
        if not 0 <= label_smoothing < 1:
            raise RecipeError(f"task.label_smoothing={label_smoothing} must lie in [0, 1)")
        if mixup < 0 or cutmix < 0:
            raise RecipeError(f"task.mixup={mixup} and task.cutmix={cutmix} must not be negative")
        for key, share in {"mixup_prob": mixup_prob, "switch_prob": switch_prob}.items():
            if not 0 <= share <= 1:
                raise RecipeError(f"task.{key}={share} must lie in [0, 1]")
        self.label_smoothing, self._views = label_smoothing, views
        self._class_names = data.class_names
        self._mix: Any = None
        if mixup or cutmix:
            from timm.data.mixup import Mixup

            # Mixup draws from NumPy's global state, which training seeds for every step.
            self._mix = Mixup(
                mixup_alpha=mixup,
                cutmix_alpha=cutmix,
                prob=mixup_prob,
                switch_prob=switch_prob,
                mode=mixup_mode,
                label_smoothing=label_smoothing,
                num_classes=data.num_classes,
            )

    @classmethod
    def metrics(cls, data: Data | None = None) -> tuple[Metric, ...]:
        few = isinstance(data, LabelledData) and data.num_classes <= 5
        further = (CLASS_MEAN,) if data is None or getattr(data, "report_class_mean", False) else ()
        return (ACCURACY, *further, NLL) if few else (ACCURACY, *further, TOP5, NLL)

    def finish(self, items: Items, split: SplitName) -> Items:
        """With the influence of each item on the mean over classes, where the data report it."""
        if "class_mean" not in self.scored or "by_class" not in items:
            return items
        return items | {"class_mean": mean_class_accuracy(items["accuracy"], items["by_class"])}

    def inputs(self, batch: LabelledBatch) -> tuple[Tensor]:
        return (batch.inputs,)

    def forward(self, *inputs: Any) -> Tensor:
        out = self.model(*inputs)
        logits: Tensor = getattr(out, "logits", out)  # transformers' classifiers return them by name
        return logits

    def check(self, batch_size: int) -> None:
        """Refuse an odd batch where items are mixed in pairs."""
        if self._mix is not None and batch_size % 2:
            raise RecipeError(
                f"data.batch_size={batch_size} is odd, and mixup and cutmix mix pairs",
                "make it even, or set task.mixup and task.cutmix to 0",
            )

    def mixed(self, batch: LabelledBatch) -> LabelledBatch:
        """By mixup or cutmix, where the recipe has them; labels are then shares (B, num_classes)."""
        if self._mix is None:
            return batch
        # timm cuts along the third and fourth axes: the frames of a clip (B, C, T, H, W) go with its channels.
        images = batch.inputs.flatten(1, -3) if batch.inputs.dim() > 4 else batch.inputs
        inputs, shares = self._mix(images, batch.labels)
        return batch._replace(inputs=inputs.view_as(batch.inputs), labels=shares)

    def loss(self, out: Tensor, batch: LabelledBatch) -> Tensor:
        """Cross-entropy with the label, smoothed in training, or with the shares of a mixed batch."""
        if batch.labels.dim() == 2:
            return torch.sum(-batch.labels * F.log_softmax(out, dim=-1), dim=-1).mean()
        return F.cross_entropy(out, batch.labels, label_smoothing=self.label_smoothing if self.training else 0.0)

    def of_views(self, out: Tensor, mean: Callable[[Any], Any]) -> Tensor:
        """The mean of the logits, or the logarithm of the mean probabilities, which are logits too."""
        if self._views == "logits":
            return super().of_views(out, mean)  # type: ignore[no-any-return]
        shares: Tensor = mean(out.double().softmax(1))
        return shares.clamp(min=1e-300).log().to(out.dtype)

    def score(self, out: Tensor, batch: LabelledBatch) -> dict[str, Tensor]:
        """Whether each item's class came first, or among the first five; its cross-entropy; the first class.

        Of labels as shares (B, num_classes) every class with one is right, as in ReaL (arXiv 2006.07159): the rank is
        that of the best of them, the cross-entropy that of their summed probability.
        """
        labels, predicted = batch.labels, out.argmax(1)
        columns = {"predicted": predicted.to(torch.int32)}
        if labels.dim() == 2:
            wrong = labels <= 0
            right = out.float().masked_fill(wrong, -torch.inf)
            best, hit = right.amax(1, keepdim=True), ~wrong.gather(1, predicted[:, None])[:, 0]
            columns["nll"] = (out.float().logsumexp(1) - right.logsumexp(1)).clamp(min=0)
        else:
            best, hit = out.gather(1, labels[:, None]), predicted == labels
            columns["nll"] = F.cross_entropy(out.float(), labels, reduction="none")
            columns["by_class"] = labels.to(torch.int32)
        columns["accuracy"] = hit.float()
        if "top5" in self.scored:
            columns["top5"] = ((out > best).sum(1) < 5).float()
        return columns

    def targets(self, batch: LabelledBatch) -> Tensor:
        """One-hot labels."""
        return F.one_hot(batch.labels, len(self._class_names)).float()

    def agreement(self, predicted: Tensor, targets: Tensor) -> float:
        """The share of items whose largest column is their class."""
        return float(predicted.argmax(1).eq(targets.argmax(1)).double().mean())

    def predict(self, out: Tensor, batch: LabelledBatch) -> list[dict[str, Any]]:
        """Each item's most likely classes, up to five, with their probabilities."""
        shares, classes = out.float().softmax(1).topk(min(5, out.shape[1]))
        return [
            {self._class_names[c]: round(p, 6) for c, p in zip(row, probabilities, strict=True)}
            for row, probabilities in zip(classes.tolist(), shares.tolist(), strict=True)
        ]

    def right(self, batch: LabelledBatch) -> list[str]:
        """The class of each item; of several its item may have, all of them."""
        if batch.labels.dim() == 2:
            return best(batch.labels, self._class_names)
        return [self._class_names[label] for label in batch.labels.tolist()]
