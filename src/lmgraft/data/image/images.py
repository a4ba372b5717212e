"""What all image classification data share beyond what every data set has."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Protocol

from PIL import Image
from torch import Tensor

from lmgraft.data.labelled import LabelledData


class RawImages(Protocol):
    """The test images as they lie in their files, for the robustness suite and for looking at."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Image.Image, int]:
        """A PIL image in mode RGB or L, and its label."""


class ImageData(LabelledData):
    """The images: class_path names the data set, a subclass of this.

    Args:
        batch_size: Training images a step (and a process).
        eval_batch_size: Images a step in validation and test.
        num_workers: Loader processes.
    """

    things: ClassVar[str] = "images"
    packages: ClassVar[tuple[str, ...]] = ("torchvision", "timm", "pillow")
    in_chans: int
    img_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.in_chans, *self.img_size)

    def model_arguments(self) -> dict[str, Any]:
        return {"num_classes": self.num_classes, "in_chans": self.in_chans, "img_size": self.img_size}

    @abstractmethod
    def raw_test(self) -> RawImages:
        """The test images, in the order of `split("test")`, before any transform."""

    @abstractmethod
    def prepare(self, image: Image.Image) -> Tensor:
        """The evaluation transform with normalisation: (C, H, W) float."""
