"""The images of one split, read from files and augmented one by one."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from lmgraft.data.draws import seeds
from lmgraft.data.image.pipeline import Pipeline, batch_memory
from lmgraft.data.image.tables import UNREADABLE, ImageTable, decode
from lmgraft.data.image.transforms import Preprocess, kept_generators, seed_generators
from lmgraft.data.labelled import LabelledSet
from lmgraft.data.loader import Draw, Fault, Reported, in_turn
from lmgraft.errors import LmgraftError


class ImageFileSet(LabelledSet):
    """Some images of a table.

    Args:
        table: All images of the source.
        index: Which of them, in order.
        transform: What happens to each image.
        preprocess: Size and channels of what it returns.
        seed: Of the augmentation.
        draws: Whether the transform draws random numbers.
        replace: Whether an unreadable image is replaced by the next readable one, as in training. Otherwise
            a blank one, the mean colour, stands for it, so that labels and positions stay what they are.
        tries: Unreadable files in a row after which a blank image is given with `replace` too: the run
            is about to stop.
    """

    def __init__(
        self,
        table: ImageTable,
        index: npt.NDArray[np.int64],
        transform: Pipeline,
        preprocess: Preprocess,
        *,
        seed: int = 0,
        draws: bool = False,
        replace: bool = False,
        tries: int = 10,
    ) -> None:
        self.table, self.transform, self.preprocess = table, transform, preprocess
        self.indices = torch.from_numpy(np.asarray(index, np.int64))
        self.labels = torch.from_numpy(table.labels[index])
        self.seed, self.draws, self.replace, self.tries = seed, draws, replace, tries

    def __getitems__(self, draws: list[Draw]) -> Reported:
        faults: list[Fault] = []
        out = batch_memory(len(draws), self.preprocess.shape)
        shown = torch.tensor([draw.sample for draw in draws], dtype=torch.int64)
        epochs, repeats = [draw.epoch for draw in draws], [draw.repeat for draw in draws]
        words = seeds(self.seed, epochs, self.indices[shown].numpy(), repeats, 3)
        with kept_generators() if self.draws else nullcontext():
            for place, draw in enumerate(draws):
                shown[place], image = self._readable(draw.sample, faults)
                if self.draws:
                    seed_generators(words[place])
                if image is None:
                    out[place].zero_()
                else:
                    self.transform.into(image, out[place])
        return Reported(self.labelled(out, shown), tuple(faults))

    def place(self, index: int) -> str:
        return self.table.name(index)

    def _readable(self, sample: int, faults: list[Fault]) -> tuple[int, Image.Image | Tensor | None]:
        for candidate in in_turn(sample, len(self), self.tries if self.replace else 1):
            source = int(self.indices[candidate])
            try:
                return candidate, decode(self.table.files, source, self.preprocess.reader)
            except UNREADABLE as error:
                faults.append(Fault(self.table.place(source), reason(error)))
        return sample, None


def reason(error: BaseException) -> str:
    """Why a file is not readable, in few words."""
    if isinstance(error, LmgraftError):
        return f"{error.message}: {error.remedy}"
    text = str(error.strerror if isinstance(error, OSError) and error.strerror else error).splitlines()
    if isinstance(error, UnidentifiedImageError) or not text:
        return f"not an image ({type(error).__name__})"
    return text[0]
