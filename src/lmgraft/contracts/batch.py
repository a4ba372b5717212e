"""What every batch has, whatever the task.

A data set makes batches as NamedTuples of its own type; only its tasks read more of them than this.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Batch(Protocol):
    """Some items of a split, as a NamedTuple of tensors that begin with the batch axis."""

    @property
    def index(self) -> Tensor:
        """(B,) int64: each item's place in its source, the same in every run."""

    @property
    def group(self) -> Tensor:
        """(B,) int64: which items belong together (questions of one image, agents of one scene).

        Items of different groups are independent; where all are, the group is the index.
        """


class BatchWithTruth(Batch, Protocol):
    """A batch that says where each item's object is; evaluation's batches may, training's need not.

    Of places of which that is not known it also has `ignored`, bool of the shape of `truth`: they count neither as the
    object nor as anything else. An item without any true place has no object that is known.
    """

    @property
    def truth(self) -> Tensor:
        """(B, ...) bool, True on the object: of what the model is shown, at its own resolution.

        Pixels (B, H, W) of images behind their preprocessing, (B, T, H, W) of clips, points (B, N) of clouds.
        """
