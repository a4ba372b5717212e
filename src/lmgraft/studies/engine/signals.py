"""SIGTERM and Ctrl-C while runs are under way elsewhere: noted, so that the runs can save, and answered after."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lmgraft.training.stopping import InterruptedRunError


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """SIGTERM and Ctrl-C are noted in the list, to be answered between two looks; a second Ctrl-C is not.

    Elsewhere than in the main thread, which alone gets signals, the list stays empty.
    """
    asked: list[int] = []

    def note(signum: int, frame: Any) -> None:
        if signum == signal.SIGINT and signal.SIGINT in asked:
            raise KeyboardInterrupt
        asked.append(signum)

    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {signum: signal.signal(signum, note) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def answer(signum: int) -> None:
    """End as the signal asked.

    Raises:
        KeyboardInterrupt: For Ctrl-C.
        InterruptedRunError: For SIGTERM.
    """
    if signum == signal.SIGINT:
        raise KeyboardInterrupt
    raise InterruptedRunError(
        f"stopped by {signal.Signals(signum).name}; runs under way have saved", "the same command goes on", signum
    )
