"""What every task is: a model's inputs, its loss, and what it reaches on each item.

A task is the contract between a family of data and everything that trains, compares and reports: those call the
methods here and read no batch themselves. Optimiser and schedule come in as callables: a task does not know how it is
trained.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils._pytree import tree_map_only

from lmgraft.contracts import Metric
from lmgraft.contracts.metric import by_name
from lmgraft.data.base import Data, SplitName, check_batch
from lmgraft.errors import RecipeError
from lmgraft.tasks.items import Items, NotFiniteColumnError, check_columns, joined, values_of

MakeOptimizer = Callable[[nn.Module], Optimizer]
MakeSchedule = Callable[[Optimizer, int], LRScheduler]


R2 = Metric(
    name="r2", title="R²", higher_is_better=True, scale=1, unit="", difference_unit="", margin=0.01, high=1.0, digits=3
)


class Task(LightningModule, ABC):
    """A model, its loss and its metrics. A subclass says what `metrics`, `inputs`, `loss` and `score` are.

    Args:
        model: What is trained.
        data: The data set, of which a task reads what it needs to know, such as the number of classes.
        optimizer: Makes the optimiser from the model.
        schedule: Makes the step-wise schedule from optimiser and number of steps.

    Raises:
        RecipeError: If the data are not of the type that the task takes.
    """

    data_type: ClassVar[type[Data]] = Data  # type: ignore[type-abstract]
    """What data it takes."""
    packages: ClassVar[tuple[str, ...]] = ()
    """Distributions that its loss or metrics come from, whose versions a run records."""
    agreement_metric: ClassVar[Metric] = R2
    """What `agreement` gives: its name, unit and digits."""

    def __init__(self, model: nn.Module, data: Data, optimizer: MakeOptimizer, schedule: MakeSchedule) -> None:
        super().__init__()
        if not isinstance(data, self.data_type):
            raise RecipeError(
                f"task {type(self).__name__} takes {self.data_type.__name__}, and the data are {type(data).__name__}",
                "choose a task and a data set that belong together",
            )
        self.model = model
        self.scored: dict[str, Metric] = by_name(self.metrics(data), type(self).__name__)
        """Metrics by name; the first one chooses the epoch."""
        self.items: Items = {}
        """What came of each item of the split that was evaluated last."""
        self.values: dict[str, float] = {}
        """Metric -> value on that split."""
        self._optimizer, self._schedule = optimizer, schedule
        self._categories = data.categories()
        self._things = data.things
        self.scored_batches: list[Items] = []
        """The columns of the batches of a split that are scored so far."""

    @classmethod
    @abstractmethod
    def metrics(cls, data: Data | None = None) -> tuple[Metric, ...]:
        """What the task measures; the first one chooses the epoch.

        Args:
            data: The data set, where that matters; None: all that the task may have.
        """

    @abstractmethod
    def inputs(self, batch: Any) -> tuple[Any, ...]:
        """What the model is called with, in order."""

    def training_inputs(self, batch: Any) -> tuple[Any, ...]:
        """What the model is called with in a training step; by default as `inputs`."""
        return self.inputs(batch)

    def shown(self, batch: Any) -> Any:
        """What pictures of its items are drawn from: a tensor (B, ...), or a NamedTuple of them.

        By default the model's first input.
        """
        return self.inputs(batch)[0]

    @abstractmethod
    def loss(self, out: Any, batch: Any) -> Tensor:
        """The loss of what the model returned, a number."""

    @abstractmethod
    def score(self, out: Any, batch: Any) -> dict[str, Tensor]:
        """What is to be kept of each item: columns (B, ...) by name.

        A column named like a metric holds, for each item, a number whose mean over the split is the metric. Columns
        `by_NAME` hold the number of the item's part in the data's category NAME. `index` and `group` are added.
        """

    def finish(self, items: Items, split: SplitName) -> Items:
        """The columns of a whole split, for what needs all items; by default as they are.

        Columns "UNIT/NAME" are of other items than the split's own, such as "images/recall" of captions; of each UNIT
        there must then be "UNIT/index" and "UNIT/group" too.
        """
        return items

    def measure(self, items: Items, split: SplitName) -> dict[str, float]:
        """Metrics by their own definition from all items: those without a column, or to check a column by; none."""
        return {}

    def mixed(self, batch: Any) -> Any:
        """The batch as training sees it, such as by mixup; by default as it is."""
        return batch

    def targets(self, batch: Any) -> Tensor | None:
        """(B, K) float, what a linear probe of the tokens is to predict; None where there is no such thing."""
        return None

    def agreement(self, predicted: Tensor, targets: Tensor) -> float:
        """How well a linear probe's predictions (N, K) fit the targets (N, K); more is better.

        By default R² over all columns together: 1 where they are equal, 0 for what the mean of the targets would give.
        Of targets that do not vary it is 0, or 1 where they are met exactly.
        """
        predicted, targets = predicted.double(), targets.double()
        missed = float((predicted - targets).square().sum())
        spread = float((targets - targets.mean(0)).square().sum())
        return 1 - missed / spread if spread else float(missed == 0)

    def predict(self, out: Any, batch: Any) -> list[dict[str, Any]]:
        """What the model says of each item, in the task's own words, as plain data.

        Raises:
            RecipeError: If the task has no words for it.
        """
        raise RecipeError(f"task {type(self).__name__} makes no predictions", "its method `predict` is not written")

    def right(self, batch: Any) -> list[str]:
        """What is right of each item, in the words of `predict`; empty where nothing is known. By default so of all."""
        return [""] * len(batch.index)

    def pictures(self, out: Any, batch: Any) -> list[dict[str, Tensor]]:
        """Title -> image (C, H, W) to be shown beside each item, such as what was found for it; by default none."""
        return [{} for _ in batch.index]

    def check(self, batch_size: int) -> None:
        """Refuse a training batch of a size that the task cannot take; by default any will do.

        Raises:
            RecipeError: Naming the key.
        """

    def of_views(self, out: Any, mean: Callable[[Any], Any]) -> Any:
        """The output of each item, from those of its views; by default their mean.

        Args:
            mean: Over the views of each item, of all tensors in what it is called with.
        """
        return mean(out)

    @property
    def primary(self) -> Metric:
        """The metric that chooses the epoch."""
        return next(iter(self.scored.values()))

    @property
    def alone(self) -> Metric:
        """What an item reaches by itself, for who masks parts of it; by default the metric that chooses the epoch."""
        return self.primary

    def score_alone(self, batch: Any) -> dict[str, Tensor]:
        """The columns (B, ...), that of `alone` among them, that calls with the items of `batch` and no others give."""
        return self.score(self.outputs(batch), batch)

    def forward(self, *inputs: Any) -> Any:
        return self.model(*inputs)

    def outputs(self, batch: Any) -> Any:
        """What the model returns for a batch."""
        return self(*self.inputs(batch))

    def columns(self, batch: Any) -> Items:
        """What comes of each item of a batch, with its `index` and `group`; several views of one item count once.

        Raises:
            RecipeError: If `score` returns columns of another length than the batch, or numbers that are not.
        """
        out, batch = self._by_item(self.outputs(batch), batch)
        return self.checked(self.score(out, batch), batch)

    def checked(self, columns: Mapping[str, Tensor], batch: Any) -> Items:
        """Columns of a batch as arrays, with its `index` and `group`; for a task that keeps more than `score` gives.

        Raises:
            RecipeError: See `columns`.
        """
        columns = {"index": batch.index, "group": batch.group, **columns}
        return check_columns(columns, len(batch.index), type(self).__name__, self._things)

    def _by_item(self, out: Any, batch: Any) -> tuple[Any, Any]:
        """The output of each item and its first view."""
        views = _views_of(batch.index)
        if views is None:
            return out, batch
        begins, mean = views
        first = batch._replace(**{name: value[begins] for name, value in batch._asdict().items()})
        return self.of_views(out, mean), first

    def try_on(self, batch: Any, name: str) -> None:
        """Score a batch before any training, so that what is wrong with the task is found now.

        Args:
            batch: Of the data's own `example`.
            name: Of the data set.

        Raises:
            LmgraftError: If the batch or its columns are not as they must be.
        """
        check_batch(batch, name)
        modes = {module: module.training for module in self.modules()}
        self.eval()
        try:
            with torch.no_grad():
                self.settle([self.columns(batch)], "val")
        finally:
            for module, training in modes.items():
                module.training = training

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        batch = self.mixed(batch)
        loss = self.loss(self.outputs(batch), batch)
        self.log("train/loss", loss, prog_bar=True, sync_dist=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.scored_batches.append(self.columns(batch))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.scored_batches.append(self.columns(batch))

    def on_validation_epoch_start(self) -> None:
        self.scored_batches = []

    def on_test_epoch_start(self) -> None:
        self.scored_batches = []

    def on_validation_epoch_end(self) -> None:
        self._close("val")

    def on_test_epoch_end(self) -> None:
        self._close("test")

    def _close(self, split: SplitName) -> None:
        """Count what was scored, over all processes, and log it."""
        parts: list[Items] = [joined(self.scored_batches)]
        if self.trainer.world_size > 1:
            gathered: list[Any] = [None] * self.trainer.world_size
            dist.all_gather_object(gathered, parts[0])
            parts = gathered
        self.scored_batches = []
        try:
            self.settle(parts, split)
        except NotFiniteColumnError:
            if split != "val" or all(bool(torch.isfinite(p).all()) for p in self.parameters()):
                raise
            self.values = dict.fromkeys(self.scored, math.nan)  # the next save refuses such weights, and says so
        for name, value in self.values.items():
            self.log(f"{split}/{name}", value, prog_bar=split == "val" and name == self.primary.name)

    def settle(self, parts: list[Items], split: SplitName) -> None:
        """Make `items` and `values` of the columns of all batches of a split.

        Raises:
            RecipeError: If a column's mean is not the metric, or a metric has no value.
        """
        self.items = self.finish(joined(parts), split)
        measured = self.measure(self.items, split)
        self.values = values_of(self.items, self.scored, measured, self._categories, type(self).__name__)

    def configure_optimizers(self) -> Any:
        optimizer = self._optimizer(self.model)
        schedule = self._schedule(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _views_of(index: Tensor) -> tuple[Tensor, Callable[[Any], Any]] | None:
    """Which rows begin an item, and the mean over its views; None where each row is one.

    Args:
        index: Of each row; views of one item follow each other.
    """
    begins = torch.ones_like(index, dtype=torch.bool)
    begins[1:] = index[1:] != index[:-1]
    if bool(begins.all()):
        return None
    item = begins.cumsum(0) - 1
    counts = torch.bincount(item)

    def mean(values: Tensor) -> Tensor:
        if values.dim() == 0 or len(values) != len(index) or not values.is_floating_point():
            return values
        sums = values.new_zeros(len(counts), *values.shape[1:]).index_add_(0, item, values)
        return sums / counts.to(values).view(-1, *[1] * (values.dim() - 1))

    return begins, lambda out: tree_map_only(Tensor, mean, out)
