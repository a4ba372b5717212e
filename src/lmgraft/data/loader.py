"""Batches of an epoch from any offset on: what makes resuming in mid-epoch exact.

The loader asks the trainer how far it is (epoch, batches done) whenever it is iterated; it
keeps no position of its own that could go stale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler

from lmgraft.data.draws import permutation


class Draw(NamedTuple):
    """One sample as a data set is asked for it: augmentation is a function of all of this."""

    epoch: int
    sample: int


class EpochSampler(Sampler[list[Draw]]):
    """Batches of `Draw`s of one epoch, in an order that depends on (seed, epoch) alone.

    Args:
        size: Samples in the data set.
        batch_size: Samples a batch (and a rank).
        seed: Seed of the order.
        shuffle: Whether to permute; evaluation does not.
        drop_last: Whether to drop an incomplete last batch.
        rank, world: Which of how many processes this is; each takes every `world`-th sample.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = False,
        drop_last: bool = False,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.shuffle, self.drop_last = shuffle, drop_last
        self.rank, self.world = rank, world
        self.epoch, self.start = 0, 0

    def __len__(self) -> int:
        """Batches of a whole epoch, whatever `start` is."""
        mine = self.size // self.world if self.drop_last else -(-self.size // self.world)
        return mine // self.batch_size if self.drop_last else -(-mine // self.batch_size)

    def __iter__(self) -> Iterator[list[Draw]]:
        order = permutation(self.seed, self.epoch, self.size) if self.shuffle else np.arange(self.size)
        mine = order[self.rank :: self.world]
        for batch in range(self.start, len(self)):
            chosen = mine[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield [Draw(self.epoch, int(i)) for i in chosen]


class EpochLoader(DataLoader[Any]):
    """A DataLoader over an `EpochSampler` that starts where the trainer stands.

    Args:
        dataset: Takes a list of `Draw`s in `__getitems__` and returns a whole batch.
        sampler: What to draw.
        progress: Returns (epoch, batches of it done); called when iteration begins.
        num_workers: Worker processes.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        sampler: EpochSampler,
        *,
        progress: Callable[[], tuple[int, int]] = lambda: (0, 0),
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        super().__init__(
            dataset, batch_sampler=sampler, collate_fn=_as_it_is, num_workers=num_workers, pin_memory=pin_memory
        )
        self._progress = progress

    def __iter__(self) -> Any:
        # A generator: its body runs at the first batch, when the trainer's loops are restored.
        sampler = self.batch_sampler
        assert isinstance(sampler, EpochSampler)
        sampler.epoch, sampler.start = self._progress()
        yield from super().__iter__()


def _as_it_is(batch: Any) -> Any:
    return batch
