"""What all image classification data share beyond what every data set has."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from PIL import Image
from torch import Tensor

from lmgraft.data.files import files_below, find_loose
from lmgraft.data.image.opening import EXTENSIONS, open_image
from lmgraft.data.image.reading import Reading
from lmgraft.data.image.tables import UNREADABLE
from lmgraft.data.labelled import LabelledBatch, LabelledData, LabelledSet
from lmgraft.data.loader import Draw
from lmgraft.errors import DataError


class RawImages(Protocol):
    """The test images as they lie in their files, for the robustness suite and for looking at."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Image.Image, int]:
        """A PIL image in mode RGB or L, and its label."""


class LooseImages(LabelledSet):
    """Image files of which no class is known: all labels are 0.

    Args:
        paths: The files.
        load: Reads one and applies the evaluation transform.
    """

    def __init__(self, paths: Sequence[Path], load: Callable[[Path], Tensor]) -> None:
        self.paths, self.load = list(paths), load
        self.indices, self.labels = torch.arange(len(paths)), torch.zeros(len(paths), dtype=torch.int64)

    def __getitems__(self, draws: list[Draw]) -> LabelledBatch:
        samples = torch.tensor([draw.sample for draw in draws])
        images = []
        for path in (self.paths[sample] for sample in samples.tolist()):
            try:
                images.append(self.load(path))
            except UNREADABLE as error:
                raise DataError(f"{path} cannot be read ({error})", "leave it out, or mend it") from None
        return self.labelled(torch.stack(images), samples)

    def place(self, index: int) -> str:
        return str(self.paths[index])


def images_below(folder: Path) -> list[Path]:
    """Image files in a folder and those below it, in order."""
    return files_below(folder, EXTENSIONS)


class ImageData(LabelledData):
    """The images: class_path names the data set, a subclass of this.

    Args:
        batch_size: Training images a step (and a process).
        eval_batch_size: Images a step in validation and test.
        num_workers: Loader processes.
    """

    things: ClassVar[str] = "images"
    endings: ClassVar[tuple[str, ...]] = EXTENSIONS
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

    def open(self, sources: Sequence[str]) -> LooseImages:
        return LooseImages(find_loose(sources, images_below, f"images ({', '.join(EXTENSIONS)})"), self.load_file)

    @abstractmethod
    def prepare(self, image: Image.Image) -> Tensor:
        """The evaluation transform with normalisation: (C, H, W) float."""

    def load_file(self, path: Path) -> Tensor:
        """The image in a file as the model takes it: (C, H, W) float."""
        with open_image(str(path)) as opened:
            image = Reading(self.in_chans, eight_bits=True).read(opened)
        assert isinstance(image, Image.Image)
        return self.prepare(image)
