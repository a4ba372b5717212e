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
