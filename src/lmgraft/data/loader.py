"""Batches of an epoch from any offset on: what makes resuming in mid-epoch exact.

The loader asks the trainer how far it is (epoch, batches done) whenever it is iterated; it
keeps no position of its own that could go stale.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch.utils.data import DataLoader, Dataset, Sampler

from lmgraft.contracts import Batch
from lmgraft.data.draws import permutation

REPEAT_ROUND = 256
"""An epoch of repeated augmentation is cut to a multiple of this many samples, as DeiT and timm do."""


class Draw(NamedTuple):
    """One sample as a data set is asked for it: augmentation is a function of all of this."""

    epoch: int
    sample: int
    repeat: int = 0


def in_turn(sample: int, count: int, tries: int) -> Iterator[int]:
    """A sample and those behind it, of `count` in a circle, each once: the first readable one is shown in its place."""
    return ((sample + step) % count for step in range(min(tries, count)))


class Fault(NamedTuple):
    """A file that could not be read, and why."""

    file: str
    reason: str


class Reported(NamedTuple):
    """A batch, and the files that could not be read while it was made."""

    batch: Batch
    faults: tuple[Fault, ...]


class EpochSampler(Sampler[list[Draw]]):
    """Batches of `Draw`s of one epoch, in an order that depends on (seed, epoch) alone.

    The k-th batches of all ranks together are the k-th batch of one process with `world` times the
    batch size.

    Args:
        size: Samples in the data set.
        batch_size: Samples a batch (and a rank).
        seed: Seed of the order.
        shuffle: Whether to permute; evaluation does not.
        order: What of an epoch's number gives the order of its samples, (size,), in place of a plain permutation.
        drop_last: Whether to drop an incomplete last batch.
        rank, world: Which of how many processes this is; each takes every `world`-th sample.
        repeats: Repeated augmentation (Hoffer et al., arXiv 1901.09335): each sample comes so often in
            a row, and the epoch is cut to the data set's size, rounded down to a multiple of 256, so
            that it shows about one in `repeats` of the images. Data sets below 256 keep their size.
            This is DeiT's RASampler, which timm has too.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = False,
        order: Callable[[int], npt.NDArray[np.int64]] | None = None,
        drop_last: bool = False,
        rank: int = 0,
        world: int = 1,
        repeats: int = 1,
    ) -> None:
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.shuffle, self.drop_last = shuffle, drop_last
        self._order = order or (lambda epoch: permutation(seed, epoch, size))
        self.rank, self.world, self.repeats = rank, world, repeats
        self.epoch, self.start = 0, 0

    def samples_of(self, rank: int) -> int:
        """Samples of an epoch that fall to `rank`."""
        if self.repeats > 1 and self.size >= REPEAT_ROUND:
            return self.size // REPEAT_ROUND * REPEAT_ROUND // self.world
        if self.repeats > 1:
            return -(-self.size // self.world)
        if self.drop_last:
            return self.size // self.world
        return len(range(rank, self.size, self.world))

    def __len__(self) -> int:
        """Batches of a whole epoch, whatever `start` is."""
        if self.drop_last:
            return self.samples_of(self.rank) // self.batch_size
        # As many as the first rank's, so that no rank waits for another; but no empty batch.
        return min(-(-self.samples_of(0) // self.batch_size), self.samples_of(self.rank))

    def __iter__(self) -> Iterator[list[Draw]]:
        order = self._order(self.epoch) if self.shuffle else np.arange(self.size)
        for batch in range(self.start, len(self)):
            first, stop = self._bound(batch), self._bound(batch + 1)
            yield [self._draw(order, self.rank + self.world * position) for position in range(first, stop)]

    def _bound(self, batch: int) -> int:
        """Where a batch begins among this rank's samples.

        In evaluation each batch that is left keeps at least one sample, so that all ranks have as many batches.
        """
        full = batch * self.batch_size
        return full if self.drop_last else min(full, self.samples_of(self.rank) - len(self) + batch)

    def _draw(self, order: npt.NDArray[np.int64], position: int) -> Draw:
        # With more ranks than samples DeiT's sampler begins again, hence the modulus.
        sample, repeat = divmod(position % (self.size * self.repeats), self.repeats)
        return Draw(self.epoch, int(order[sample]), repeat)


class EpochLoader(DataLoader[Any]):
    """A DataLoader over an `EpochSampler` that starts where the trainer stands.

    Signals to the whole process group, as Ctrl-C and SLURM send them, are for the main process to
    answer: workers outlast them, so that it can still take its step and save.

    Args:
        dataset: Takes a list of `Draw`s in `__getitems__` and returns a whole batch, or a `Reported` one.
        sampler: What to draw.
        progress: Returns (epoch, batches of it done); called when iteration begins.
        report: Told, in this process, of the files that could not be read.
        num_workers: Worker processes.
        persistent: Whether they stay from epoch to epoch.
        pin_memory: Whether batches go to page-locked memory, from which copies to a GPU are quick.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        sampler: EpochSampler,
        *,
        progress: Callable[[], tuple[int, int]] = lambda: (0, 0),
        report: Callable[[tuple[Fault, ...]], None] | None = None,
        num_workers: int = 0,
        persistent: bool = True,
        pin_memory: bool = False,
    ) -> None:
        super().__init__(
            dataset,
            batch_sampler=sampler,
            collate_fn=_as_it_is,
            num_workers=num_workers,
            worker_init_fn=_outlast_signals,
            pin_memory=pin_memory,
            persistent_workers=persistent and num_workers > 0,
        )
        self._progress, self._report = progress, report

    def __iter__(self) -> Any:
        # A generator: its body runs at the first batch, when the trainer's loops are restored.
        sampler = self.batch_sampler
        assert isinstance(sampler, EpochSampler)
        sampler.epoch, sampler.start = self._progress()
        with _held(_FOR_MAIN if self.num_workers else set()):
            batches = super().__iter__()  # starts the workers
        for batch in batches:
            if isinstance(batch, Reported):
                if self._report is not None:
                    self._report(batch.faults)
                batch = batch.batch
            yield batch


def _as_it_is(batch: Any) -> Any:
    return batch


_FOR_MAIN = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1}


@contextmanager
def _held(signals: set[signal.Signals]) -> Iterator[None]:
    """Inside, these signals wait, also in processes that are started: none meets a worker that is not ready."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _outlast_signals(worker: int) -> None:
    """In a worker: pass over what asks the run to stop; SIGTERM counts only from the main process, which ends it so.

    It ends with the main process too, also where that was killed before torch's own watchdog noted its parent.
    """
    for signum in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(signum, signal.SIG_IGN)
    main = multiprocessing.parent_process()
    assert main is not None, "this is a worker"
    threading.Thread(target=_end_with, args=(main,), daemon=True).start()
    heard = _FOR_MAIN
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        threading.Thread(target=_end_by, args=(main.pid,), daemon=True).start()
        heard = _FOR_MAIN - {signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, heard)


def _end_with(main: Any) -> None:
    main.join()  # waits for a pipe that the main process alone holds open, and later workers as long as they live
    os._exit(1)


def _end_by(main: int | None) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != main:
        pass
    os._exit(0)
