"""One training run in a run folder: the Trainer, its checkpoints and logs, and resuming.

<run>/checkpoints/last.ckpt   every few steps and at each epoch's end; previous.ckpt is the one before
<run>/checkpoints/best.ckpt   best on the validation split by the task's first metric, or of the last epoch
<run>/logs/csv/version_N/     metrics of the N-th launch; TensorBoard beside it
<run>/metrics.json            a row for each epoch
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning_fabric.utilities.exceptions import MisconfigurationException
from lightning_utilities.core.rank_zero import rank_zero_only
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import Callback, RichProgressBar

from lmgraft import records
from lmgraft.data.base import Data
from lmgraft.data.loader import EpochLoader
from lmgraft.errors import RecipeError, first_line
from lmgraft.tasks.base import Task
from lmgraft.training.batchnorm import BatchNormMomentum
from lmgraft.training.callbacks import KeepBlockIdentity, PlainProgress, SeedSteps, ShareFaults, Stopwatch
from lmgraft.training.checkpoints import newest_whole, set_damaged_aside
from lmgraft.training.config import TrainConfig
from lmgraft.training.ema import KeepEma
from lmgraft.training.logs import CurveLog, EpochTable, RowLog
from lmgraft.training.saving import KeepCheckpoints, TolerantIO
from lmgraft.training.schedule import ExactRates
from lmgraft.training.stopping import StopOnSignal, StopWhenNotFinite
from lmgraft.training.strategy import make_plugins, make_strategy


@dataclass(frozen=True, kw_only=True)
class FitSummary:
    """What a run cost and reached."""

    seconds: float
    peak_memory: int
    steps: int
    val: dict[str, float]
    """Metric -> value on the validation items, of the best epoch."""
    device: str
    cpu_seconds: float | None = None
    threads: int | None = None
    share: float | None = None
    device_seconds: float | None = None


Verbosity = Literal["auto", "plain", "none"]


@dataclass(frozen=True)
class Display:
    """How progress is shown: a bar on a terminal and lines elsewhere, `plain` always lines, or `none`."""

    label: str = "train"
    """Before progress lines."""
    verbosity: Verbosity = "auto"


def fit(
    task: Task,
    data: Data,
    run_dir: Path,
    config: TrainConfig,
    *,
    seed: int,
    block_digest: str | None,
    display: Display = Display(),
    resume: bool = False,
) -> FitSummary:
    """Train `task` to the end of `config.epochs`, from the start or from last.ckpt.

    Args:
        seed: Seed of every step's draws.
        block_digest: Identity of the frozen block, or None; checkpoints carry it.
        display: How progress is shown.
        resume: Go on from last.ckpt; without one, start.

    Raises:
        NotFiniteError: If the loss stops being finite.
        InterruptedRunError: If a signal asked the run to stop; last.ckpt is written.
        RunError: If no checkpoint can be read, or the best weights could not be written.
    """
    processes(config)  # torchrun's word against the recipe's, before anything is read
    start_from = newest_whole(run_dir) if resume else None  # a damaged file is reported before anything is set up
    run_dir.mkdir(parents=True, exist_ok=True)
    watch, io = Stopwatch(), TolerantIO()
    keeper = KeepCheckpoints(run_dir, config.save_every, io, task.primary, last_epoch=data.selection == "last")
    if rank() == 0 and keeper.last.parent.exists():
        records.sweep_temporaries(keeper.last.parent)
        if start_from is not None:
            set_damaged_aside(run_dir, start_from)
    if config.compile:
        task.model.compile()  # in place: names in checkpoints stay
    # Last those that may end the run: the others have then seen the step.
    callbacks: list[Callback] = [SeedSteps(seed), ExactRates(), StopWhenNotFinite(data), watch, ShareFaults(data)]
    callbacks += [EpochTable(run_dir, data), KeepBlockIdentity(block_digest), *_optional_callbacks(config)]
    callbacks += [*_progress(display, task, data), StopOnSignal(keeper.save_last), keeper]
    with quiet():
        trainer = _make_trainer(
            config,
            **_trainer_options(config),
            default_root_dir=run_dir,
            strategy=make_strategy(config.strategy, task),
            callbacks=callbacks,
            logger=[RowLog(run_dir / "logs"), CurveLog(run_dir / "logs")],
            plugins=[io, *make_plugins()],
            enable_progress_bar=_bar_wanted(display.verbosity),
        )
        _check_processes(trainer, config)
        try:
            trainer.fit(task, datamodule=data, ckpt_path=start_from, weights_only=True)
        except SystemExit as error:
            if isinstance(error.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from None  # Lightning makes an exit of it
            raise
    return _summary(watch, trainer, keeper.best_values)


def _summary(watch: Stopwatch, trainer: Trainer, val: dict[str, float]) -> FitSummary:
    return FitSummary(
        seconds=watch.clock.seconds,
        peak_memory=watch.peak_memory,
        steps=trainer.global_step,
        val=val,
        device=str(trainer.strategy.root_device),
        cpu_seconds=watch.clock.cpu_seconds,
        threads=watch.clock.threads,
        share=watch.clock.share,
        device_seconds=watch.device_seconds,
    )


def _optional_callbacks(config: TrainConfig) -> list[Callback]:
    callbacks: list[Callback] = []
    if config.ema is not None:
        callbacks.append(KeepEma(config.ema, config.evaluate_ema))
    if config.batchnorm_momentum is not None:
        callbacks.append(BatchNormMomentum(config.batchnorm_momentum))
    return callbacks


def _trainer_options(config: TrainConfig) -> dict[str, Any]:
    """Lightning's words for what the recipe says, and for what no recipe changes."""
    devices, nodes = processes(config)
    clip, algorithm = (config.clip_grad, "norm") if config.clip_value is None else (config.clip_value, "value")
    return {
        "max_epochs": config.epochs,
        "precision": precision_of(config),
        "accelerator": config.accelerator,
        "devices": devices,
        "num_nodes": nodes,
        "deterministic": "warn" if config.deterministic else None,
        "accumulate_grad_batches": config.accumulate,
        "gradient_clip_val": clip,
        "gradient_clip_algorithm": algorithm,
        "sync_batchnorm": config.sync_batchnorm,
        "log_every_n_steps": config.log_every,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,  # the sampler splits by rank itself
        "enable_model_summary": False,
    }


def check_trainer(config: TrainConfig) -> None:
    """Refuse what cannot be trained on here, before anything is read.

    Raises:
        RecipeError: If Lightning refuses the recipe's settings, such as a GPU where there is none.
    """
    strategy = "auto" if config.strategy == "fsdp" else config.strategy  # that one is made around a task
    with quiet():
        _make_trainer(config, **_trainer_options(config), strategy=strategy, plugins=make_plugins(), logger=False)


def _make_trainer(config: TrainConfig, **options: Any) -> Trainer:
    """Lightning's Trainer; raises as `check_trainer` says."""
    try:
        return Trainer(**options)
    except (MisconfigurationException, ValueError, TypeError) as error:
        chosen = ", ".join(
            f"train.{name}={getattr(config, name)}"
            for name in ("accelerator", "devices", "num_nodes", "precision", "strategy")
        )
        raise RecipeError(
            f"Lightning cannot train here with {chosen}: {first_line(error)}", "change one of them"
        ) from error


def processes(config: TrainConfig) -> tuple[str | int, int]:
    """Devices of a machine, and machines: those of the recipe, or where it leaves them open those of torchrun.

    Raises:
        RecipeError: If the recipe says another number than torchrun.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return config.devices, config.num_nodes
    local, nodes = (int(os.environ.get(name) or 1) for name in ("LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE"))
    remedy = "leave the option out, or give torchrun the same number"
    if str(config.devices) not in ("auto", str(local)):
        raise RecipeError(
            f"torchrun started {local} processes on this machine, but train.devices is {config.devices}", remedy
        )
    if config.num_nodes not in (1, nodes):
        raise RecipeError(f"torchrun has {nodes} machines, but train.num_nodes is {config.num_nodes}", remedy)
    return local, nodes


def _check_processes(trainer: Trainer, config: TrainConfig) -> None:
    started = int(os.environ.get("WORLD_SIZE") or 1)
    if started != 1 and trainer.world_size == 1:
        raise RecipeError(
            f"{started} processes were started, but train.devices and train.num_nodes make one of it",
            f"give --train.devices, the processes of one machine (torchrun's --nproc_per_node), of {started} in all",
        )
    if config.sync_batchnorm and trainer.world_size > 1 and trainer.strategy.root_device.type == "cpu":
        raise RecipeError("train.sync_batchnorm works on GPUs only: torch has it for no CPU", "set it to false")


def rank() -> int:
    """Which of all processes this is, as torchrun, SLURM or Lightning's launcher tell it."""
    return int(getattr(rank_zero_only, "rank", 0) or 0)


def several_processes() -> bool:
    """Whether this is one of several processes that torchrun, SLURM or Lightning's launcher started."""
    return any(int(os.environ.get(name) or 1) > 1 for name in ("WORLD_SIZE", "SLURM_NTASKS"))


def end_other_processes() -> None:
    """Leave the process group; all processes but the first end here, as what follows is done once."""
    if not dist.is_available() or not dist.is_initialized():
        return
    dist.barrier()
    dist.destroy_process_group()
    if rank() != 0:
        raise SystemExit(0)


def evaluate(
    task: Task, data: Data | EpochLoader, config: TrainConfig, callbacks: Sequence[Callback] = ()
) -> dict[str, float]:
    """Metrics of `task` on the test split of `data`, or on what a loader gives; of each item in `task.items`."""
    with quiet():
        trainer = _make_trainer(
            config,
            accelerator=config.accelerator,
            devices=1,  # several processes would pad the test set and count items twice
            precision=precision_of(config),
            logger=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            callbacks=list(callbacks),
        )
        trainer.test(task, data, verbose=False)
    return dict(task.values)


def on_gpu(config: TrainConfig) -> bool:
    """Whether a run trains on a CUDA device."""
    return config.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def precision_of(config: TrainConfig) -> Any:
    """What train.precision is on this machine, as Lightning names it."""
    if config.precision != "auto":
        return config.precision
    if not on_gpu(config):
        return "32-true"
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16-mixed"
    return "32-true" if config.strategy == "fsdp" else "16-mixed"  # with shards there is no loss scaling


def _bar_wanted(progress: Verbosity) -> bool:
    return progress == "auto" and sys.stderr.isatty()


def _progress(display: Display, task: Task, data: Data) -> list[Callback]:
    return [RichProgressBar()] if _bar_wanted(display.verbosity) else testing(display, task, data)


def testing(display: Display, task: Task, data: Data) -> list[Callback]:
    """What shows the progress of a test, and of a training without a bar: lines at most."""
    return [] if display.verbosity == "none" else [PlainProgress(display.label, data, task.primary)]


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
            r"Grad strides do not match bucket view strides.*",  # DDP, convolutions of one channel
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
