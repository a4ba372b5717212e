"""When checkpoints are written: last.ckpt at optimiser steps and epochs' ends, best.ckpt by validation.

A disk that is full costs a warning, not the run: the checkpoint before is kept, and the next save
tries again.
"""

from __future__ import annotations

import errno
import warnings
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint

from lmgraft.contracts import Metric
from lmgraft.errors import RunError
from lmgraft.tasks.base import Task
from lmgraft.training.checkpoints import AtomicCheckpointIO, RunWarning, checkpoint_path
from lmgraft.training.stopping import NotFiniteError


class TolerantIO(AtomicCheckpointIO):
    """Keeps what went wrong in `fault` instead of raising it: other processes wait behind the save."""

    def __init__(self) -> None:
        super().__init__()
        self.fault: OSError | NotFiniteError | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        self.fault = None
        try:
            super().save_checkpoint(checkpoint, path, storage_options)
        except (OSError, NotFiniteError) as error:
            self.fault = error


class KeepCheckpoints(Checkpoint):
    """Writes last.ckpt and best.ckpt.

    Nothing is written between the last batch of an epoch and its validation: Lightning would not
    validate after a restart from there, and the choice of the best epoch would differ.

    Args:
        run_dir: The run folder.
        every: Optimiser steps between saves of last.ckpt.
        io: The trainer's.
        monitor: The metric whose best value on the validation items makes an epoch the best.
        last_epoch: The last epoch counts as the best, whatever its value.
    """

    def __init__(self, run_dir: Path, every: int, io: TolerantIO, monitor: Metric, last_epoch: bool = False) -> None:
        self.last, self.best = checkpoint_path(run_dir, "last"), checkpoint_path(run_dir, "best")
        self.every, self.io, self.monitor, self.last_epoch = every, io, monitor, last_epoch
        self.best_values: dict[str, float] = {}
        """Metric -> value on the validation items, of best.ckpt as it lies on disk; empty while there is none."""
        self._unwritten: tuple[dict[str, float], dict[str, Any]] | None = None
        self._steps = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._steps = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        stepped, self._steps = step != self._steps, step
        if stepped and step % self.every == 0 and not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self.save_last(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.save_last(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Task)
        values = dict(pl_module.values)
        if trainer.sanity_checking or not self._is_best(values):
            return
        before, self.best_values = self.best_values, values  # the file is to hold its own values
        self._unwritten = None
        if self._save(trainer, self.best):
            return
        self.best_values = before
        content = {
            "state_dict": trainer.strategy.lightning_module_state_dict(),
            "callbacks": {c.state_key: c.state_dict() for c in trainer.callbacks if c.state_dict()},  # type: ignore[attr-defined]
        }
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            callback.on_save_checkpoint(trainer, pl_module, content)
        self._unwritten = (values, _copied(content))

    def _is_best(self, values: dict[str, float]) -> bool:
        known = self.best_values if self._unwritten is None else self._unwritten[0]
        if self.last_epoch or not known:
            return True
        name, direction = self.monitor.name, self.monitor.direction
        return direction * values[name] > direction * known[name]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write_pending(trainer)
        fault = self._fault(trainer)
        if self._unwritten is not None:
            raise RunError(
                f"{self.best}, the best weights, could not be written: {_described(fault)}",
                "make room and add --resume: training goes on from last.ckpt, whose weights may be later ones",
            )

    def save_last(self, trainer: Trainer) -> bool:
        """Write last.ckpt; called by all processes. Whether it could be written."""
        self._write_pending(trainer)
        return self._save(trainer, self.last)

    def _write_pending(self, trainer: Trainer) -> None:
        """Try again to write the best weights, which were copied when it was not possible."""
        if self._unwritten is None:
            return
        values, content = self._unwritten
        if trainer.is_global_zero:
            self.io.save_checkpoint(content, self.best)
        if self._fault(trainer) is None:
            self._unwritten, self.best_values = None, values

    def _save(self, trainer: Trainer, path: Path) -> bool:
        self.io.fault = None  # only the first process writes
        trainer.save_checkpoint(path, weights_only=False)
        fault = self._fault(trainer)
        if isinstance(fault, NotFiniteError):
            raise fault
        if fault is not None and trainer.is_global_zero:
            warnings.warn(
                f"{path} could not be written: {_described(fault)}; what it held before is kept, "
                "and the next save tries again",
                RunWarning,
                stacklevel=2,
            )
        return fault is None

    def _fault(self, trainer: Trainer) -> OSError | NotFiniteError | None:
        """What kept the first process from writing, told to all."""
        fault: OSError | NotFiniteError | None = trainer.strategy.broadcast(self.io.fault)
        return fault

    def state_dict(self) -> dict[str, Any]:
        return {"best_values": dict(self.best_values)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_values = dict(state_dict["best_values"])


def _described(error: OSError | NotFiniteError | None) -> str:
    if not isinstance(error, OSError):
        return str(error)
    name = errno.errorcode.get(error.errno or 0, "?")
    return f"{error.strerror} (errno {error.errno}, {name})"


def _copied(value: Any) -> Any:
    """A copy in main memory that later steps do not change."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value
