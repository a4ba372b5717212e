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
from pathlib import Path

import numpy as np
import pytest

from lmgraft import records
from lmgraft.errors import RunError, VersionError
from lmgraft.recipes import read_result
from lmgraft.recipes.run import lock_of
from lmgraft.records import only_one
from lmgraft.studies.engine import cluster as engine
from lmgraft.studies.engine.cluster import Needs, Share, attempt, on_ray, share_of
from lmgraft.studies.engine.missing import in_turn
from lmgraft.studies.engine.runs import Run, train
from lmgraft.studies.study import run as study_run
from lmgraft.studies.study.config import parse_study
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
def make_run(tiny, tmp_path):
    def make(arm="one", *options):
        return Run(arm=arm, seed=3, recipe=str(tiny()), options=options, folder=tmp_path / "runs" / arm)

    return make


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


@pytest.mark.long
def test_a_node_killed_while_it_trains_loses_nothing(cluster, tiny, tmp_path, monkeypatch, record_property):
    monkeypatch.setattr(study_run, "counted_flops", lambda *_: {})  # a process for each arm
    text = f"{{recipe: {tiny('--train.epochs=20')}, arms: [plain, llm], seeds: 2}}"
    study = parse_study(text, name="tiny")
    node = cluster.add_node(num_cpus=1)
    killed, lines = {}, []

    def kill():
        run = wait_for(lambda: run_of(node))
        if run is None or not wait_for(lambda: stamp(run)):
            return
        cluster.remove_node(node, allow_graceful=False)
        at = time.monotonic()
        killed.update(run=run, finished=(run / "result.json").exists())
        if wait_for(lambda: len(records.read_json(run / "run.json")["launches"]) == 2):
            killed["again"] = time.monotonic() - at

    killer = threading.Thread(target=kill)
    killer.start()
    out = tmp_path / "ray"
    result = study_run.run_study(study, out, executor=on_ray(cluster.address), say=lines.append)
    killer.join()
    assert killed["finished"] is False
    record_property("seconds until the run went on", round(killed["again"], 1))

    done = [re.match(r"\[(\d)/4\] (.*): done in", line) for line in lines]
    done = [match.groups() for match in done if match]
    assert [number for number, _ in done] == ["1", "2", "3", "4"]
    assert len({name for _, name in done}) == 4
    for run in (f"{arm}/seed{seed}" for arm in ("plain", "llm") for seed in (0, 1)):
        launches = records.read_json(out / "runs" / run / "run.json")["launches"]
        assert len(launches) == (2 if killed["run"] == out / "runs" / run else 1)

    alone = study_run.run_study(study, tmp_path / "alone", executor=in_turn(train))
    for run in sorted(file.parent for file in (out / "runs").rglob("result.json")):
        other = tmp_path / "alone" / run.relative_to(out)
        ours, theirs = read_result(run), read_result(other)
        assert (ours.metrics, ours.val, ours.steps) == (theirs.metrics, theirs.val, theirs.steps)
        for name, values in read_items(run).items():
            np.testing.assert_array_equal(values, read_items(other)[name])
    assert list(map(dataclasses.asdict, result.contrasts)) == list(map(dataclasses.asdict, alone.contrasts))
    assert not [*(out / "runs").rglob(".seen*"), *(out / "runs").rglob(".*.attempts")]


@pytest.mark.long
def test_a_run_that_fails_leaves_the_others_alone(cluster, make_run, monkeypatch):
    good = make_run("good", "--train.epochs=1")
    runs = [
        make_run("misspelt", "--train.epoch=1"),
        make_run("elsewhere", "--data.root=/nowhere"),
        make_run("distributed", "--train.devices=2"),
        good,
    ]
    done = list(on_ray(cluster.address)(runs, print))
    errors = {one.cell.arm: one.error for one in done}
    assert len(done) == 4
    assert "epoch" in errors["misspelt"]
    assert "/nowhere" in errors["elsewhere"]
    assert "one device" in errors["distributed"]
    assert errors["good"] is None
    assert read_result(good.folder).epochs == 1

    monkeypatch.setattr(engine, "SEEN_WITHIN", 0)
    monkeypatch.setattr(engine, "read_result", lambda folder: read_result(folder / "not shared"))
    (done,) = on_ray(cluster.address)([good], print)
    assert "does not share this folder" in done.error


def test_machines_that_do_not_fit_are_found_first(cluster, make_run, tmp_path, monkeypatch):
    run = make_run()
    with pytest.raises(RunError, match=r"a run takes 9 CPUs.*1 CPUs, 0 GPUs"):
        list(on_ray(cluster.address, cpus=9)([run], print))

    monkeypatch.setattr(engine, "metadata", type("Other", (), {"version": lambda name: f"{name} of next year"}))
    with pytest.raises(
        RunError, match=r"1 of 1 machines.*\n.* it has lmgraft \d.*, the study's machine lmgraft of next"
    ):
        list(on_ray(cluster.address)([run], print))
    monkeypatch.undo()

    monkeypatch.chdir(tmp_path)  # each process has a folder of its own here
    unshared = dataclasses.replace(run, folder=Path("/proc/self/cwd/runs/one"))
    with pytest.raises(RunError, match=r"1 of 1 machines.*\n.*cannot read and write in the study's folder"):
        list(on_ray(cluster.address)([unshared], print))
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


@pytest.mark.long
def test_sigterm_saves_what_runs(cluster, make_run):
    run, lines = make_run("long", "--train.epochs=1000"), []

    def stop():
        if wait_for(lambda: stamp(run.folder)):
            os.kill(os.getpid(), signal.SIGTERM)

    stopper = threading.Thread(target=stop)
    stopper.start()
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(InterruptedRunError, match="the same command goes on"):
        list(on_ray(cluster.address)([run], lines.append))
    stopper.join()
    assert signal.getsignal(signal.SIGTERM) == before
    assert "asking 1 runs to save" in lines[-1]
    saved = stamp(run.folder)
    assert saved is not None
    assert not run.finished
    with only_one(lock_of(run.folder), "run"):  # nobody is left at it
        time.sleep(0.5)
    assert stamp(run.folder) == saved


def test_an_attempt_waits_for_another_that_is_dying_and_a_run_that_never_gets_on_ends(make_run, monkeypatch):
    run, needs = make_run("one", "--train.epochs=1"), Needs(versions={}, marker=Path(__file__))
    monkeypatch.setattr(sys, "argv", ["of pytest"])
    monkeypatch.setattr(engine.Needs, "unmet", lambda _: None)
    command = ["lmgraft", "study"]
    with only_one(lock_of(run.folder), "run"):
        monkeypatch.setattr(engine, "HELD_WITHIN", 0)
        for _ in range(3):
            with pytest.raises(RunError, match="another process is at run"):
                attempt(run, 1, needs, os.getcwd(), command)
        with pytest.raises(RunError, match="lost 3 times without a saved step"):
            attempt(run, 1, needs, os.getcwd(), command)
        engine._attempts_of(run).unlink()
        monkeypatch.setattr(engine, "HELD_WITHIN", 60)
        other = threading.Thread(target=attempt, args=(run, 1, needs, os.getcwd(), command))
        other.start()
        time.sleep(0.2)
        assert not run.finished
    other.join()
    assert run.finished
    assert records.read_json(run.folder / "run.json")["command"] == ["lmgraft", "study"]


def test_a_cluster_that_is_not_there(make_run, monkeypatch):
    run = make_run()
    with socket.socket() as closed, socket.create_server(("127.0.0.1", 0)) as silent:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(RunError, match=r"cannot be reached: .*refused"):
            list(on_ray(f"127.0.0.1:{closed.getsockname()[1]}")([run], print))
        monkeypatch.setattr(engine, "REACHED_WITHIN", 3)
        with pytest.raises(RunError, match="did not answer within 3 s"):
            list(on_ray(f"127.0.0.1:{silent.getsockname()[1]}")([run], print))
    with pytest.raises(RunError, match="is no address"):
        list(on_ray("ray://127.0.0.1:10001")([run], print))


def test_ray_that_is_not_installed(make_run, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(VersionError, match=r"lmgraft\[ray\]"):
        list(on_ray("auto")([make_run()], print))


def test_shares_of_a_cluster(make_run):
    nodes = [{"Resources": {"CPU": 16, "GPU": 4}}, {"Resources": {"CPU": 6, "GPU": 2}}, {"Resources": {"CPU": 32}}]
    on_gpu, on_cpu = make_run("gpu", "--train.accelerator=auto"), make_run("cpu", "--train.accelerator=cpu")
    for run, machines, workers, cpus, share in (
        (on_gpu, nodes, None, None, Share(cpus=3, gpus=1)),
        (on_gpu, nodes[2:], None, None, Share(cpus=8, gpus=0)),
        (on_cpu, nodes, None, None, Share(cpus=6, gpus=0)),
        (on_cpu, nodes, 27, None, Share(cpus=2, gpus=0)),
        (on_cpu, nodes, 100, None, Share(cpus=1, gpus=0)),
        (on_cpu, nodes, None, 5, Share(cpus=5, gpus=0)),
    ):
        assert share_of(run, machines, workers, cpus) == share
