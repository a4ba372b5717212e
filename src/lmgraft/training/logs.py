"""What a run writes as it goes: CSV, TensorBoard and metrics.json; none of them can end it."""

from __future__ import annotations

import csv
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.loggers.logger import rank_zero_experiment
from lightning_utilities.core.rank_zero import rank_zero_only
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter

from lmgraft import records
from lmgraft.data.base import Data
from lmgraft.training.checkpoints import RunWarning
from lmgraft.training.schedule import base_rate


class _Once:
    """Runs what may meet a full disk; the first failure is a warning, later ones are silent."""

    def __init__(self, what: str) -> None:
        self.what, self.failed = what, False

    def __call__(self, write: Callable[[], Any]) -> None:
        try:
            write()
        except OSError as error:
            if not self.failed:
                warnings.warn(
                    f"{self.what} could not be written: {error.strerror} (errno {error.errno}); training goes on",
                    RunWarning,
                    stacklevel=3,
                )
            self.failed = True


class _Rows(ExperimentWriter):
    """Rows that cannot be written are kept and tried again; the file is never left with half of something."""

    def save(self) -> None:
        file = Path(self.metrics_file_path)
        self._note(file)
        try:
            super().save()
        except OSError:
            self.metrics_keys = self._keys
            if self._size is None:
                file.unlink(missing_ok=True)
            elif file.stat().st_size > self._size:
                os.truncate(file, self._size)
            raise

    def _note(self, file: Path) -> None:
        self._keys, self._size = list(self.metrics_keys), file.stat().st_size if file.exists() else None

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        file = Path(self.metrics_file_path)
        with open(file, newline="", encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines))
        with records.atomic_path(file) as temporary, open(temporary, "w", newline="", encoding="utf-8") as lines:
            writer = csv.DictWriter(lines, fieldnames=fieldnames)
            writer.writeheader()
            writer.writerows(rows)
        self._note(file)


class RowLog(CSVLogger):
    """Metrics as CSV, written as they come."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, name="csv", flush_logs_every_n_steps=1)
        self._once = _Once(f"{folder / 'csv'}")

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            Path(self.root_dir).mkdir(parents=True, exist_ok=True)
            self._experiment = _Rows(self.log_dir)
        return self._experiment

    @rank_zero_only
    def save(self) -> None:
        self._once(super().save)


class CurveLog(TensorBoardLogger):
    """Metrics for TensorBoard; after a failure there is nothing more of them."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, name="tensorboard", version="")
        self._once = _Once(f"{folder / 'tensorboard'}")

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if not self._once.failed:
            self._once(lambda: super(CurveLog, self).log_metrics(metrics, step))

    def save(self) -> None:
        if not self._once.failed:
            self._once(super().save)

    def finalize(self, status: str) -> None:
        if not self._once.failed:
            self._once(lambda: super(CurveLog, self).finalize(status))


class EpochTable(Callback):
    """One row an epoch in metrics.json: learning rate of its last step, loss, val/ metrics, seconds, items a second.

    Seconds and items are of training alone, without validation; a row of an epoch that was
    interrupted counts the steps that led to the present weights.
    """

    def __init__(self, run_dir: Path, data: Data) -> None:
        self.file, self.data = run_dir / "metrics.json", data
        self.rows: list[dict[str, Any]] = []
        self._once = _Once(str(self.file))
        self._rate = 0.0
        self._clear()

    def _clear(self) -> None:
        self._loss, self._batches, self._items, self._seconds = 0.0, 0, 0, 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since = time.perf_counter()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since = time.perf_counter()

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        self._rate = base_rate(optimizer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # The logged loss is of all processes; so the sum, which the first one saves, is everybody's.
        logged = trainer.callback_metrics.get("train/loss")
        self._loss += float(outputs["loss"] * trainer.accumulate_grad_batches if logged is None else logged)
        self._batches += 1
        self._items += len(batch.index) * trainer.world_size
        now = time.perf_counter()
        self._seconds, self._since = self._seconds + now - self._since, now

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._batches:
            return
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        self.rows.append(
            {
                "epoch": trainer.current_epoch,
                "step": trainer.global_step,
                "learning_rate": self._rate,
                "train/loss": self._loss / self._batches,
                **metrics,
                "seconds": self._seconds,
                f"{self.data.things}_per_second": self._items / self._seconds if self._seconds else 0.0,
                "unreadable_files": len(self.data.faults),
            }
        )
        self._clear()
        if trainer.is_global_zero:
            self._once(lambda: records.write_json(self.file, self.rows))

    def state_dict(self) -> dict[str, Any]:
        return {"rows": list(self.rows), "open": [self._loss, self._batches, self._items, self._seconds]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])
        self._loss, self._batches, self._items, self._seconds = state_dict["open"]
