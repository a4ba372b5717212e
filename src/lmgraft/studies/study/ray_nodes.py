"""A Ray cluster before anything is begun: reached within a bound, its machines looked at, shares of them dealt."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import yaml

from lmgraft.errors import RunError
from lmgraft.recipes import load_recipe
from lmgraft.studies.study.jobs import Job
from lmgraft.studies.study.ray_worker import make_look

REACHED_WITHIN = 60.0
"""Seconds in which a cluster must answer. Ray itself tries for minutes."""
LOOKED_WITHIN = 120.0
"""Seconds in which a machine must have started a worker."""
MOST_CPUS = 8
"""CPUs of a run on a CPU, where nobody says how many: more make a small model hardly faster."""

Node = dict[str, Any]
"""As `ray.nodes()` gives it."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """What of a machine one run takes."""

    cpus: int
    gpus: int

    def room(self, node: Node) -> int:
        """How many such shares a machine has."""
        has = node["Resources"]
        rooms = [has.get("CPU", 0) // self.cpus] + ([has.get("GPU", 0) // self.gpus] if self.gpus else [])
        return int(min(rooms))

    def __str__(self) -> str:
        return f"{self.cpus} CPUs" + (f" and {self.gpus} GPU" if self.gpus else "")


@contextmanager
def connected(address: str, *, show: bool) -> Iterator[Any]:
    """Ray's module, connected; a connection that the process has already is used and stays.

    Args:
        address: `auto`, `local` (a cluster of this machine alone, for the time being), or host:port.
        show: Pass on what workers print.

    Raises:
        RunError: If Ray is not installed or the cluster does not answer.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ModuleNotFoundError:
        raise RunError("--ray needs the package 'ray'", 'pip install "lmgraft[image,ray]"') from None
    if ray.is_initialized():
        yield ray
        return
    if address != "local":
        _reach(address)
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    own: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    try:
        try:
            ray.init(address=address, log_to_driver=show, logging_level=logging.ERROR, **own)
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


def share_of(job: Job, nodes: Sequence[Node], workers: int | None, cpus: int | None) -> Share:
    """What a job takes: a GPU where its recipe wants one and there are any, and CPUs alike on all machines.

    Raises:
        LmgraftError: If the recipe does not fit, or wants several devices.
    """
    config = load_recipe(job.recipe, job.options).train
    if str(config.devices) not in ("auto", "1") or config.num_nodes != 1:
        raise RunError(
            f"train.devices={config.devices}, train.num_nodes={config.num_nodes}: on Ray a run has one device",
            "leave both out; --workers says how many runs there are at a time",
        )
    has_gpus = any(node["Resources"].get("GPU", 0) >= 1 for node in nodes)
    gpus = int(config.accelerator in ("gpu", "cuda") or (config.accelerator == "auto" and has_gpus))
    return Share(cpus=cpus or _cpus([node["Resources"] for node in nodes], gpus, workers), gpus=gpus)


def _cpus(machines: Sequence[dict[str, float]], gpus: int, workers: int | None) -> int:
    if gpus:
        return max(1, min((int(has["CPU"] // has["GPU"]) for has in machines if has.get("GPU", 0) >= 1), default=1))
    each = [int(has["CPU"]) for has in machines]
    most = MOST_CPUS if workers is None else sum(each) // workers
    return max(1, min([most, *each]))


def folder_needed(job: Job) -> str | None:
    """The working directory, where the job's recipe or something that it names is a relative path there; else None.

    Raises:
        LmgraftError: If the recipe does not fit.
    """
    named = [job.recipe, *_texts(yaml.safe_load(load_recipe(job.recipe, job.options).yaml))]
    relative = any(text and not os.path.isabs(text) and os.path.exists(text) for text in named)
    return os.getcwd() if relative else None


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _texts(one)


def check_nodes(
    ray: Any, shares: Iterable[Share], versions: dict[str, str], marker: str, word: str, cwd: str | None = None
) -> None:
    """Look at every machine that may get a run: same versions, same folder, and `cwd` where that is needed.

    Raises:
        RunError: If a share is larger than every machine, or a machine does not fit.
    """
    nodes, wanted = alive(ray), set(shares)
    for share in wanted:
        if not any(share.room(node) for node in nodes):
            listed = "; ".join(f"{node['NodeManagerHostname']}: {_has(node)}" for node in nodes) or "none"
            raise RunError(
                f"a run takes {share}, and no machine of the Ray cluster has that ({listed})",
                "start such a machine first, or give each run less",
            )
    may_get = [node for node in nodes if any(share.room(node) for share in wanted)]
    look = ray.remote(num_cpus=0, max_retries=1)(make_look())
    pin = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    asked = [
        look.options(scheduling_strategy=pin(node["NodeID"], soft=False)).remote(versions, marker, word, cwd)
        for node in may_get
    ]
    wrong = []
    for node, reference in zip(may_get, asked, strict=True):
        try:
            answer = ray.get(reference, timeout=LOOKED_WITHIN)
        except ray.exceptions.GetTimeoutError:
            answer = f"it has started no worker within {LOOKED_WITHIN:.0f} s"
        except ray.exceptions.RayError as error:
            answer = f"it could not be asked: {_line(str(error))}"
        if answer is not None:
            wrong.append(f"\n    {node['NodeManagerHostname']} ({node['NodeManagerAddress']}): {answer}")
    if wrong:
        raise RunError(
            f"{len(wrong)} of {len(may_get)} machines of the Ray cluster cannot do this study:{''.join(wrong)}",
            "every machine needs the same versions, and the study's folder on a file system that all of them share",
        )


def _has(node: Node) -> str:
    has = node["Resources"]
    return f"{has.get('CPU', 0):g} CPUs, {has.get('GPU', 0):g} GPUs"
