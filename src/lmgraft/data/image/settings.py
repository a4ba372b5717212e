"""What can be chosen of images in files: the keys of `ImageFiles` in a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lmgraft.data.base import at_least_one
from lmgraft.data.image.checks import check_sizes
from lmgraft.data.image.classes import ClassList, ClassMap
from lmgraft.data.image.layouts import Layout
from lmgraft.data.image.reading import Range, Style
from lmgraft.data.image.transforms import Augment, Preprocess, statistics
from lmgraft.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Settings(Layout):
    """The keys of `ImageFiles` beside batch sizes and workers."""

    classes: ClassList = None
    """Which classes there must be: imagenet, how many, their names in order, or a text file of them."""
    class_map: ClassMap = None
    """Class folder -> number, or a text file with a class folder a line; other folders are left out."""
    val_size: int | float = 0.1
    """Training images held out to choose the best epoch by, a share (below 1) or a count; not used where there is a val
    beside a test split. 0: the test images choose the epoch, as in the paper."""
    test_size: int | float = 0.1
    """The same for the test images, where the data set has none of its own."""
    img_size: int | tuple[int, int] = 224
    """Height and width of the model's input."""
    in_chans: int = 3
    """Channels of the model's input: 3 for colour, 1 for grey, others where each file has so many."""
    reading: Style = "viewer"
    """How files are read: as a viewer shows them, or as timm does (no orientation, no profiles, 8 bits)."""
    range: Range = "type"
    """Which values of images deeper than 8 bits are black and white: the limits of their type, the 0.1 and 99.9
    percentiles of the training images, or two numbers."""
    depth: Literal["full", 8] = "full"
    """Whether deep images keep all their bits, or are rounded to 8 behind `range`, as auto_augment needs it."""
    interpolation: Literal["bilinear", "bicubic", "lanczos"] = "bicubic"
    """How images are resized."""
    crop_pct: float = 0.875
    """Share of the resized image that the central crop of evaluation keeps."""
    mean: tuple[float, ...] | None = None
    """Of the channels in [0, 1]; ImageNet's by default."""
    std: tuple[float, ...] | None = None
    """Of the channels in [0, 1]; ImageNet's by default."""
    augment: Augment = Augment()  # noqa: RUF009  (frozen)
    """Random changes of training images."""
    repeats: int = 1
    """Repeated augmentation: how often an image comes in one epoch; DeiT has 3."""
    max_corrupt: int = 10
    """Unreadable training and validation files above which a run stops."""
    max_corrupt_test: int = 0
    """Unreadable test files above which a run stops; a blank image stands for each."""

    def __post_init__(self) -> None:
        at_least_one(repeats=self.repeats, in_chans=self.in_chans)
        check_sizes(val_size=self.val_size, test_size=self.test_size)
        if not isinstance(self.range, str) and not self.range[0] < self.range[1]:
            raise DataError(f"data.range={list(self.range)}", "give the smaller number first")

    def preprocess(self) -> Preprocess:
        """What happens to every image.

        Raises:
            DataError: If mean or std have not a number for each channel.
        """
        usual_mean, usual_std = statistics(self.in_chans)
        chosen = {"mean": tuple(self.mean or usual_mean), "std": tuple(self.std or usual_std)}
        for key, values in chosen.items():
            if len(values) != self.in_chans:
                raise DataError(
                    f"data.{key} has {len(values)} numbers for data.in_chans={self.in_chans}", "one a channel"
                )
        size = (self.img_size, self.img_size) if isinstance(self.img_size, int) else self.img_size
        return Preprocess(
            img_size=size, in_chans=self.in_chans, interpolation=self.interpolation, crop_pct=self.crop_pct,
            reading=self.reading, range=self.range, depth=self.depth, **chosen,
        )  # fmt: skip
