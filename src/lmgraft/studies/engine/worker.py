"""One call in a process of its own: its peak memory is its own, and a crash is only its own."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from lmgraft.errors import RunError

T = TypeVar("T")


class WorkerDiedError(RunError):
    """A process that ended without a word."""


def in_own_process(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call a module-level function in a fresh process and return what it returns.

    An exception of the function is raised here. The process ends when this one is killed.

    Raises:
        WorkerDiedError: If the process dies (killed, or out of memory).
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context, initializer=_end_with_parent) as pool:
        try:
            return pool.submit(function, *args, **kwargs).result()
        except BrokenProcessPool:
            raise WorkerDiedError(
                "a training process died without a word: it was killed, or memory ran out",
                "run the same command again, it goes on from the last checkpoint",
            ) from None


def _end_with_parent() -> None:
    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
