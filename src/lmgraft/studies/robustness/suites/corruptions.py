"""Any images: a run's own test images, corrupted on the fly."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from lmgraft.checkpoint.digest import json_digest
from lmgraft.data.base import Data
from lmgraft.data.image.corruptions import CORRUPTIONS, SEVERITIES, SIZE, VERSION, corrupt, find_corruption
from lmgraft.data.image.corruptions_filters import scipy_part
from lmgraft.data.image.corruptions_frost import Picture, frost_pictures
from lmgraft.data.image.images import ImageData
from lmgraft.data.image.tables import UNREADABLE
from lmgraft.data.items import ItemSet
from lmgraft.data.labelled import LabelledSet
from lmgraft.data.loader import Draw, Fault, Reported
from lmgraft.errors import DataError
from lmgraft.studies.engine.progress import Say
from lmgraft.studies.robustness.suite import Condition
from lmgraft.studies.robustness.suites.chosen import CorruptionSuite

NOT_COMPARABLE = "not comparable with published ImageNet-C figures"


@dataclass(frozen=True, kw_only=True)
class Corruptions(CorruptionSuite):
    """Any images, corrupted on the fly: the 15 corruptions of ImageNet-C in 5 severities."""

    name = "corruptions"
    data_type = ImageData
    known = tuple(CORRUPTIONS)

    frost: Path | None = None
    """Folder with pictures of frost; by default ImageNet-C's, fetched once."""

    @cached_property
    def pictures(self) -> tuple[Picture, ...]:
        """The pictures of frost, if one of the corruptions wants them."""
        wanted = any(find_corruption(name).pictures for name in self.chosen)
        return frost_pictures(self.frost) if wanted else ()

    def check(self, data: Data, label: str, say: Say) -> None:
        super().check(data, label, say)
        scipy_part("ndimage")  # its absence is said here, not by a worker
        _ = self.pictures

    def conditions(self, data: ImageData) -> list[Condition]:
        data.prepare_data()
        data.setup("test")
        known = {"data": json_digest(data.fingerprint())}
        made = [Condition(key="clean", items=CorruptedImages(data), identity=known)]
        for name in self.chosen:
            drawn: dict[str, Any] = {"seed": self.seed, "version": VERSION} | (
                {"frost": _pictures_digest(self.pictures)} if find_corruption(name).pictures else {}
            )
            made += [
                Condition(
                    key=f"corruptions/{name}/{severity}",
                    items=CorruptedImages(data, (name, severity), self.seed, self.pictures),
                    identity=known | drawn,
                    part=name,
                    level=severity,
                )
                for severity in SEVERITIES
            ]
        return made

    def notes(self, data: ImageData) -> list[str]:
        width, height = data.raw_test()[0][0].size
        how = f"corruptions made on the fly on the run's own test images, {NOT_COMPARABLE}"
        small = f"; images of {width} x {height} pixels were enlarged for it and scaled back"
        return [how + (small if min(width, height) < SIZE else "")]


class CorruptedImages(ItemSet):
    """The test images of a data set that is set up, clean or with a corruption at a severity.

    Args:
        data: The data set.
        corruption: Name and severity; None shows them clean.
        seed: Of what it draws, together with the image's place in the split.
        frost: Pictures, for the corruption that wants them.
    """

    def __init__(
        self, data: ImageData, corruption: tuple[str, int] | None = None, seed: int = 0, frost: Sequence[Picture] = ()
    ) -> None:
        test = data.split("test")
        assert isinstance(test, LabelledSet)
        self.test, self.raw, self.prepare = test, data.raw_test(), data.prepare
        self.blank = torch.zeros(data.input_shape)
        self.indices, self.groups = test.indices, test.groups
        self.corruption, self.seed, self.frost = corruption, seed, frost

    def __getitems__(self, draws: list[Draw]) -> Reported:
        samples = torch.tensor([draw.sample for draw in draws])
        faults: list[Fault] = []
        images = torch.stack([self._image(draw.sample, faults) for draw in draws])
        return Reported(self.test.labelled(images, samples), tuple(faults))

    def _image(self, sample: int, faults: list[Fault]) -> torch.Tensor:
        try:
            image, _ = self.raw[sample]
        except (*UNREADABLE, DataError) as error:  # a worker's exception would arrive as a screenful
            faults.append(Fault(self.place(int(self.indices[sample])) or f"test image {sample}", str(error)))
            return self.blank
        if self.corruption is not None:
            image = corrupt(image, *self.corruption, seed=self.seed, index=sample, frost=self.frost)
        return self.prepare(image)

    def place(self, index: int) -> str:
        return self.test.place(index)


def _pictures_digest(pictures: Sequence[Picture]) -> str:
    hasher = hashlib.sha256()
    for picture in pictures:
        hasher.update(str(picture.shape).encode() + picture.tobytes())
    return hasher.hexdigest()
