"""What Ray's workers are asked: whether their machine fits, and to do one job. Plain data in, plain data out."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from lmgraft.errors import LmgraftError
from lmgraft.studies.study.jobs import HeldError, Job, brief, train
from lmgraft.training.stopping import InterruptedRunError

HELD_WITHIN = 600.0
"""Seconds that an attempt waits for the end of another that is at the same run, and may be dying."""

Answer = dict[str, Any]
"""`end`: done, failed or stopped; `text`: why; `seconds`: what it took."""


def make_look() -> Callable[[dict[str, str], str, str, str | None], str | None]:
    """The function that says what is wrong with a machine, None for nothing.

    It is made inside another so that Ray sends its code: it has to run where there is no lmgraft, or another one.
    """

    def look(versions: dict[str, str], marker: str, word: str, cwd: str | None) -> str | None:
        from importlib import metadata
        from pathlib import Path
        from tempfile import TemporaryFile

        for package, wanted in versions.items():
            try:
                found = metadata.version(package)
            except metadata.PackageNotFoundError:
                return f"it has no {package}, this machine {wanted}"
            if found != wanted:
                return f"it has {package} {found}, this machine {wanted}"
        if cwd is not None and not Path(cwd).is_dir():
            return f"it has no folder {cwd}, from which the recipe's relative paths are seen; give whole paths"
        file = Path(marker)
        try:
            if file.read_text(encoding="utf-8") != word:
                return f"it sees another {file.parent} than this machine"
        except OSError as error:
            return f"it does not see the study's folder: {error.strerror} ({file.parent})"
        try:
            with TemporaryFile(dir=file.parent):
                return None
        except OSError as error:
            return f"it cannot write in the study's folder: {error.strerror} ({file.parent})"

    return look


def make_attempt() -> Callable[[dict[str, str], str, str, dict[str, Any], list[str]], Answer]:
    """The task of a job: as above it is sent, and looks before it imports lmgraft."""
    look = make_look()

    def attempt(
        versions: dict[str, str], marker: str, word: str, job: dict[str, Any], command: list[str]
    ) -> dict[str, Any]:
        wrong = look(versions, marker, word, job["cwd"])
        if wrong is not None:
            import socket

            return {"end": "failed", "text": f"{socket.gethostname()} cannot train it: {wrong}", "seconds": 0.0}
        from lmgraft.studies.study.ray_worker import attempt_job

        return attempt_job(job, command)

    return attempt


def attempt_job(job: dict[str, Any], command: list[str]) -> Answer:
    """Train a job in this process, whose main thread it has, as Ray gives it: signals save the run.

    Args:
        job: `asdict` of a `Job`.
        command: The study's command line, for the run's record.
    """
    sys.argv = command
    started = time.monotonic()

    def answer(end: str, text: str = "") -> Answer:
        return {"end": end, "text": text, "seconds": time.monotonic() - started}

    while True:
        try:
            train(Job(**job))
            return answer("done")
        except HeldError as error:
            if time.monotonic() - started > HELD_WITHIN:
                return answer("failed", brief(error))
            time.sleep(1)
        except InterruptedRunError as error:
            return answer("stopped", error.message)
        except LmgraftError as error:
            return answer("failed", brief(error))
