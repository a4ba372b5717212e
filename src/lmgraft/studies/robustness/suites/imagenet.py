"""ImageNet's published robustness sets, for models that end in ImageNet's 1000 classes.

mCE: Hendrycks and Dietterich, ICLR 2019 (arXiv 1903.12261). The paper that lmgraft follows reports "ImageNet-C" as the
mean top-1 accuracy, higher is better, and not as mCE.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from statistics import fmean

import torch
from PIL import Image
from torch import Tensor

from lmgraft.contracts import Metric
from lmgraft.data.base import Data
from lmgraft.data.image.corruptions import SIZE
from lmgraft.data.image.imagenet_sets import NUM_CLASSES, PublishedSet
from lmgraft.data.image.images import ImageData
from lmgraft.data.image.tables import UNREADABLE
from lmgraft.data.items import ItemSet
from lmgraft.data.labelled import LabelledBatch
from lmgraft.data.loader import Draw, Fault, Reported
from lmgraft.studies.engine.progress import Say
from lmgraft.studies.robustness.cells import Cell
from lmgraft.studies.robustness.suite import Among, Condition, Row, Suite
from lmgraft.studies.robustness.suites.corruptions import NOT_COMPARABLE
from lmgraft.studies.robustness.suites.imagenet_classes import check_classes
from lmgraft.studies.robustness.suites.imagenet_places import SETS, FoundSets, find_sets, other_totals
from lmgraft.studies.robustness.suites.timm_model import timm_task
from lmgraft.tasks.base import Task

Prepare = Callable[[Image.Image], Tensor]

ALEXNET_ERRORS = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
"""AlexNet's top-1 error on each corruption of ImageNet-C, mean over severities: the unit of mCE."""
ALEXNET_CLEAN_ERROR = 0.43478
"""AlexNet's on clean ImageNet (torchvision's weights: 56.522 % top-1; the paper prints 43.5)."""
MCE = Metric(
    name="mce", title="mCE (AlexNet 100, less is better)", higher_is_better=False, scale=100, unit="",
    difference_unit="", margin=0.01,
)  # fmt: skip
RELATIVE_MCE = replace(MCE, name="relative_mce", title="relative mCE (AlexNet 100)")


@dataclass(frozen=True, kw_only=True)
class ImageNetSets(Suite):
    """The published sets, for models with ImageNet's classes; absent ones are left out."""

    name = "imagenet-robustness"
    data_type = ImageData
    word, whole, clean = "set", "ImageNet-C", "imagenet"

    suite_root: Path | None = None
    """Folder with imagenet-c, imagenet-a, ..."""
    sets: tuple[str, ...] | None = None
    """Only these, A,B, none left out; by default all that are found."""
    imagenet: Path | None = None
    """ImageNet's validation images."""
    imagenet_real: Path | None = None
    """ReaL's real.json; default: timm's copy."""
    imagenet_v2: Path | None = None
    """ImageNet-V2."""
    imagenet_sketch: Path | None = None
    """ImageNet-Sketch."""
    imagenet_r: Path | None = None
    """ImageNet-R."""
    imagenet_a: Path | None = None
    """ImageNet-A."""
    imagenet_c: Path | None = None
    """ImageNet-C."""

    @cached_property
    def found(self) -> FoundSets:
        """The sets that are there, checked."""
        places = {key: place for key in SETS if (place := getattr(self, key)) is not None}
        return find_sets(self.suite_root, places, self.sets)

    def check(self, data: Data, label: str, say: Say) -> None:
        super().check(data, label, say)
        assert isinstance(data, ImageData)
        check_classes(label, data.num_classes, data.in_chans, data.class_names)
        if "found" not in vars(self):
            say("Published sets: looking for them and checking their folders")
            for sentence in (*self.found.left_out, *other_totals(self.found.sets)):
                say(f"  {sentence}")

    def elsewhere(self, model: str, checkpoint: Path) -> tuple[Task, Data]:
        return timm_task(model, checkpoint)

    def conditions(self, data: ImageData) -> list[Condition]:
        crop = crop_transform(data.mean, data.std, data.img_size)
        made = []
        for files in self.found.sets:
            kind, *corruption = files.name.split("/")
            made.append(
                Condition(
                    key=files.name,
                    items=PublishedImages(files, crop if files.transform == "crop" else data.prepare),
                    identity={"data": files.digest()},
                    title=SETS[kind].title,
                    part=corruption[0] if corruption else kind,
                    level=int(corruption[1]) if corruption else None,
                    wrap=None if files.classes is None else partial(Among, classes=files.classes),
                )
            )
        return made

    def notes(self, data: ImageData) -> list[str]:
        height, width = data.img_size
        resized = (height, width) != (SIZE, SIZE) and any(one.transform == "crop" for one in self.found.sets)
        note = f"ImageNet-C's crop of {SIZE} pixels was resized to {width} x {height}, {NOT_COMPARABLE}"
        return [*self.found.left_out, *other_totals(self.found.sets), *([note] if resized else [])]

    def summary(self, cells: Mapping[str, Cell], metric: Metric) -> list[Row]:
        """The means, and of the accuracy on all fifteen corruptions mCE."""
        rows = super().summary(cells, metric)
        by_corruption = {row.name: row.value for row in rows if row.kind == "part"}
        if metric.name != "accuracy" or by_corruption.keys() != ALEXNET_ERRORS.keys():
            return rows
        made = {MCE: mean_corruption_error(by_corruption)}
        if self.clean in cells:
            made[RELATIVE_MCE] = relative_error(by_corruption, cells[self.clean].metrics[metric.name])
        return rows + [Row(kind="whole", name=m.name, title=m.title, value=v, metric=m) for m, v in made.items()]


class PublishedImages(ItemSet):
    """The images of a published set.

    Args:
        files: The set; where some image has several right classes, labels are equal shares (B, 1000) of them.
        prepare: What a model is shown of an image.
    """

    def __init__(self, files: PublishedSet, prepare: Prepare) -> None:
        self.files, self.prepare = files, prepare
        self.indices = self.groups = torch.arange(len(files))
        self.several = any(len(right) != 1 for right in files.targets)

    def __getitems__(self, draws: list[Draw]) -> Reported:
        samples = [draw.sample for draw in draws]
        faults: list[Fault] = []
        inputs = torch.stack([self._image(sample, faults) for sample in samples])
        index = torch.tensor(samples)
        return Reported(LabelledBatch(inputs, self._labels(samples), index, index), tuple(faults))

    def _image(self, sample: int, faults: list[Fault]) -> Tensor:
        try:
            with Image.open(self.place(sample)) as image:
                shown = image.convert("RGB")
        except UNREADABLE as error:
            faults.append(Fault(self.place(sample), str(error)))
            return torch.zeros_like(self.prepare(Image.new("RGB", (SIZE, SIZE))))
        return self.prepare(shown)

    def _labels(self, samples: Sequence[int]) -> Tensor:
        right = [self.files.targets[sample] for sample in samples]
        if not self.several:
            return torch.tensor([label for (label,) in right])
        shares = torch.zeros(len(right), NUM_CLASSES)
        for row, labels in zip(shares, right, strict=True):
            row[list(labels)] = 1 / len(labels)
        return shares

    def place(self, index: int) -> str:
        return str(self.files.root / self.files.files[index])


def crop_transform(mean: Sequence[float], std: Sequence[float], img_size: tuple[int, int]) -> Prepare:
    """ImageNet-C's: a centre crop of 224 pixels, no resizing, and normalisation.

    A model for another image size is shown that crop resized.
    """
    from torchvision import transforms

    resize = (
        [] if tuple(img_size) == (SIZE, SIZE) else [transforms.Resize(img_size, transforms.InterpolationMode.BICUBIC)]
    )
    steps = [transforms.CenterCrop(SIZE), *resize, transforms.ToTensor(), transforms.Normalize(mean, std)]
    composed: Prepare = transforms.Compose(steps)
    return composed


def mean_corruption_error(by_corruption: Mapping[str, float]) -> float:
    """mCE: the mean over corruptions of the model's error over AlexNet's; 1 is AlexNet, less is better.

    Args:
        by_corruption: For each of the fifteen the top-1 accuracy in [0, 1], mean over severities.
    """
    return fmean((1 - by_corruption[name]) / error for name, error in ALEXNET_ERRORS.items())


def relative_error(by_corruption: Mapping[str, float], clean: float) -> float:
    """Relative mCE: what corruptions cost on top of the clean error, over what they cost AlexNet.

    Args:
        by_corruption: As in `mean_corruption_error`.
        clean: Top-1 accuracy on clean ImageNet, in [0, 1].
    """
    return fmean(
        (clean - by_corruption[name]) / (error - ALEXNET_CLEAN_ERROR) for name, error in ALEXNET_ERRORS.items()
    )
