"""Jobs on many machines: each is a task of a Ray cluster, in a worker process of its own.

Nothing passes through Ray but a job's description and how it ended. Runs lie in a folder that all
machines share; so a run whose machine is lost goes on elsewhere, from its last checkpoint.
"""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from lmgraft import records
from lmgraft.errors import LmgraftError, RunError
from lmgraft.recipes import read_result
from lmgraft.studies.study.jobs import ATTEMPTS, Done, Executor, Job, brief
from lmgraft.studies.study.ray_nodes import Share, alive, check_nodes, connected, folder_needed, share_of
from lmgraft.studies.study.ray_worker import make_attempt
from lmgraft.studies.study.stopping import answer, noted_signals
from lmgraft.training.checkpoints import checkpoint_path

SEEN_WITHIN = 90.0
"""Seconds in which a result written on another machine must be seen here: network file systems keep
what a folder holds for up to a minute."""
NODES_WITHIN = 600.0
"""Seconds without any machine that could run what is left, before the study gives up."""
SAVED_WITHIN = 600.0
"""Seconds that an interrupted study waits for its runs to save."""
_POLL = 0.25
_LOOK = 10.0

Say = Callable[[str], None]


def on_ray(
    address: str, workers: int | None = None, *, cpus: int | None = None, allow_difference: bool = False
) -> Executor:
    """An executor whose jobs are tasks of a Ray cluster.

    Args:
        address: `auto` (the cluster that this machine belongs to), host:port, or `local`: one of this machine alone.
        workers: Runs at a time; None for as many as fit. More than fit show an autoscaler the demand.
        cpus: CPUs, and torch's threads, of each run; by default a GPU's part of its machine, and without GPUs
            the smallest machine's, at most 8, or with `workers` an equal part of the cluster.
        allow_difference: Machines may have another torch, timm or Lightning; lmgraft must be the same.

    The executor raises:
        RunError: Before any job, if Ray is missing, the cluster does not answer, no machine is large
            enough, or a machine has other versions or does not see the folder; later if no machine is left.
        InterruptedRunError: On SIGTERM, when the runs have saved.
        KeyboardInterrupt: Likewise on Ctrl-C; a second one does not wait.
    """

    def run(jobs: Iterable[Job], say: Say) -> Iterator[Done]:
        jobs = list(jobs)
        if not jobs:
            return
        with connected(address, show=any(job.progress != "none" for job in jobs)) as ray:
            yield from _Cluster(ray, say, workers, cpus, allow_difference).do(jobs)

    return run


@dataclass(kw_only=True)
class _Try:
    """A job under way."""

    job: Job
    share: Share
    lost: int = 0
    """Attempts lost one after the other, none of which had saved a step."""
    saved: tuple[int, int] | None = None
    """last.ckpt as the attempt under way found it."""


class _Cluster:
    def __init__(self, ray: Any, say: Say, workers: int | None, cpus: int | None, allow_difference: bool) -> None:
        self._ray, self._say, self._workers, self._cpus = ray, say, workers, cpus
        self._versions = _versions(allow_difference)
        # A process for each task, so that a run's memory is its own. Ray repeats none itself: it would not
        # say so, and would repeat without end what takes too much memory.
        self._task = ray.remote(max_calls=1, max_retries=0)(make_attempt())
        self._waiting: deque[_Try] = deque()
        self._running: dict[Any, _Try] = {}
        self._unseen: list[tuple[Done, float]] = []
        self._looked = time.monotonic()
        self._none_since: float | None = None

    def do(self, jobs: Sequence[Job]) -> Iterator[Done]:
        """Each job once, as it ends."""
        nodes = alive(self._ray)
        for job in jobs:
            try:
                share = share_of(job, nodes, self._workers, self._cpus)
            except LmgraftError as error:
                yield Done(job=job, seconds=0.0, error=brief(error))
                continue
            self._waiting.append(_Try(job=replace(job, cwd=folder_needed(job)), share=share))
        if not self._waiting:
            return
        with _marked(os.path.commonpath([Path(job.folder).parent for job in jobs])) as (marker, word):
            cwd = next((one.job.cwd for one in self._waiting if one.job.cwd is not None), None)
            check_nodes(self._ray, [one.share for one in self._waiting], self._versions, marker, word, cwd)
            with noted_signals() as asked:
                try:
                    while not asked and (self._waiting or self._running or self._unseen):
                        self._submit(marker, word)
                        yield from self._collect()
                        self._look_for_machines()
                finally:
                    self._stop()
        if asked:
            answer(asked[0])

    def _submit(self, marker: str, word: str) -> None:
        while self._waiting and len(self._running) < (self._workers or self._room()):
            one = self._waiting.popleft()
            one.saved = _saved(one.job)
            job = replace(one.job, threads=one.job.threads or one.share.cpus)
            task = self._task.options(num_cpus=one.share.cpus, num_gpus=one.share.gpus, scheduling_strategy="SPREAD")
            self._running[task.remote(self._versions, marker, word, asdict(job), list(sys.argv))] = one

    def _room(self) -> int:
        """How many runs fit into the cluster. No more are handed to Ray: one that lost its machine is then the next."""
        return max(1, sum(self._waiting[0].share.room(node) for node in alive(self._ray)))

    def _collect(self) -> Iterator[Done]:
        """Jobs that ended meanwhile; waits a moment for one."""
        ready: list[Any] = []
        if self._running:
            ready, _ = self._ray.wait(list(self._running), num_returns=1, timeout=_POLL)
        else:
            time.sleep(_POLL)
        for reference in ready:
            one = self._running.pop(reference)
            done = self._ended(one, reference)
            if done is not None and done.error is None:
                self._unseen.append((done, time.monotonic()))
            elif done is not None:
                yield done
        unseen, self._unseen = self._unseen, []
        for done, since in unseen:
            problem = _problem(Path(done.job.folder))
            if problem is not None and time.monotonic() - since < SEEN_WITHIN:
                self._unseen.append((done, since))
            else:
                yield replace(done, error=problem)

    def _ended(self, one: _Try, reference: Any) -> Done | None:
        """What became of a task; None if its job is to be tried again."""
        errors = self._ray.exceptions
        try:
            answer = self._ray.get(reference)
        except errors.RayTaskError as error:  # no mistake of the user's: an error in a library, or in lmgraft
            said = (str(error.cause).strip().splitlines() or [""])[0]
            return Done(job=one.job, seconds=0.0, error=f"{type(error.cause).__name__}: {said}")
        except errors.RayError as error:
            return self._lost(one, f"its worker was lost ({type(error).__name__})")
        if answer["end"] == "stopped":
            return self._lost(one, answer["text"])
        return Done(job=one.job, seconds=answer["seconds"], error=answer["text"] or None)

    def _lost(self, one: _Try, why: str) -> Done | None:
        one.lost = 1 if _saved(one.job) != one.saved else one.lost + 1
        if one.lost >= ATTEMPTS:
            return Done(job=one.job, seconds=0.0, error=f"{why}, {ATTEMPTS} times without a step between")
        self._say(f"{one.job.name}: {why}; it goes on from its last checkpoint where there is room")
        self._waiting.appendleft(one)
        return None

    def _look_for_machines(self) -> None:
        """Now and then: whether there is still a machine for what is left.

        Raises:
            RunError: If there has been none for long.
        """
        now = time.monotonic()
        left = {one.share for one in (*self._waiting, *self._running.values())}
        if now - self._looked < _LOOK or not left:
            return
        self._looked = now
        if any(share.room(node) for node in alive(self._ray) for share in left):
            self._none_since = None
        elif self._none_since is None:
            self._none_since = now
            self._say(f"no machine that could train is left; waiting {NODES_WITHIN / 60:.0f} min for one")
        elif now - self._none_since > NODES_WITHIN:
            raise RunError(
                "the Ray cluster has no machine left that could train what is missing",
                "start one; the same command goes on",
            )

    def _stop(self) -> None:
        """Ask what runs to save and end; what has not begun does not begin."""
        if not self._running:
            return
        self._say(f"asking {len(self._running)} runs to save; Ctrl-C again does not wait for them")
        for reference in self._running:
            self._ray.cancel(reference, recursive=False)
        until = time.monotonic() + SAVED_WITHIN
        while self._running and time.monotonic() < until:
            ready, _ = self._ray.wait(list(self._running), num_returns=1, timeout=_POLL)
            for reference in ready:
                one = self._running.pop(reference)
                try:
                    text = self._ray.get(reference)["text"] or "finished"
                except self._ray.exceptions.RayError:
                    continue  # it had not begun, or was before its first step
                self._say(f"{one.job.name}: {text}")


def _versions(allow_difference: bool) -> dict[str, str]:
    """What a machine must have."""
    names = ("lmgraft",) if allow_difference else ("lmgraft", "torch", "timm", "pytorch-lightning")
    return {name: metadata.version(name) for name in names}


def _saved(job: Job) -> tuple[int, int] | None:
    """Which last.ckpt a run has."""
    try:
        found = checkpoint_path(Path(job.folder), "last").stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _problem(folder: Path) -> str | None:
    """Why a run that a worker finished does not count here."""
    try:
        read_result(folder)
    except LmgraftError as error:
        return (
            f"a worker finished it, but here {' '.join(error.message.split())}: "
            "its machine does not share this folder, or shows changes late"
        )
    return None


@contextmanager
def _marked(folder: str) -> Iterator[tuple[str, str]]:
    """A file in `folder`, and the word in it, by which other machines show that they see this very folder."""
    word = secrets.token_hex(8)
    marker = Path(folder) / f".seen-{word}"
    records.write_text(marker, word)
    try:
        yield str(marker), word
    finally:
        marker.unlink(missing_ok=True)
