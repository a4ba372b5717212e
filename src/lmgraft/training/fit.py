"""One training run in a run folder: the Trainer, its checkpoints and logs, and resuming.

<run>/checkpoints/last.ckpt   every few steps and at each epoch's end
<run>/checkpoints/best.ckpt   best on the held-out validation split
<run>/logs/csv/version_N/     metrics of the N-th launch; TensorBoard beside it
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, RichProgressBar
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

from lmgraft import records
from lmgraft.errors import RecipeError
from lmgraft.training.callbacks import KeepBlockIdentity, PlainProgress, SeedSteps, Stopwatch, StopWhenNotFinite
from lmgraft.training.checkpoints import AtomicCheckpointIO, read_checkpoint


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, on what, and how often to save."""

    epochs: int = 3
    """Passes over the training images."""
    precision: str = "auto"
    """auto: bfloat16 mixed where the device has it, else float32; or any Lightning precision."""
    accelerator: str = "auto"
    """cpu, gpu, ... as Lightning names them."""
    devices: str | int = "auto"
    """How many devices."""
    accumulate: int = 1
    """Batches whose gradients are added up before a step."""
    clip_grad: float | None = None
    """Largest gradient norm; None does not clip."""
    save_every: int = 50
    """Steps between saves of last.ckpt."""
    log_every: int = 10
    """Steps between logged losses."""

    def __post_init__(self) -> None:
        for name in ("epochs", "accumulate", "save_every", "log_every"):
            if getattr(self, name) < 1:
                raise RecipeError(f"train.{name}={getattr(self, name)} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class FitSummary:
    """What a run cost and reached."""

    seconds: float
    peak_memory: int
    steps: int
    best_val_accuracy: float
    device: str


MONITOR = "val/accuracy"
Verbosity = Literal["auto", "plain", "none"]


def checkpoint_path(run_dir: Path, which: Literal["last", "best"]) -> Path:
    return run_dir / "checkpoints" / f"{which}.ckpt"


def fit(
    task: LightningModule,
    data: LightningDataModule,
    run_dir: Path,
    config: TrainConfig,
    *,
    seed: int,
    block_digest: str | None,
    label: str = "train",
    resume: bool = False,
    progress: Verbosity = "auto",
) -> FitSummary:
    """Train `task` to the end of `config.epochs`, from the start or from last.ckpt.

    Args:
        seed: Seed of every step's draws.
        block_digest: Identity of the frozen block, or None; checkpoints carry it.
        label: Shown before progress lines.
        resume: Go on from last.ckpt; without one, start.
        progress: A bar on a terminal and lines elsewhere; `plain` always lines; or `none`.

    Raises:
        RunError: If the loss stops being finite, or last.ckpt cannot be read.
    """
    last = checkpoint_path(run_dir, "last")
    start_from = last if resume and last.exists() else None
    if start_from is not None:
        read_checkpoint(start_from)  # a damaged file is reported before anything is set up
    run_dir.mkdir(parents=True, exist_ok=True)
    if last.parent.exists():
        records.sweep_temporaries(last.parent)
    watch = Stopwatch()
    best, *savers = _checkpoint_callbacks(run_dir, config)
    callbacks: list[Callback] = [SeedSteps(seed), StopWhenNotFinite(), watch, KeepBlockIdentity(block_digest)]
    with quiet():
        trainer = Trainer(
            default_root_dir=run_dir,
            max_epochs=config.epochs,
            precision=_precision(config),
            accelerator=config.accelerator,
            devices=config.devices,
            accumulate_grad_batches=config.accumulate,
            gradient_clip_val=config.clip_grad,
            log_every_n_steps=config.log_every,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # the sampler splits by rank itself
            callbacks=[*callbacks, *_progress(label, progress), best, *savers],
            logger=_loggers(run_dir),
            plugins=[AtomicCheckpointIO()],
            enable_model_summary=False,
            enable_progress_bar=_bar_wanted(progress),
        )
        trainer.fit(task, datamodule=data, ckpt_path=start_from, weights_only=True)
    score = best.best_model_score
    return FitSummary(
        seconds=watch.seconds,
        peak_memory=watch.peak_memory,
        steps=trainer.global_step,
        best_val_accuracy=float("nan") if score is None else float(score),
        device=str(trainer.strategy.root_device),
    )


def evaluate(
    task: LightningModule, data: LightningDataModule, config: TrainConfig, callbacks: Sequence[Callback] = ()
) -> dict[str, float]:
    """Metrics of `task` on the test split."""
    with quiet():
        trainer = Trainer(
            accelerator=config.accelerator,
            devices=1,  # several processes would pad the test set and count images twice
            precision=_precision(config),
            logger=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            callbacks=list(callbacks),
        )
        (metrics,) = trainer.test(task, datamodule=data, verbose=False)
    return {name: float(value) for name, value in metrics.items()}


def _precision(config: TrainConfig) -> Any:
    if config.precision != "auto":
        return config.precision
    on_gpu = config.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return "bf16-mixed" if on_gpu and torch.cuda.is_bf16_supported() else "32-true"


def _checkpoint_callbacks(run_dir: Path, config: TrainConfig) -> tuple[ModelCheckpoint, ...]:
    folder = run_dir / "checkpoints"
    shared: dict[str, Any] = {"dirpath": folder, "save_top_k": 1, "enable_version_counter": False}
    return (
        ModelCheckpoint(filename="best", monitor=MONITOR, mode="max", save_on_train_epoch_end=False, **shared),
        ModelCheckpoint(filename="last", monitor=None, every_n_train_steps=config.save_every, **shared),
        ModelCheckpoint(filename="last", monitor=None, every_n_epochs=1, save_on_train_epoch_end=True, **shared),
    )


def _loggers(run_dir: Path) -> list[Any]:
    logs = run_dir / "logs"
    return [
        CSVLogger(logs, name="csv", flush_logs_every_n_steps=1),
        TensorBoardLogger(logs, name="tensorboard", version=""),
    ]


def _bar_wanted(progress: Verbosity) -> bool:
    return progress == "auto" and sys.stderr.isatty()


def _progress(label: str, progress: Verbosity) -> list[Callback]:
    if progress == "none":
        return []
    return [RichProgressBar()] if _bar_wanted(progress) else [PlainProgress(label)]


@contextmanager
def quiet() -> Iterator[None]:
    """Lightning without its advice on what was decided here on purpose."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for message in (
            r".*does not have many workers.*",  # images in memory need none
            r".*module\(s\) in eval mode at the start of training.*",  # the frozen block, on purpose
            r".*your dataloader is not resumable.*",  # EpochLoader asks the trainer where it stands
            r".*Checkpoint directory .* exists and is not empty.*",  # resuming
            r".*logging interval.*",  # tiny runs
            r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",  # between Lightning and torch
        ):
            warnings.filterwarnings("ignore", message=message)
        try:
            for logger in loggers:
                logger.setLevel(logging.WARNING)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
