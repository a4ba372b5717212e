"""Trainings on this machine: each in a process of its own, some at a time."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

import torch

from lmgraft import records
from lmgraft.errors import LmgraftError, RunError
from lmgraft.studies.engine.missing import Done, Executor, brief
from lmgraft.studies.engine.progress import Say
from lmgraft.studies.engine.runs import Run, train
from lmgraft.studies.engine.signals import answer, noted_signals
from lmgraft.studies.engine.worker import WorkerDiedError, in_own_process
from lmgraft.training.stopping import InterruptedRunError

ATTEMPTS = 3
"""How often a run is begun whose worker dies, before the others go on without it."""
TRACE = "error.txt"
"""In a run's folder: where an error that is no mistake of the user's came from."""
_POLL = 0.25


def local(workers: int = 1) -> Executor[Run]:
    """An executor of `workers` processes that share this machine's processors; each sees one GPU, if there are any.

    It raises:
        InterruptedRunError: On SIGTERM, when the runs under way have saved.
        KeyboardInterrupt: Likewise on Ctrl-C; a second one does not wait.
    """

    def do(runs: Iterable[Run], say: Say) -> Iterator[Done[Run]]:
        others = set(multiprocessing.active_children())
        threads = None if workers == 1 else max(1, torch.get_num_threads() // workers)
        team = _Team(threads=threads, places=_places(workers), say=say)
        pool = ThreadPoolExecutor(workers)
        left: set[Future[Done[Run] | None]] = {pool.submit(team.train, run) for run in runs}
        with noted_signals() as asked:
            try:
                while left and not asked:
                    ended, left = wait(left, _POLL, FIRST_COMPLETED)
                    yield from (done for done in (future.result() for future in ended) if done is not None)
            finally:
                team.stop.set()  # what has not begun does not begin; what runs saves and ends
                _end(pool, left, others)
        if asked:
            answer(asked[0])

    return do


def _end(pool: ThreadPoolExecutor, left: set[Future[Done[Run] | None]], others: set[Any]) -> None:
    """Ask workers to save, and wait for them; a Ctrl-C meanwhile ends them at once."""
    pool.shutdown(wait=False, cancel_futures=True)
    left = {future for future in left if not future.cancelled()}  # wait() would never call these done
    asked: set[Any] = set()
    try:
        while left:
            workers = set(multiprocessing.active_children()) - others
            for worker in workers - asked:
                worker.terminate()  # SIGTERM, which a run that trains answers by saving
            asked |= workers
            _, left = wait(left, _POLL)
    except KeyboardInterrupt:
        for worker in set(multiprocessing.active_children()) - others:
            worker.kill()
        raise
    finally:
        pool.shutdown(wait=True)


def _places(workers: int) -> queue.Queue[str | None]:
    """The GPU of each worker, as CUDA_VISIBLE_DEVICES names it; None without GPUs."""
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    gpus: list[str | None] = [*(named or map(str, range(torch.cuda.device_count())))]
    places: queue.Queue[str | None] = queue.Queue()
    for worker in range(workers):
        places.put(gpus[worker % len(gpus)] if gpus and torch.cuda.device_count() else None)
    return places


@dataclass(kw_only=True)
class _Team:
    """What the threads share that each wait for one worker process."""

    threads: int | None
    places: queue.Queue[str | None]
    say: Say
    stop: threading.Event = field(default_factory=threading.Event)

    def train(self, run: Run) -> Done[Run] | None:
        """Train a run in a process; None where it was stopped."""
        place = self.places.get()  # there are as many as threads
        try:
            return self._attempts(run, place)
        finally:
            self.places.put(place)

    def _attempts(self, run: Run, place: str | None) -> Done[Run] | None:
        started = time.monotonic()

        def done(error: str | None = None) -> Done[Run]:
            return Done(cell=run, seconds=time.monotonic() - started, error=error)

        for attempt in range(1, ATTEMPTS + 1):
            if self.stop.is_set():
                return None
            try:
                in_own_process(reported, train_at, run, self.threads, place)
                return done()
            except InterruptedRunError as error:
                if error.signum == signal.SIGINT or self.stop.is_set():  # Ctrl-C reaches all: the study stops too
                    self.say(f"{run.name}: {error.message}")
                    return None
                self.say(f"{run.name}: {error.message}; attempt {attempt} of {ATTEMPTS}")
            except WorkerDiedError as error:
                if self.stop.wait(2 * _POLL):
                    return None  # it was asked to, before its first step
                self.say(f"{run.name}: {error.message}; attempt {attempt} of {ATTEMPTS}")
            except (LmgraftError, OSError, RuntimeError) as error:
                return done(brief(error))
        return done(f"its process died {ATTEMPTS} times")


def train_at(run: Run, threads: int | None, place: str | None) -> None:
    """Train a run on one GPU; called in a fresh process, in which torch has not looked for GPUs yet."""
    if place is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = place
    train(run, threads)


def reported(do: Callable[..., None], run: Run, *rest: Any) -> None:
    """Call `do` in the worker's process; what is no mistake of the user's is an error with its traceback in a file.

    Raises:
        LmgraftError: Whatever went wrong: it fails this run, not the study.
    """
    try:
        do(run, *rest)
    except LmgraftError:
        raise
    except Exception as error:  # noqa: BLE001 - a bug, a full disk, no memory: perhaps only for this run
        file = run.folder / TRACE
        records.write_text(file, traceback.format_exc())
        raise RunError(brief(error), f"{file} says where it came from") from None
