"""Studies on a Ray cluster: two nodes on this machine, one killed while it trains; and what a cluster can lack."""

import dataclasses
import os
import re
import secrets
import signal
import socket
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lmgraft import records
from lmgraft.errors import RunError
from lmgraft.recipes import read_result
from lmgraft.studies.study import ray_cluster, ray_nodes, ray_worker
from lmgraft.studies.study import run as study_run
from lmgraft.studies.study.config import parse_study
from lmgraft.studies.study.jobs import Done, Job, only_one, train
from lmgraft.studies.study.ray_cluster import on_ray
from lmgraft.training.checkpoints import checkpoint_path
from lmgraft.training.items import read_items
from lmgraft.training.stopping import InterruptedRunError

pytestmark = [
    pytest.mark.slow,
    # Ray leaves its processes to themselves, and their log files to the garbage collector.
    pytest.mark.filterwarnings(r"ignore:subprocess \d+ is still running:ResourceWarning"),
    pytest.mark.filterwarnings(r"ignore:unclosed file .*ray:ResourceWarning"),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """One node of one CPU, on which this process is; a test may add others."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="lmgraft") as folder:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        (Path(folder) / "ray").mkdir()  # where a cluster writes its address, without making the folder
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else Ray writes one into the home folder
        patch.chdir(tmp_path_factory.mktemp("nodes"))
        made = pytest.importorskip("ray.cluster_utils").Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 1,
                "include_dashboard": False,
                "include_log_monitor": False,
                "no_monitor": True,
                "temp_dir": folder,  # not under pytest's: paths of sockets are short
            },
        )
        yield made
        made.shutdown()


@pytest.fixture
def tiny(make_recipe, tmp_path):
    """A recipe file whose last.ckpt is written at every step."""

    def write(*options):
        file = tmp_path / "tiny.yaml"
        file.write_text(make_recipe("--train.save_every=1", *options).yaml)
        return file

    return write


@pytest.fixture
def make_job(tiny, tmp_path):
    def make(name="one", *options):
        return Job(name=name, recipe=str(tiny()), options=options, folder=str(tmp_path / "runs" / name))

    return make


def here(jobs, say):
    """What one local worker does, without the process around it."""
    for job in jobs:
        train(job)
        yield Done(job=job, seconds=0.0)


def run_of(node):
    """The folder of the run whose lock a worker of this node holds."""
    raylet = node.all_processes["raylet"][0].process.pid
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            held = [os.readlink(fd) for fd in (process / "fd").iterdir()] if parent == raylet else []
        except OSError:
            continue  # it ended meanwhile
        for file in map(Path, held):
            if file.suffix == ".lock" and "runs" in file.parts:
                return file.parent / file.stem[1:]
    return None


def wait_for(what, seconds=300):
    """The first true value of what(), or None."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = what()
        if found:
            return found
        time.sleep(0.01)
    return None


def stamp(run):
    file = checkpoint_path(run, "last")
    return file.stat().st_ino if file.exists() else None


def test_a_node_killed_while_it_trains_loses_nothing(cluster, tiny, tmp_path, monkeypatch, record_property):
    monkeypatch.setattr(study_run, "counted_flops", lambda *_: {})  # a process for each arm
    text = f"{{recipe: {tiny('--train.epochs=20')}, arms: [plain, llm], seeds: 2}}"
    study = parse_study(text, name="tiny")
    node = cluster.add_node(num_cpus=1)
    killed, said = {}, []

    def kill():
        run = wait_for(lambda: run_of(node))
        if run is None or not wait_for(lambda: stamp(run)):
            return
        cluster.remove_node(node, allow_graceful=False)
        at = time.monotonic()
        launches = lambda: len(records.read_json(run / "run.json")["launches"])  # noqa: E731
        killed.update(run=run, finished=(run / "result.json").exists(), at=at)
        if wait_for(lambda: launches() == 2):
            killed["again"] = time.monotonic() - at

    killer = threading.Thread(target=kill)
    killer.start()
    out = tmp_path / "ray"
    result = study_run.run_study(study, out, executor=on_ray(cluster.address), say=said.append)
    killer.join()
    assert killed["finished"] is False
    record_property("seconds until the run went on", round(killed["again"], 1))

    assert sum("its worker was lost" in line for line in said) == 1
    done = [re.match(r"\[(\d)/4\] (.*): done in", line) for line in said]
    done = [found.groups() for found in done if found]
    assert [number for number, _ in done] == ["1", "2", "3", "4"]
    assert len({name for _, name in done}) == 4
    for run in (f"{arm}/seed{seed}" for arm in ("plain", "llm") for seed in (0, 1)):
        launches = records.read_json(out / "runs" / run / "run.json")["launches"]
        assert len(launches) == (2 if killed["run"] == out / "runs" / run else 1)

    alone = study_run.run_study(study, tmp_path / "alone", executor=here)
    for run in sorted(file.parent for file in (out / "runs").rglob("result.json")):
        other = tmp_path / "alone" / run.relative_to(out)
        mine, theirs = read_result(run), read_result(other)
        assert (mine.metrics, mine.val, mine.steps) == (theirs.metrics, theirs.val, theirs.steps)
        for name, values in read_items(run).items():
            np.testing.assert_array_equal(values, read_items(other)[name])
    assert list(map(dataclasses.asdict, result.contrasts)) == list(map(dataclasses.asdict, alone.contrasts))
    assert not list((out / "runs").glob(".seen*"))


def test_a_job_that_fails_leaves_the_others_alone(cluster, make_job, monkeypatch):
    good = make_job("good", "--train.epochs=1")
    jobs = [
        make_job("misspelt", "--train.epoch=1"),
        make_job("elsewhere", "--data.root=/nowhere"),
        make_job("distributed", "--train.devices=2"),
        good,
    ]
    done = list(on_ray(cluster.address)(jobs, print))
    errors = {one.job.name: one.error for one in done}
    assert len(done) == 4
    assert "epoch" in errors["misspelt"]
    assert "/nowhere" in errors["elsewhere"]
    assert "one device" in errors["distributed"]
    assert errors["good"] is None
    assert read_result(Path(good.folder)).epochs == 1

    monkeypatch.setattr(ray_cluster, "SEEN_WITHIN", 0)
    monkeypatch.setattr(ray_cluster, "read_result", lambda folder: read_result(folder / "not shared"))
    (done,) = on_ray(cluster.address)([good], print)
    assert "does not share this folder" in done.error


def test_machines_that_do_not_fit_are_found_first(cluster, make_job, tmp_path, monkeypatch):
    job = make_job()
    with pytest.raises(RunError, match=r"a run takes 9 CPUs.*1 CPUs, 0 GPUs"):
        list(on_ray(cluster.address, cpus=9)([job], print))

    monkeypatch.setattr(ray_cluster, "metadata", type("Other", (), {"version": lambda name: f"{name} of next year"}))
    with pytest.raises(RunError, match=r"1 of 1 machines.*\n.* it has lmgraft \d.*, this machine lmgraft of next year"):
        list(on_ray(cluster.address)([job], print))
    monkeypatch.undo()

    monkeypatch.chdir(tmp_path)  # each process has a folder of its own here
    unshared = dataclasses.replace(job, folder="/proc/self/cwd/runs/one")
    with pytest.raises(RunError, match=r"1 of 1 machines.*\n.*does not see the study's folder"):
        list(on_ray(cluster.address)([unshared], print))
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


def test_sigterm_saves_what_runs(cluster, make_job):
    job, said = make_job("long", "--train.epochs=1000"), []

    def stop():
        if wait_for(lambda: stamp(Path(job.folder))):
            os.kill(os.getpid(), signal.SIGTERM)

    stopper = threading.Thread(target=stop)
    stopper.start()
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(InterruptedRunError, match="the same command goes on"):
        list(on_ray(cluster.address)([job], said.append))
    stopper.join()
    assert signal.getsignal(signal.SIGTERM) == before
    assert re.search(r"stopped by SIGINT in epoch \d+, after step \d+; last.ckpt is written", said[-1])
    assert not (Path(job.folder) / "result.json").exists()
    with only_one(Path(job.folder).parent / ".long.lock", "run"):
        pass  # nobody is left at it


def test_an_attempt_waits_for_another_that_is_dying(make_job, monkeypatch):
    job, waits = dataclasses.asdict(make_job("one", "--train.epochs=1")), []
    monkeypatch.setattr(sys, "argv", ["of pytest"])
    with ExitStack() as other:
        other.enter_context(only_one(Path(job["folder"]).parent / ".one.lock", "run"))
        monkeypatch.setattr(ray_worker, "HELD_WITHIN", 0)
        answer = ray_worker.attempt_job(job, ["lmgraft", "study"])
        assert answer["end"] == "failed"
        assert "another process is at run" in answer["text"]

        monkeypatch.setattr(ray_worker, "HELD_WITHIN", 60)
        clock = SimpleNamespace(monotonic=time.monotonic, sleep=lambda seconds: (waits.append(seconds), other.close()))
        monkeypatch.setattr(ray_worker, "time", clock)
        answer = ray_worker.attempt_job(job, ["lmgraft", "study"])
    assert (answer["end"], len(waits)) == ("done", 1)
    assert records.read_json(Path(job["folder"]) / "run.json")["command"] == ["lmgraft", "study"]


def test_a_cluster_that_is_not_there(make_job, monkeypatch):
    job = make_job()
    with socket.socket() as closed, socket.create_server(("127.0.0.1", 0)) as silent:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(RunError, match=r"cannot be reached: .*refused"):
            list(on_ray(f"127.0.0.1:{closed.getsockname()[1]}")([job], print))
        monkeypatch.setattr(ray_nodes, "REACHED_WITHIN", 3)
        with pytest.raises(RunError, match="did not answer within 3 s"):
            list(on_ray(f"127.0.0.1:{silent.getsockname()[1]}")([job], print))
    with pytest.raises(RunError, match="is no address"):
        list(on_ray("ray://127.0.0.1:10001")([job], print))


def test_ray_that_is_not_installed(make_job, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RunError, match=r"lmgraft\[image,ray\]"):
        list(on_ray("auto")([make_job()], print))


def test_shares_of_a_cluster(make_job):
    nodes = [{"Resources": {"CPU": 16, "GPU": 4}}, {"Resources": {"CPU": 6, "GPU": 2}}, {"Resources": {"CPU": 32}}]
    on_gpu = make_job("gpu", "--train.accelerator=auto")
    assert ray_nodes.share_of(on_gpu, nodes, None, None) == ray_nodes.Share(cpus=3, gpus=1)
    assert ray_nodes.share_of(on_gpu, nodes[2:], None, None) == ray_nodes.Share(cpus=8, gpus=0)
    on_cpu = make_job("cpu", "--train.accelerator=cpu")
    assert ray_nodes.share_of(on_cpu, nodes, None, None) == ray_nodes.Share(cpus=6, gpus=0)
    assert ray_nodes.share_of(on_cpu, nodes, 27, None) == ray_nodes.Share(cpus=2, gpus=0)
    assert ray_nodes.share_of(on_cpu, nodes, 100, None) == ray_nodes.Share(cpus=1, gpus=0)
    assert ray_nodes.share_of(on_cpu, nodes, None, 5) == ray_nodes.Share(cpus=5, gpus=0)
