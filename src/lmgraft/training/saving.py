"""When checkpoints are written: last.ckpt at optimiser steps and epochs' ends, best.ckpt by validation.

A disk that is full costs a warning, not the run: the checkpoint before is kept, and the next save
tries again.
"""

from __future__ import annotations

import errno
import math
import warnings
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint

from lmgraft.errors import RunError
from lmgraft.training.checkpoints import AtomicCheckpointIO, RunWarning, checkpoint_path
from lmgraft.training.stopping import NotFiniteError

MONITOR = "val/accuracy"


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
    """

    def __init__(self, run_dir: Path, every: int, io: TolerantIO) -> None:
        self.last, self.best = checkpoint_path(run_dir, "last"), checkpoint_path(run_dir, "best")
        self.every, self.io = every, io
        self.best_score = -math.inf
        """Of best.ckpt as it lies on disk."""
        self._unwritten: tuple[float, dict[str, Any]] | None = None
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
        found = trainer.callback_metrics.get(MONITOR)
        score = -math.inf if found is None else float(found)
        known = self.best_score if self._unwritten is None else self._unwritten[0]
        if trainer.sanity_checking or not score > known:
            return
        before, self.best_score = self.best_score, score  # the file is to hold its own score
        self._unwritten = None
        if self._save(trainer, self.best):
            return
        self.best_score = before
        content = {
            "state_dict": trainer.strategy.lightning_module_state_dict(),
            "callbacks": {c.state_key: c.state_dict() for c in trainer.callbacks if c.state_dict()},  # type: ignore[attr-defined]
        }
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            callback.on_save_checkpoint(trainer, pl_module, content)
        self._unwritten = (score, _copied(content))

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
        score, content = self._unwritten
        if trainer.is_global_zero:
            self.io.save_checkpoint(content, self.best)
        if self._fault(trainer) is None:
            self._unwritten, self.best_score = None, score

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
        return {"best_score": self.best_score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_score = state_dict["best_score"]


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
