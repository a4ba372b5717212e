"""What a stretch of work takes of the machine: wall seconds, and CPU seconds of this process and its children."""

from __future__ import annotations

import multiprocessing
import os
import resource
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import torch

_PROC = Path("/proc")
_TIMES = slice(11, 15)
"""User and system time, of the process and of its ended children, in /proc/PID/stat behind the program's name."""


@dataclass(kw_only=True)
class Clock:
    """Adds up time between `start` and `stop`; what was measured before an interruption is given to it."""

    seconds: float = 0.0
    """By the clock on the wall."""
    cpu_seconds: float | None = 0.0
    """Of this process and its children, those that still run too; None if a part of it is not known."""
    thread_seconds: float = 0.0
    """Seconds times the threads that torch computes with: what the CPU seconds could have been."""
    threads: int = field(default_factory=torch.get_num_threads)
    _since: tuple[float, float | None] | None = None

    def start(self) -> None:
        """Begin to count."""
        self._since, self.threads = (perf_counter(), cpu_seconds()), torch.get_num_threads()

    def read(self) -> None:
        """Count up to now, if it runs."""
        if self._since is None:
            return
        (wall, cpu), now = self._since, (perf_counter(), cpu_seconds())
        self.seconds += now[0] - wall
        self.thread_seconds += (now[0] - wall) * self.threads
        known = self.cpu_seconds is not None and cpu is not None and now[1] is not None
        self.cpu_seconds = self.cpu_seconds + now[1] - cpu if known else None  # type: ignore[operator]
        self._since = now

    def stop(self) -> None:
        """Count up to now, and no further."""
        self.read()
        self._since = None

    @property
    def share(self) -> float | None:
        """CPU seconds / (wall seconds x threads); above 1 where children, such as loader workers, compute too."""
        return None if self.cpu_seconds is None or not self.thread_seconds else self.cpu_seconds / self.thread_seconds


def cpu_seconds() -> float | None:
    """CPU seconds so far of this process, its ended children, and the living ones that multiprocessing started.

    None where children live and the system has no /proc to ask about them.
    """
    living = [_of_process(child.pid) for child in multiprocessing.active_children()]
    if None in living:
        return None
    ended = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in ended) + sum(filter(None, living))


def _of_process(pid: int | None) -> float | None:
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return 0.0 if (_PROC / "self" / "stat").exists() else None  # it has ended meanwhile
    return sum(map(int, text.rpartition(")")[2].split()[_TIMES])) / os.sysconf("SC_CLK_TCK")
