"""Clips that lmgraft filmed itself, as data: evaluation's batches have the object's masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lmgraft.data.image.tables import ImageTable
from lmgraft.data.video.clip_set import ClipSet, Manner
from lmgraft.data.video.films import RATE, TRUTH
from lmgraft.data.video.transforms import ViewTransform
from lmgraft.data.video.video_files import VideoFiles


class ClipsWithTruth(NamedTuple):
    """Clips, their classes, and where the object is to be seen."""

    inputs: Tensor
    """(B, C, T, H, W) float."""
    labels: Tensor
    """(B,) int64."""
    index: Tensor  # type: ignore[assignment] # of tuples it is a method
    """(B,) int64."""
    group: Tensor
    """(B,) int64, which clips belong together: those of one film, or of one object."""
    truth: Tensor
    """(B, T, H, W) bool, of the clip's own frames and pixels."""


class FilmedSet(ClipSet):
    """Clips as evaluation sees them, with their masks."""

    def _batch(self, clips: Tensor, samples: Tensor) -> Any:
        if self.manner.train is not None or self.manner.rows > 1:
            return super()._batch(clips, samples)
        truth = torch.stack([self._truth(int(self.indices[sample])) for sample in samples])
        return ClipsWithTruth(*self.labelled(clips, samples), truth)

    def _truth(self, index: int) -> Tensor:
        """(T, H, W) bool: the mask of each frame of the clip."""
        path = Path(self.files.path(index))
        root = path.parents[2]
        packed = np.load(root / TRUTH / path.relative_to(root).with_suffix(".npy"), allow_pickle=False)
        masks = np.unpackbits(packed, axis=-1, count=packed.shape[1])  # of squares
        view = ViewTransform(self.manner.size)
        shown = [masks[n] for n in self.chosen(index, np.arange(len(masks)) / RATE)]
        crops = [view.crop(Image.fromarray(mask * np.uint8(255)), Image.Resampling.NEAREST) for mask in shown]
        return torch.from_numpy(np.stack([np.asarray(crop) > 0 for crop in crops]))


class FilmedClips(VideoFiles):
    """Films as `films.write_film` lays them down.

    Args:
        options: See `VideoFiles`.
    """

    def make_set(self, table: ImageTable, index: Any, manner: Manner, groups: Tensor, **options: Any) -> ClipSet:
        return FilmedSet(table, index, manner, groups, **options)
