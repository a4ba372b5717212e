"""The clips of one split: frames chosen and changed by functions of (seed, epoch, index), several views in tests."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lmgraft.data.draws import seeds, uniforms
from lmgraft.data.image.file_set import reason
from lmgraft.data.image.pipeline import batch_memory
from lmgraft.data.image.tables import FolderFiles, ImageTable
from lmgraft.data.labelled import LabelledSet
from lmgraft.data.loader import Draw, Fault, Reported, in_turn
from lmgraft.data.video.decoding import UNREADABLE, read_frames
from lmgraft.data.video.sampling import Order, Spacing, ordered, random_segments, segments
from lmgraft.data.video.transforms import ClipSize, TrainTransform, ViewTransform


@dataclass(frozen=True)
class Manner:
    """How clips are made of videos."""

    size: ClipSize
    spacing: Spacing = "frames"
    order: Order = "time"
    train: TrainTransform | None = None
    """Random frames and changes; None: the views below."""
    views: tuple[int, int] = (1, 1)
    """Clips over time, and crops of each along the longer side."""

    @property
    def rows(self) -> int:
        """Clips that one item makes."""
        return self.views[0] * self.views[1] if self.train is None else self.train.augment.copies


class ClipSet(LabelledSet):
    """Some videos of a table.

    A video that is shown several times makes as many rows, one behind the other, with one index.

    Args:
        table: All videos of the source.
        index: Which of them, in order.
        manner: How a clip is made.
        groups: Of each video of the table, which belong together.
        seed: Of the draws.
        replace: Whether an unreadable video is replaced by the next readable one, as in training. Otherwise a blank
            clip stands for it, so that labels and positions stay what they are.
        tries: Unreadable files in a row after which a blank clip is given with `replace` too.
    """

    def __init__(
        self,
        table: ImageTable,
        index: npt.NDArray[np.int64],
        manner: Manner,
        groups: Tensor,
        *,
        seed: int = 0,
        replace: bool = False,
        tries: int = 10,
    ) -> None:
        assert isinstance(table.files, FolderFiles)
        self.table, self.files, self.manner = table, table.files, manner
        self.indices = torch.from_numpy(np.asarray(index, np.int64))
        self.labels = torch.from_numpy(table.labels[index])
        self._groups = groups[self.indices]
        self.seed, self.replace, self.tries = seed, replace, tries

    @property
    def groups(self) -> Tensor:  # type: ignore[override]
        return self._groups

    def place(self, index: int) -> str:
        return self.files.path(index)

    def __getitems__(self, draws: list[Draw]) -> Reported:
        faults: list[Fault] = []
        rows = self.manner.rows
        out = batch_memory(len(draws) * rows, self.manner.size.shape)
        shown = [self._show(draw, out[place * rows : (place + 1) * rows], faults) for place, draw in enumerate(draws)]
        samples = torch.tensor(shown).repeat_interleave(rows)
        return Reported(self._batch(out, samples), tuple(faults))

    def _batch(self, clips: Tensor, samples: Tensor) -> Any:
        return self.labelled(clips, samples)

    def _show(self, draw: Draw, out: Tensor, faults: list[Fault]) -> int:
        """Write the clips of a draw to `out` (rows, C, T, H, W), and return the sample that they show."""
        manner = self.manner
        for sample in in_turn(draw.sample, len(self), self.tries if self.replace else 1):
            index = int(self.indices[sample])
            try:
                if manner.train is None:
                    self._views(index, out)
                else:
                    self._augmented(manner.train, draw, index, out)
                return sample
            except UNREADABLE as error:
                faults.append(Fault(self.files.path(index), reason(error)))
        out.zero_()  # the mean colour
        return draw.sample

    def _views(self, index: int, out: Tensor) -> None:
        times, crops = self.manner.views
        frames = read_frames(
            self.files.path(index),
            lambda clock: [n for view in range(times) for n in self.chosen(index, clock, view)],
        )
        count = self.manner.size.frames
        for view in range(times):
            clip = frames[view * count : (view + 1) * count]
            for crop in range(crops):
                part = 0.5 if crops == 1 else crop / (crops - 1)
                ViewTransform(self.manner.size, part)(clip, out[view * crops + crop])

    def chosen(self, index: int, clock: npt.NDArray[np.float64], view: int = 0) -> list[int]:
        """Which frames of a video evaluation shows as a clip."""
        manner = self.manner
        (drawn,) = uniforms(view, [0], [index], manner.size.frames)
        frames = segments(clock, manner.size.frames, manner.spacing, view, manner.views[0])
        return ordered(frames, manner.order, drawn)

    def _augmented(self, transform: TrainTransform, draw: Draw, index: int, out: Tensor) -> None:
        # Repeats of an item in an epoch draw other frames: each is an epoch of its own to `uniforms`.
        manner, count = self.manner, self.manner.size.frames
        (drawn,) = uniforms(self.seed, [draw.epoch], [index], 2 * count * (draw.repeat + 1))
        drawn, mixed = drawn[2 * count * draw.repeat :].reshape(2, count)
        (words,) = seeds(self.seed, [draw.epoch], [index], [draw.repeat], 3 * len(out))
        frames = read_frames(
            self.files.path(index),
            lambda clock: ordered(random_segments(clock, count, manner.spacing, drawn), manner.order, mixed),
        )
        for copy, clip in enumerate(out):
            transform(frames, words[3 * copy : 3 * copy + 3], clip)


def group_numbers(names: Sequence[str], pattern: str | None) -> Tensor:
    """(N,) which videos belong together: those whose names give one text by `pattern`; else each by itself.

    Args:
        pattern: A regular expression; what its groups hold counts, or the whole match where it has none.
    """
    own = torch.arange(len(names))
    if pattern is None:
        return own
    first: dict[object, int] = {}
    matches = [re.search(pattern, name) for name in names]
    keys = [n if m is None else m.groups() or m.group() for n, m in zip(range(len(names)), matches, strict=True)]
    return torch.tensor([first.setdefault(key, number) for number, key in enumerate(keys)])
