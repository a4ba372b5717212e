"""One run of a study as a job: plain data out, plain data back, in whatever process it is done.

The folder's lock makes sure that a run is trained once, also where a worker that was given up
comes back to life beside its successor.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from lmgraft import records
from lmgraft.errors import LmgraftError, RunError
from lmgraft.recipes import load_recipe, read_result, train_run
from lmgraft.training.fit import Verbosity

ATTEMPTS = 3
"""How often a run is begun whose worker dies, before the study goes on without it."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run that is to be trained, or gone on with."""

    name: str
    recipe: str
    options: tuple[str, ...]
    folder: str
    threads: int | None = None
    """torch's threads; None leaves them."""
    progress: Verbosity = "none"
    cwd: str | None = None
    """Folder that relative paths of the recipe are seen from; None for the worker's own."""


@dataclass(frozen=True, kw_only=True)
class Done:
    """What became of a job."""

    job: Job
    seconds: float
    error: str | None = None
    """None for a finished run; else what went wrong."""


class HeldError(RunError):
    """Another process is at it."""


Executor = Callable[[Iterable[Job], Callable[[str], None]], Iterator[Done]]
"""Does jobs, in any order, and yields each as it ends. The second argument is told what happens."""


def train(job: Job) -> None:
    """Train a job's run from where it stands. Called in the worker's process.

    Raises:
        LmgraftError: See `train_run`; or if another process is at this run.
    """
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    if job.cwd is not None:
        try:
            os.chdir(job.cwd)
        except OSError as error:
            raise RunError(
                f"the recipe has relative paths, seen from {job.cwd}, which is not here: {error.strerror}",
                "give whole paths, on a file system that all machines share",
            ) from None
    folder = Path(job.folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with only_one(folder.parent / f".{folder.name}.lock", f"run {folder}"):
        if (folder / "result.json").exists():
            read_result(folder)
            return
        train_run(load_recipe(job.recipe, job.options), folder, resume=True, progress=job.progress, label=job.name)


@contextmanager
def only_one(file: Path, what: str) -> Iterator[None]:
    """Hold `file`'s lock; a second process is refused.

    Raises:
        HeldError: If another process holds it.
    """
    with records.locked(file, wait=False) as mine:
        if not mine:
            raise HeldError(f"another process is at {what}", "wait for it, or stop it")
        yield


def brief(error: LmgraftError) -> str:
    """An error as one line."""
    return " ".join(f"{error.message}; {error.remedy}".split()) if error.remedy else " ".join(error.message.split())
