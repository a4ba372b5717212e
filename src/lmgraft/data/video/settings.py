"""What can be chosen of videos in files: the keys of `VideoFiles` in a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from lmgraft.data.base import at_least_one
from lmgraft.data.image.classes import ClassList
from lmgraft.data.image.settings import Settings as ImageSettings
from lmgraft.data.video.finding import Places
from lmgraft.data.video.sampling import Order, Spacing
from lmgraft.data.video.transforms import ClipAugment, ClipSize


@dataclass(frozen=True, kw_only=True)
class Settings(Places):
    """The keys of `VideoFiles` beside batch sizes and workers."""

    classes: ClassList = None
    """Which classes there must be: how many (labels are then numbers from 0, or as many names), their names in order,
    or a text file of them."""
    val_size: int | float = 0.1
    """Training videos held out to choose the best epoch by, a share (below 1) or a count; not used where there is a val
    beside a test split. 0: the test videos choose the epoch, unless `choose` is last."""
    test_size: int | float = 0.1
    """The same for the test videos, where the data set has none of its own."""
    choose: Literal["val", "last"] = "val"
    """What chooses the epoch: the validation videos, or nothing: the last epoch counts, as in VideoMAE."""
    group: str | None = None
    """A regular expression on file names: videos in which it finds the same text belong together, as _(g\\d+)_ of
    UCF101 says from which film a clip is cut. Intervals over videos then draw such groups."""
    frames: int = 16
    """Frames of a clip, one from each of as many segments of the video."""
    spacing: Spacing = "frames"
    """Whether segments have equally many frames or are equally long, which differs where the frame rate varies."""
    order: Order = "time"
    """Controls, in training and in tests: frames in a random order, or one random frame of the clip throughout."""
    img_size: int | tuple[int, int] = 224
    """Height and width of the model's input."""
    views: tuple[int, int] = (1, 1)
    """Clips over time and crops of each that a test video is shown as; their outputs are averaged. VideoMAE on
    Something-Something: [2, 3]. Validation has one."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """How frames are resized."""
    mean: tuple[float, float, float] = IMAGENET_DEFAULT_MEAN
    """Of the channels in [0, 1]; ImageNet's by default."""
    std: tuple[float, float, float] = IMAGENET_DEFAULT_STD
    """Of the channels in [0, 1]; ImageNet's by default."""
    augment: ClipAugment = ClipAugment()  # noqa: RUF009  (frozen)
    """Random changes of training clips."""
    max_corrupt: int = 10
    """Unreadable training and validation videos above which a run stops."""
    max_corrupt_test: int = 0
    """Unreadable test videos above which a run stops; a blank clip stands for each."""

    def __post_init__(self) -> None:
        times, crops = self.views
        at_least_one(frames=self.frames, views=min(times, crops), copies=self.augment.copies)
        self.splits()  # refuses sizes that are none

    def size(self) -> ClipSize:
        """What every clip is like."""
        height, width = (self.img_size, self.img_size) if isinstance(self.img_size, int) else self.img_size
        return ClipSize(self.frames, height, width, tuple(self.mean), tuple(self.std), self.interpolation)

    def splits(self, labels: set[str] | None = None) -> ImageSettings:
        """How videos are held out and numbered: as images in files are.

        Args:
            labels: All that there are; where they are numbers and `classes` says how many, they number the classes.
        """
        classes = self.classes
        if isinstance(classes, int) and labels and all(label.isdigit() for label in labels):
            classes = [str(number) for number in range(classes)]
        return ImageSettings(
            root=self.root, csv=self.csv, classes=classes, val_size=self.val_size, test_size=self.test_size,
            max_corrupt=self.max_corrupt, max_corrupt_test=self.max_corrupt_test,
        )  # fmt: skip
