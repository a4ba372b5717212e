"""Jobs on this machine: each in a process of its own, some at a time."""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import replace

import torch

from lmgraft.errors import LmgraftError
from lmgraft.studies.study.jobs import ATTEMPTS, Done, Executor, Job, brief, train
from lmgraft.studies.worker import WorkerDiedError, in_own_process
from lmgraft.training.stopping import InterruptedRunError


def local(workers: int = 1) -> Executor:
    """An executor of `workers` processes that share this machine's processors; each sees one GPU, if there are any."""

    def run(jobs: Iterable[Job], say: Callable[[str], None]) -> Iterator[Done]:
        stop = threading.Event()
        threads = None if workers == 1 else max(1, torch.get_num_threads() // workers)
        pool, places = ThreadPoolExecutor(workers), _places(workers)
        futures: list[Future[Done | None]] = [
            pool.submit(_attempt, replace(job, threads=job.threads or threads), places, say, stop) for job in jobs
        ]
        try:
            for future in as_completed(futures):
                done = future.result()
                if done is not None:
                    yield done
        finally:
            stop.set()  # what has not begun does not begin; what runs saves and ends, or is waited for
            pool.shutdown(wait=True, cancel_futures=True)

    return run


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
            in_own_process(train_at, place, job)
            return Done(job=job, seconds=time.monotonic() - started)
        except InterruptedRunError as error:
            if error.signum == signal.SIGINT:
                return None  # Ctrl-C reaches all: the study stops too
            say(f"{job.name}: {error.message}; attempt {attempt} of {ATTEMPTS}")
        except WorkerDiedError as error:
            say(f"{job.name}: {error.message}; attempt {attempt} of {ATTEMPTS}")
        except LmgraftError as error:
            return Done(job=job, seconds=time.monotonic() - started, error=brief(error))
        except (OSError, RuntimeError, MemoryError) as error:  # no room on a disk or GPU: perhaps only for this run
            said = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            return Done(job=job, seconds=time.monotonic() - started, error=said)
    return Done(job=job, seconds=time.monotonic() - started, error=f"its process died {ATTEMPTS} times")
