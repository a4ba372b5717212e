"""Trainings on many machines: each is a task of a Ray cluster, in a worker process of its own.

Ray finds a place for each task, and repeats one whose worker or machine is lost. Nothing passes through it but a run's
description and how it ended: runs lie in a folder that all machines share, so that one goes on elsewhere from its last
checkpoint.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from lmgraft import records
from lmgraft.errors import LmgraftError, RunError
from lmgraft.recipes import read_result
from lmgraft.recipes.run import lock_of
from lmgraft.studies.engine import machine
from lmgraft.studies.engine.machine import Needs
from lmgraft.studies.engine.missing import Done, Executor, brief
from lmgraft.studies.engine.progress import Say
from lmgraft.studies.engine.runs import Run, train
from lmgraft.studies.engine.signals import answer, noted_signals
from lmgraft.training.checkpoints import checkpoint_path
from lmgraft.training.stopping import InterruptedRunError
from lmgraft.versions import optional

LOST = 3
"""How often a run may lose its worker without a saved step between, before the others go on without it."""
REACHED_WITHIN = 60.0
"""Seconds in which a cluster must answer. Ray itself tries for minutes."""
LOOKED_WITHIN = 120.0
"""Seconds in which a machine must have started a worker."""
HELD_WITHIN = 600.0
"""Seconds that an attempt waits for the end of another that is at the same run, and may be dying."""
SEEN_WITHIN = 90.0
"""Seconds in which a result written on another machine must be seen here: network file systems keep
what a folder holds for up to a minute."""
NODES_WITHIN = 600.0
"""Seconds without any machine that could run what is left, before the study gives up."""
SAVED_WITHIN = 600.0
"""Seconds that an interrupted study waits for its runs to save."""
MOST_CPUS = 8
"""CPUs of a run on a CPU, where nobody says how many: more make a small model hardly faster."""
_POLL = 1.0

Node = dict[str, Any]
"""As `ray.nodes()` gives it."""


def on_ray(
    address: str, workers: int | None = None, *, cpus: int | None = None, allow_difference: bool = False
) -> Executor[Run]:
    """An executor whose runs are tasks of a Ray cluster.

    Args:
        address: `auto` (the cluster that this machine belongs to), host:port, or `local`: one of this machine alone.
        workers: Runs at a time; None for as many as fit.
        cpus: CPUs, and torch's threads, of each run; by default a GPU's part of its machine, and without GPUs
            the smallest machine's, at most 8, or with `workers` an equal part of the cluster.
        allow_difference: Machines may have another torch, timm or Lightning; lmgraft must be the same.

    The executor raises:
        RunError: Before any run, if Ray is missing, the cluster does not answer, no machine is large
            enough, or a machine has other versions or does not see the folder; later if no machine is left.
        InterruptedRunError: On SIGTERM, when the runs have saved.
        KeyboardInterrupt: Likewise on Ctrl-C; a second one does not wait.
    """
    packages = ("lmgraft",) if allow_difference else ("lmgraft", "torch", "timm", "pytorch-lightning")

    def do(runs: Iterable[Run], say: Say) -> Iterator[Done[Run]]:
        runs, todo = list(runs), deque[tuple[Run, Share]]()
        with connected(address, show=any(run.progress != "none" for run in runs)) as ray:
            nodes = alive(ray)
            for run in runs:
                try:
                    todo.append((run, share_of(run, nodes, workers, cpus)))
                except LmgraftError as error:
                    yield Done(cell=run, seconds=0.0, error=brief(error))
            if todo:
                with _marked([run for run, _ in todo]) as marker:
                    needs = Needs(versions={name: metadata.version(name) for name in packages}, marker=marker)
                    check_nodes(ray, {share for _, share in todo}, needs)
                    yield from _train(ray, todo, needs, workers, say)

    return do


@contextmanager
def connected(address: str, *, show: bool) -> Iterator[Any]:
    """Ray's module, connected; a connection that the process has already is used and stays.

    Args:
        address: `auto`, `local` (a cluster of this machine alone, for the time being), or host:port.
        show: Pass on what workers print.

    Raises:
        RunError: If the cluster does not answer; VersionError, if Ray is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray = optional("ray", "ray", "--ray")
    if ray.is_initialized():
        yield ray
        return
    if address != "local":
        _reach(address)
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    alone: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    try:
        try:
            ray.init(address=address, log_to_driver=show, logging_level=logging.ERROR, **alone)
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise RunError(f"the Ray cluster {address} cannot be used: {_line(str(error))}", _START) from None
        finally:
            if in_main:
                signal.signal(signal.SIGTERM, before)  # Ray's makes an exit of it
        yield ray
    finally:
        ray.shutdown()


_START = "docs/clusters.md shows how to start one; --ray local uses this machine alone"
_TRY = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR')"


def _reach(address: str) -> None:
    """Connect from a process that can be given up: where nobody answers, `ray.init` hangs for minutes.

    Raises:
        RunError: If that fails.
    """
    if address != "auto":
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit() or "://" in address:
            raise RunError(
                f"--ray {address} is no address of a cluster",
                "give auto, local, or host:port, on a machine that belongs to the cluster",
            )
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except (OSError, OverflowError) as error:
            raise RunError(f"the Ray cluster {address} cannot be reached: {error}", _START) from None
    try:
        tried = subprocess.run(
            [sys.executable, "-c", _TRY, address], capture_output=True, text=True, timeout=REACHED_WITHIN, check=False
        )
    except subprocess.TimeoutExpired:
        raise RunError(f"the Ray cluster {address} did not answer within {REACHED_WITHIN:.0f} s", _START) from None
    if tried.returncode != 0:
        raise RunError(f"the Ray cluster {address} cannot be used: {_line(tried.stderr)}", _START)


def _line(text: str) -> str:
    """The last line, where Python says what was wrong."""
    return (text.strip().splitlines() or ["no reason was given"])[-1].strip()


def alive(ray: Any) -> list[Node]:
    """Machines that could run anything."""
    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]


@dataclass(frozen=True, kw_only=True)
class Share:
    """What of a machine one run takes."""

    cpus: int
    gpus: int

    def fits(self, node: Node) -> bool:
        """Whether a machine has that."""
        has = node["Resources"]
        return bool(has.get("CPU", 0) >= self.cpus and has.get("GPU", 0) >= self.gpus)

    def __str__(self) -> str:
        return f"{self.cpus} CPUs" + (f" and {self.gpus} GPU" if self.gpus else "")


def share_of(run: Run, nodes: Sequence[Node], workers: int | None, cpus: int | None) -> Share:
    """What a run takes: a GPU where its recipe wants one and there are any, and CPUs alike on all machines.

    Raises:
        LmgraftError: If the recipe does not fit, or wants several devices.
    """
    config, machines = run.plan.train, [node["Resources"] for node in nodes]
    if str(config.devices) not in ("auto", "1") or config.num_nodes != 1:
        raise RunError(
            f"train.devices={config.devices}, train.num_nodes={config.num_nodes}: on Ray a run has one device",
            "leave both out; --workers says how many runs there are at a time",
        )
    each_gpus = [int(has["CPU"] // has["GPU"]) for has in machines if has.get("GPU", 0) >= 1]
    gpus = int(config.accelerator in ("gpu", "cuda") or (config.accelerator == "auto" and bool(each_gpus)))
    if gpus:
        return Share(cpus=cpus or max(1, min(each_gpus, default=1)), gpus=gpus)
    each = [int(has["CPU"]) for has in machines]
    most = MOST_CPUS if workers is None else sum(each) // workers
    return Share(cpus=cpus or max(1, min([most, *each])), gpus=0)


@contextmanager
def _marked(runs: Sequence[Run]) -> Iterator[Path]:
    """A file beside the runs whose name nobody can guess."""
    marker = Path(os.path.commonpath([run.folder.parent for run in runs])) / f".seen-{secrets.token_hex(8)}"
    records.write_text(marker, "")
    try:
        yield marker
    finally:
        marker.unlink(missing_ok=True)


def check_nodes(ray: Any, shares: Iterable[Share], needs: Needs) -> None:
    """Look at every machine that may get a run, before any is begun.

    Raises:
        RunError: If a share is larger than every machine, or a machine does not fit.
    """
    nodes, wanted = alive(ray), list(shares)
    for share in wanted:
        if not any(map(share.fits, nodes)):
            listed = "; ".join(f"{node['NodeManagerHostname']}: {_has(node)}" for node in nodes) or "none"
            raise RunError(
                f"a run takes {share}, and no machine of the Ray cluster has that ({listed})",
                "start such a machine first, or give each run less",
            )
    ray.cloudpickle.register_pickle_by_value(machine)  # it has to run where there is no lmgraft, or another one
    may_get = [node for node in nodes if any(share.fits(node) for share in wanted)]
    look, pin = ray.remote(num_cpus=0)(Needs.unmet), ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    asked = [look.options(scheduling_strategy=pin(node["NodeID"], soft=False)).remote(needs) for node in may_get]
    wrong = []
    for node, reference in zip(may_get, asked, strict=True):
        try:
            problem = ray.get(reference, timeout=LOOKED_WITHIN)
        except ray.exceptions.GetTimeoutError:
            problem = f"it has started no worker within {LOOKED_WITHIN:.0f} s"
        except ray.exceptions.RayError as error:
            problem = f"it could not be asked: {_line(str(error))}"
        if problem is not None:
            wrong.append(f"\n    {node['NodeManagerHostname']} ({node['NodeManagerAddress']}): {problem}")
    if wrong:
        raise RunError(
            f"{len(wrong)} of {len(may_get)} machines of the Ray cluster cannot do this study:{''.join(wrong)}",
            "every machine needs the same versions, and the study's folder on a file system that all of them share",
        )


def _has(node: Node) -> str:
    has = node["Resources"]
    return f"{has.get('CPU', 0):g} CPUs, {has.get('GPU', 0):g} GPUs"


def _train(
    ray: Any, todo: deque[tuple[Run, Share]], needs: Needs, workers: int | None, say: Say
) -> Iterator[Done[Run]]:
    """Each run once, as it ends."""
    # A process for each task, so that a run's memory is its own. A lost worker is repeated by Ray as often as it takes;
    # `attempt` itself sees to it that a run which never gets on ends.
    task = ray.remote(max_calls=1, max_retries=-1, retry_exceptions=[InterruptedRunError])(attempt)
    shares = {share for _, share in todo}
    running: dict[Any, Run] = {}
    without_machine: float | None = None
    with noted_signals() as asked:
        try:
            while not asked and (todo or running):
                while todo and len(running) < (workers or len(todo) + len(running)):
                    run, share = todo.popleft()
                    _attempts_of(run).unlink(missing_ok=True)
                    where = {"num_cpus": share.cpus, "num_gpus": share.gpus, "scheduling_strategy": "SPREAD"}
                    here = task.options(**where).remote(run, share.cpus, needs, os.getcwd(), list(sys.argv))
                    running[here] = run
                ready, _ = ray.wait(list(running), timeout=_POLL)
                yield from (_ended(ray, running.pop(reference), reference) for reference in ready)
                if ready or any(share.fits(node) for node in alive(ray) for share in shares):
                    without_machine = None
                elif without_machine is None:
                    without_machine = time.monotonic()
                    say(f"no machine that could train is left; waiting {NODES_WITHIN / 60:.0f} min for one")
                elif time.monotonic() - without_machine > NODES_WITHIN:
                    raise RunError(
                        "the Ray cluster has no machine left that could train what is missing",
                        "start one; the same command goes on",
                    )
        finally:
            _stop(ray, running, say)
    if asked:
        answer(asked[0])


def attempt(run: Run, cpus: int, needs: Needs, folder: str, command: list[str]) -> float:
    """Train a run in a worker of the cluster, whose main thread it has: signals save the run. The seconds it took.

    Args:
        cpus: Threads of torch.
        folder: What relative paths of the recipe are seen from, where the machine has it.
        command: The study's command line, for the run's record.

    Raises:
        LmgraftError: If it fails, or its workers were lost too often.
    """
    started = time.monotonic()
    problem = needs.unmet()
    if problem is not None:
        raise RunError(f"{socket.gethostname()} cannot train it: {problem}")
    _note_attempt(run)
    sys.argv = command
    if os.path.isdir(folder):
        os.chdir(folder)
    train(run, cpus, wait=HELD_WITHIN)
    return time.monotonic() - started


def _attempts_of(run: Run) -> Path:
    return run.folder.parent / f".{run.folder.name}.attempts"


def _note_attempt(run: Run) -> None:
    """Note which last.ckpt the attempt begins with.

    Raises:
        RunError: If it is the one that several began with before, whose workers were lost.
    """
    checkpoint, file = checkpoint_path(run.folder, "last"), _attempts_of(run)
    stamp = str(checkpoint.stat().st_mtime_ns) if checkpoint.exists() else "none"
    before = file.read_text(encoding="utf-8").split() if file.exists() else []
    if before[-LOST:] == [stamp] * LOST:
        raise RunError(
            f"its worker was lost {LOST} times without a saved step between", "look at the memory of its machine"
        )
    records.write_text(file, "\n".join([*before, stamp]))


def _ended(ray: Any, run: Run, reference: Any) -> Done[Run]:
    """What became of a task."""
    try:
        return Done(cell=run, seconds=ray.get(reference), error=_unseen(run))
    except ray.exceptions.RayTaskError as error:
        return Done(cell=run, seconds=0.0, error=brief(error.cause))
    except ray.exceptions.RayError as error:
        return Done(cell=run, seconds=0.0, error=f"Ray gave it up: {_line(str(error))}")
    finally:
        _attempts_of(run).unlink(missing_ok=True)


def _unseen(run: Run) -> str | None:
    """Why a run that a worker finished does not count here, where its result is not to be seen."""
    until = time.monotonic() + SEEN_WITHIN
    while True:
        try:
            read_result(run.folder)
            return None
        except LmgraftError as error:
            if time.monotonic() >= until:
                return (
                    f"a worker finished it, but here {' '.join(error.message.split())}: "
                    "its machine does not share this folder, or shows changes late"
                )
        time.sleep(_POLL)


def _stop(ray: Any, running: dict[Any, Run], say: Say) -> None:
    """Ask what runs to save and end; what has not begun does not begin."""
    if not running:
        return
    say(f"asking {len(running)} runs to save; Ctrl-C again does not wait for them")
    for reference in running:
        ray.cancel(reference, recursive=False)
    ray.wait(list(running), num_returns=len(running), timeout=SAVED_WITHIN)
    for run in running.values():
        with suppress(records.HeldError), records.only_one(lock_of(run.folder), "it", wait=SAVED_WITHIN):
            pass  # Ray calls a task ended before its worker has saved
