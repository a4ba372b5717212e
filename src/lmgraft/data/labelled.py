"""Items that each show one of several classes, whatever they are: images, clips, point clouds."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from lmgraft.data.base import Data
from lmgraft.data.items import ItemSet


class LabelledBatch(NamedTuple):
    """Items and their classes."""

    inputs: Tensor
    """(B, ...) float, what the model takes; of images (B, C, H, W)."""
    labels: Tensor
    """(B,) int64."""
    index: Tensor  # type: ignore[assignment] # of tuples it is a method
    """(B,) int64, places in the source."""
    group: Tensor
    """(B,) int64, which items belong together; `index` where each is independent."""


class LabelledSet(ItemSet):
    """The items of one split.

    Attributes:
        labels: (N,) int64.
    """

    labels: Tensor

    @property
    def groups(self) -> Tensor:  # type: ignore[override]
        """Each item by itself, unless a data set says otherwise."""
        return self.indices

    def labelled(self, inputs: Tensor, samples: Tensor) -> LabelledBatch:
        """The batch of these samples, given what they show."""
        return LabelledBatch(inputs, self.labels[samples], self.indices[samples], self.groups[samples])


class LabelledData(Data):
    """Data for classification."""

    class_names: tuple[str, ...]
    report_class_mean: ClassVar[bool] = False
    """Whether results are also given as the mean of the classes' accuracies, as usual where sizes differ much."""

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def categories(self) -> dict[str, tuple[str, ...]]:
        return {"class": self.class_names}

    @property
    @abstractmethod
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one item as the model takes it, without the batch axis."""

    def example(self, size: int, seed: int = 0) -> LabelledBatch:
        """Random inputs, labelled with one class after the other."""
        inputs = torch.randn(size, *self.input_shape, generator=torch.Generator().manual_seed(seed))
        index = torch.arange(size)
        return LabelledBatch(inputs, index % self.num_classes, index, index)
