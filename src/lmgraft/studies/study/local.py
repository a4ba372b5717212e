"""Jobs on this machine: each in a process of its own, some at a time."""

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
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lmgraft import records
from lmgraft.errors import LmgraftError, RunError
from lmgraft.studies.study.jobs import ATTEMPTS, Done, Executor, Job, brief, train
from lmgraft.studies.study.stopping import answer, noted_signals
from lmgraft.studies.worker import WorkerDiedError, in_own_process
from lmgraft.training.stopping import InterruptedRunError

_POLL = 0.25

TRACE = "error.txt"
"""In a run's folder: where an error that is no mistake of the user's came from."""


def local(workers: int = 1) -> Executor:
    """An executor of `workers` processes that share this machine's processors; each sees one GPU, if there are any.

    It raises:
        InterruptedRunError: On SIGTERM, when the runs under way have saved.
        KeyboardInterrupt: Likewise on Ctrl-C; a second one does not wait.
    """

    def run(jobs: Iterable[Job], say: Callable[[str], None]) -> Iterator[Done]:
        stop, others = threading.Event(), set(multiprocessing.active_children())
        threads = None if workers == 1 else max(1, torch.get_num_threads() // workers)
        pool, places = ThreadPoolExecutor(workers), _places(workers)
        left: set[Future[Done | None]] = {
            pool.submit(_attempt, replace(job, threads=job.threads or threads), places, say, stop) for job in jobs
        }
        with noted_signals() as asked:
            try:
                while left and not asked:
                    ended, left = wait(left, _POLL, FIRST_COMPLETED)
                    for future in ended:
                        done = future.result()
                        if done is not None:
                            yield done
            finally:
                stop.set()  # what has not begun does not begin; what runs saves and ends
                _end(pool, left, others)
        if asked:
            answer(asked[0])

    return run


def _end(pool: ThreadPoolExecutor, left: set[Future[Done | None]], others: set[Any]) -> None:
    """Ask workers to save, and wait for them; a Ctrl-C meanwhile ends them at once."""
    pool.shutdown(wait=False, cancel_futures=True)
    left = {future for future in left if not future.cancelled()}  # wait() would never call these done
    told: set[Any] = set()
    try:
        while left:
            workers = set(multiprocessing.active_children()) - others
            for worker in workers - told:
                worker.terminate()  # SIGTERM, which a run that trains answers by saving
            told |= workers
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


def train_at(place: str | None, job: Job) -> None:
    """Do a job on one GPU; called in a fresh process, in which torch has not looked for GPUs yet."""
    if place is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = place
    train(job)


def reported(do: Callable[[str | None, Job], None], place: str | None, job: Job) -> None:
    """Call `do` in the worker's process; what is no mistake of the user's is an error with its traceback in a file.

    Raises:
        LmgraftError: Whatever went wrong: it fails this run, not the study.
    """
    try:
        do(place, job)
    except LmgraftError:
        raise
    except Exception as error:  # noqa: BLE001 - a bug, a full disk, no memory: perhaps only for this run
        file = Path(job.folder) / TRACE
        records.write_text(file, traceback.format_exc())
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise RunError(said, f"{file} says where it came from") from None


def _attempt(
    job: Job, places: queue.Queue[str | None], say: Callable[[str], None], stop: threading.Event
) -> Done | None:
    place = places.get()  # there are as many as threads
    try:
        return _attempts(job, place, say, stop)
    finally:
        places.put(place)


def _attempts(job: Job, place: str | None, say: Callable[[str], None], stop: threading.Event) -> Done | None:
    started = time.monotonic()
    for attempt in range(1, ATTEMPTS + 1):
        if stop.is_set():
            return None
        try:
            in_own_process(reported, train_at, place, job)
            return Done(job=job, seconds=time.monotonic() - started)
        except InterruptedRunError as error:
            if error.signum == signal.SIGINT or stop.is_set():  # Ctrl-C reaches all: the study stops too
                say(f"{job.name}: {error.message}")
                return None
            say(f"{job.name}: {error.message}; attempt {attempt} of {ATTEMPTS}")
        except WorkerDiedError as error:
            if stop.wait(2 * _POLL):
                return None  # it was told to, before its first step
            say(f"{job.name}: {error.message}; attempt {attempt} of {ATTEMPTS}")
        except LmgraftError as error:
            return Done(job=job, seconds=time.monotonic() - started, error=brief(error))
        except (OSError, RuntimeError) as error:  # the process could not be had, or its disk was too full to say more
            said = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            return Done(job=job, seconds=time.monotonic() - started, error=said)
    return Done(job=job, seconds=time.monotonic() - started, error=f"its process died {ATTEMPTS} times")
