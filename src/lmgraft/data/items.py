"""The items of one split, of any kind: what a data set gives for draws, and which of them belong together.

Knows no split, no loader and no task.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.utils.data import Dataset

from lmgraft.contracts import Batch
from lmgraft.data.draws import permutation
from lmgraft.data.loader import Draw, Fault, Reported
from lmgraft.errors import DataError


class ItemSet(Dataset[Any], ABC):
    """The items of one split.

    Attributes:
        indices: (N,) int64, the place of each item in its source.
        groups: (N,) int64, which items belong together; `indices` where each is independent of all others.
    """

    indices: Tensor
    groups: Tensor

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, sample: int) -> Any:
        return self.batch([sample])

    def batch(self, samples: Sequence[int]) -> Any:
        """The batch of these samples, as epoch 0 shows them."""
        return self._whole(samples)[0]

    def readable(self, samples: Sequence[int]) -> Any:
        """As `batch`, without anything that stands for a file which cannot be read.

        Raises:
            DataError: If there is such a file; it names the first.
        """
        batch, faults = self._whole(samples)
        if faults:
            raise DataError(f"{faults[0].file} cannot be read ({faults[0].reason})", "leave it out, or mend it")
        return batch

    def order(self, seed: int, epoch: int) -> npt.NDArray[np.int64]:
        """The order (N,) in which an epoch of training shows the items."""
        return permutation(seed, epoch, len(self))

    def _whole(self, samples: Sequence[int]) -> tuple[Any, tuple[Fault, ...]]:
        return whole_batch(self.__getitems__([Draw(0, int(sample)) for sample in samples]))

    @abstractmethod
    def __getitems__(self, draws: list[Draw]) -> Batch | Reported:
        """The batch of these draws; with the files that could not be read, where there can be such."""

    def place(self, index: int) -> str:
        """Where the item with this index in the source lies, for messages; empty where it has no name."""
        return ""

    def about(self, index: int) -> dict[str, Any]:
        """What a line of predictions says of an item, beside what the task says: at least "file"."""
        return {"file": self.place(index)}


def spread_over(total: int, limit: int) -> list[int]:
    """At most `limit` of `total` items, evenly spread, since items often lie class by class."""
    return [i * total // limit for i in range(limit)] if limit < total else list(range(total))


def whole_batch(loaded: Any) -> tuple[Any, tuple[Fault, ...]]:
    """A batch as a data set gives it, and the files that could not be read for it."""
    return (loaded.batch, loaded.faults) if isinstance(loaded, Reported) else (loaded, ())


class OtherItems(NamedTuple):
    """Items of other data than a model's own, as it takes them."""

    items: ItemSet
    labelled: bool
    """Whether their labels are the model's; else nothing can be said of how well it does."""
    about: dict[str, Any]
    """What identifies them in a record, as plain data."""
