"""What watches a run: seeds of steps, the block's identity, time and memory, progress."""

from __future__ import annotations

import random
import sys
import time
import warnings
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from lmgraft.contracts import Metric
from lmgraft.data.base import Data, UnreadableItemWarning
from lmgraft.data.loader import Fault
from lmgraft.errors import BlockError
from lmgraft.training.clock import Clock
from lmgraft.training.stopping import gathered


class SeedSteps(Callback):
    """Every step's random draws (mixup, drop path, dropout) are a function of (seed, step).

    So arms that share a seed share their draws, and a resumed run repeats what it missed.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        key = np.random.SeedSequence([self.seed, trainer.current_epoch, batch_idx, trainer.global_rank])
        words = key.generate_state(3)
        torch.manual_seed(int(words[0]))
        np.random.seed(int(words[1]))
        random.seed(int(words[2]))


class KeepBlockIdentity(Callback):
    """Writes the block's digest into checkpoints, and refuses one that was made with another block."""

    def __init__(self, digest: str | None) -> None:
        self.digest = digest

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["lmgraft"] = {"block_digest": self.digest}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        check_block(checkpoint, self.digest)


def check_block(checkpoint: Mapping[str, Any], digest: str | None) -> None:
    """Refuse a checkpoint that was made with another block than `digest`.

    Raises:
        BlockError: If the digests differ.
    """
    recorded = checkpoint.get("lmgraft", {}).get("block_digest")
    if recorded != digest:
        raise BlockError(
            f"the checkpoint was trained with block {str(recorded)[:12]}, this run has {str(digest)[:12]}",
            "give the same llm, layer and arm as before, or start a new run folder",
        )


class ShareFaults(Callback):
    """At an epoch's end every process knows the unreadable files of all processes, and the limit counts them all.

    Comes before what writes checkpoints and tables.
    """

    def __init__(self, data: Data) -> None:
        self.data = data

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.world_size == 1:
            return
        for state in gathered(trainer, self.data.state_dict()):
            for split, files in state.get("unreadable", {}).items():
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UnreadableItemWarning)  # the process that read them has warned
                    self.data.report(split, [Fault(*fault) for fault in files.items()])


class Stopwatch(Callback):
    """What training took of the machine, and peak memory, added up over interruptions.

    Counts from the first step to the end of training, validation included, and only the steps that
    led to the present weights. `device_seconds` are those of a GPU, by its own events around each
    training step; None on a CPU, and where a part of the training was not measured so.
    """

    def __init__(self) -> None:
        self.clock, self.peak_memory = Clock(), 0
        self.device_seconds: float | None = 0.0
        self._steps: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if pl_module.device.type != "cuda":
            self.device_seconds = None
        self.clock.start()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.device_seconds is not None:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            self._steps.append((start, end))
            self._steps[-1][0].record()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.device_seconds is not None:
            self._steps[-1][1].record()
            self._count_steps(wait=False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._read()
        self.clock.stop()

    def _count_steps(self, *, wait: bool) -> None:
        """Add up the steps that the GPU has done; with `wait` all of them."""
        while self._steps and self.device_seconds is not None:
            start, end = self._steps[0]
            if wait:
                end.synchronize()
            elif not end.query():  # type: ignore[no-untyped-call]
                return
            self.device_seconds += start.elapsed_time(end) / 1000
            self._steps.popleft()

    def _read(self) -> None:
        self._count_steps(wait=True)
        self.clock.read()
        self.peak_memory = max(self.peak_memory, peak_memory())

    def state_dict(self) -> dict[str, Any]:
        self._read()
        measured = {name: getattr(self.clock, name) for name in ("seconds", "cpu_seconds", "thread_seconds")}
        return measured | {"device_seconds": self.device_seconds, "peak_memory": self.peak_memory}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        names = ("seconds", "cpu_seconds", "thread_seconds")
        measured = {"cpu_seconds": None, "thread_seconds": 0.0} | state_dict  # older versions kept neither
        self.clock = Clock(**{name: measured[name] for name in names})
        self.device_seconds, self.peak_memory = state_dict.get("device_seconds"), state_dict["peak_memory"]


def peak_memory() -> int:
    """Bytes at the peak: of the GPU if one is in use, else of this process."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class PlainProgress(Callback):
    """A line now and then, for logs and terminals without a cursor."""

    def __init__(self, label: str, data: Data, monitor: Metric, every: float = 10.0) -> None:
        self.label, self.data, self.monitor, self.every = label, data, monitor, every
        self._last, self._started, self._first_step, self._items = 0.0, 0.0, 0, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = self._last = time.monotonic()
        self._first_step, self._items = trainer.global_step, 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        self._items += len(batch.index) * trainer.world_size
        if now - self._last < self.every:
            return
        rate = self._items / (now - self._last)
        self._last, self._items = now, 0
        step, total = trainer.global_step, int(trainer.estimated_stepping_batches)
        left = (now - self._started) / max(1, step - self._first_step) * (total - step)
        loss = outputs["loss"].item() * trainer.accumulate_grad_batches  # Lightning divides it
        self._say(
            trainer, f"step {step}/{total}, loss {loss:.3f}, {rate:.0f} {self.data.things}/s, about {left:.0f} s left"
        )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        name = self.monitor.name
        value = trainer.callback_metrics[f"val/{name}"]
        split = "test" if self.data.selection == "test" else "val"
        self._say(trainer, f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}, {split} {name} {value:.4f}")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = self._last = time.monotonic()

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        now = time.monotonic()
        if now - self._last < self.every:
            return
        self._last, before = now, self.data.tested
        total, done = int(sum(trainer.num_test_batches)), batch_idx + 1
        left = (now - self._started) / done * (total - before - done)
        self._say(trainer, f"test: batch {before + done}/{total} of {self.data.things}, about {left:.0f} s left")

    def _say(self, trainer: Trainer, text: str) -> None:
        if not trainer.is_global_zero:
            return
        sys.stderr.write(f"[{self.label}] {text}\n")
        sys.stderr.flush()
