"""Ends of a run before its time: a loss that is not finite, and signals that ask for it.

All processes stop at the same step: what one meets is asked of all.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from pytorch_lightning import Callback, LightningModule, Trainer

from lmgraft.contracts import Batch
from lmgraft.data.base import Data
from lmgraft.errors import RunError
from lmgraft.training.schedule import base_rate

_SHOWN = 16
_NAMED = 3


class NotFiniteError(RunError):
    """A loss or a weight became NaN or infinite.

    Attributes:
        epoch, step: Where; step counts batches of the epoch. None for a weight that was to be saved.
        learning_rate: In effect there, without the factors that layers or mappers have on it.
        samples: Indices of the batch's items in their source.
        files: Their names, where they are files.
    """

    def __init__(
        self,
        message: str,
        remedy: str = "",
        epoch: int | None = None,
        step: int | None = None,
        learning_rate: float | None = None,
        samples: tuple[int, ...] = (),
        files: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message, remedy)
        self.epoch, self.step, self.learning_rate = epoch, step, learning_rate
        self.samples, self.files = samples, files

    def __reduce__(self) -> Any:
        details = (self.epoch, self.step, self.learning_rate, self.samples, self.files)
        return type(self), (self.message, self.remedy, *details)


class InterruptedRunError(RunError):
    """A signal asked the run to stop; last.ckpt is written.

    Attributes:
        signum: The signal's number; 128 + signum is the exit status.
    """

    def __init__(self, message: str, remedy: str = "", signum: int = signal.SIGTERM) -> None:
        super().__init__(message, remedy)
        self.signum = signum
        self.exit_status = 128 + signum

    def __reduce__(self) -> Any:
        return type(self), (self.message, self.remedy, self.signum)


def in_any_process(trainer: Trainer, flag: bool) -> bool:
    """Whether the flag is set in any process; all have to ask, and all get one answer."""
    return flag if trainer.world_size == 1 else bool(trainer.strategy.reduce_boolean_decision(flag, all=False))


def gathered(trainer: Trainer, value: Any) -> list[Any]:
    """What each process has, in order of rank; all have to ask."""
    if trainer.world_size == 1:
        return [value]
    values: list[Any] = [None] * trainer.world_size
    dist.all_gather_object(values, value)
    return values


class _BadLoss(NamedTuple):
    """One process's loss that is not finite, and the items it is of."""

    loss: float
    samples: tuple[int, ...]
    files: tuple[str, ...]


class StopWhenNotFinite(Callback):
    """Stops at the first loss that is NaN or infinite; the last checkpoint is from before it."""

    def __init__(self, data: Data) -> None:
        self.data = data
        self._rate = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._rate = base_rate(trainer.optimizers[0])  # behind the step the schedule is one further

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        finite = bool(torch.isfinite(outputs["loss"]))
        if not in_any_process(trainer, not finite):
            return
        reports = gathered(trainer, None if finite else self._report(outputs["loss"].item(), batch))
        bad = [report for report in reports if report is not None]
        samples = tuple(sample for report in bad for sample in report.samples)
        files = tuple(file for report in bad for file in report.files)
        raise NotFiniteError(
            f"the loss became {bad[0].loss} in epoch {trainer.current_epoch}, step {batch_idx} "
            f"(learning rate {self._rate:.2g}, {self.data.things} {_list(samples, _SHOWN)}"
            + (f": {_list(files, _NAMED)})" if files else ")"),
            "lower optim.lr or raise optim.warmup, or add --auto-lr-retry; "
            "the last checkpoint holds the weights from before",
            epoch=trainer.current_epoch,
            step=batch_idx,
            learning_rate=self._rate,
            samples=samples,
            files=files,
        )

    def _report(self, loss: float, batch: Batch) -> _BadLoss:
        samples = tuple(batch.index.tolist())
        places = (self.data.split("train").place(sample) for sample in samples)
        return _BadLoss(loss, samples, tuple(place for place in places if place))


def _list(values: Sequence[Any], most: int) -> str:
    return ", ".join(map(str, values[:most])) + (", ..." if len(values) > most else "")


class StopOnSignal(Callback):
    """SIGTERM, Ctrl-C and SLURM's SIGUSR1 save at the next optimiser step and end the run there.

    In the last batch of an epoch and in validation the save comes at the epoch's end. A second
    Ctrl-C stops at once. Lightning's own handlers, which save in the middle of a step, are replaced.

    Args:
        save: Writes last.ckpt; called by all processes.
    """

    def __init__(self, save: Callable[[Trainer], bool]) -> None:
        self._save = save
        self._signum: int | None = None
        self._end: InterruptedRunError | None = None
        self._before: dict[int, Any] = {}
        self._steps = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._steps = trainer.global_step
        if trainer.received_sigterm:  # it came just before; Lightning would end without saving, with status 0
            self._signum = signal.SIGTERM
            trainer._signal_connector.received_sigterm = False
        if threading.current_thread() is not threading.main_thread():
            return

        def handle(signum: int, frame: Any) -> None:
            if signum == signal.SIGINT and self._signum == signal.SIGINT:
                raise KeyboardInterrupt
            self._signum = self._signum or signum
            if trainer.is_global_zero:
                os.write(2, b"\nlmgraft: asked to stop; saving at the next step\n")  # print() is not for handlers

        signals = [signal.SIGTERM, signal.SIGINT]
        if "SLURM_JOB_ID" in os.environ:
            signals.append(signal.SIGUSR1)
        for signum in signals:
            self._before[signum] = signal.signal(signum, handle)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        stepped, self._steps = trainer.global_step != self._steps, trainer.global_step
        if stepped and not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._end = self._saved(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._end is not None:  # only now: the step's metrics are logged behind on_train_batch_end
            raise self._end

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end = self._saved(trainer)
        if self._end is not None:
            raise self._end

    def _saved(self, trainer: Trainer) -> InterruptedRunError | None:
        """Save, if any process was asked to stop; how the run ends then."""
        if not in_any_process(trainer, self._signum is not None):
            return None
        signum = self._signum or signal.SIGTERM
        saved = self._save(trainer)
        return InterruptedRunError(
            f"stopped by {signal.Signals(signum).name} in epoch {trainer.current_epoch + 1}, "
            f"after step {trainer.global_step}; "
            + ("last.ckpt is written" if saved else "last.ckpt could not be written, the one before it is kept"),
            "the same command with --resume goes on, to the same result",
            signum=signum,
        )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore()

    def _restore(self) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before = {}
