"""Real processes, really killed: what is left on disk goes on to the same end, bit by bit."""

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
from lasting import HARD, assert_same_run, call_main, forkserver, start, wait_for_progress

from lmgraft.data.loader import EpochLoader, EpochSampler
from lmgraft.recipes import read_result
from lmgraft.training.checkpoints import checkpoint_path
from tiny import long_but

pytestmark = pytest.mark.slow
OPTIONS = (*HARD, "--train.epochs=12", "--optim.warmup_epochs=2", "--train.save_every=1")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return tmp_path_factory.mktemp("whole") / "run"


@pytest.fixture
def recipe_file(make_recipe, tmp_path, whole):
    file = tmp_path / "tiny.yaml"
    file.write_text(make_recipe(*OPTIONS).yaml)
    if not whole.exists():
        process = start("train", file, "--out", whole)
        process.join()
        assert process.exitcode == 0
    return file


@pytest.mark.long
@pytest.mark.parametrize("count", long_but([2, 6], 2))
def test_kill_9_at_any_moment(recipe_file, tmp_path, whole, count):
    run, draws, seen, kills = tmp_path / "run", random.Random(0), None, 0
    while True:
        process = start("train", recipe_file, "--out", run, "--resume")
        if kills < count:
            seen = wait_for_progress(process, run, seen)
            process.join(draws.uniform(0, 0.15))  # some steps: in a save, a step or a validation
            process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert kills >= count / 2
    assert_same_run(run, whole)


@pytest.mark.parametrize("signum", long_but([signal.SIGTERM, signal.SIGINT], signal.SIGTERM))
def test_a_signal_saves_at_the_next_step_and_the_run_goes_on(recipe_file, tmp_path, whole, signum):
    run = tmp_path / "run"
    process = start("train", recipe_file, "--out", run)
    wait_for_progress(process, run)
    os.kill(process.pid, signum)
    process.join()
    assert process.exitcode == 128 + signum
    assert not (run / "result.json").exists()
    assert not list(checkpoint_path(run, "last").parent.glob(".*"))
    process = start("train", recipe_file, "--out", run, "--resume")
    process.join()
    assert process.exitcode == 0
    assert read_result(run).steps == read_result(whole).steps
    assert_same_run(run, whole)


def start_group(function, *arguments):
    """A process in a session, and so a process group, of its own."""
    process = forkserver().Process(target=in_own_session, args=(function, *arguments))
    process.start()
    return process


def in_own_session(function, *arguments):
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # of loader workers, as a command's: not this fork server's
    function(*arguments)


def group_of(process):
    """Ids of the processes of its group that have not ended."""
    found = []
    for name in os.listdir("/proc"):
        try:
            state, _, group = (Path("/proc") / name / "stat").read_text().rpartition(")")[2].split()[:3]
        except (OSError, ValueError):
            continue
        if name.isdigit() and int(group) == process.pid and state != "Z":
            found.append(int(name))
    return found


def assert_ended(process, seconds=40):
    """It and its whole group; torch's workers look every 5 s whether their main process lives."""
    end = time.monotonic() + seconds
    process.join(seconds)
    while group_of(process) and time.monotonic() < end:
        time.sleep(0.05)
    assert not group_of(process)


@pytest.mark.long
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_leaves_workers_to_the_main_process(recipe_file, tmp_path, whole, signum):
    """As SLURM, a terminal's Ctrl-C and a container's end send it."""
    run, command = tmp_path / "run", ["train", str(recipe_file), "--data.num_workers=2", "--train.epochs=12"]
    process = start_group(call_main, [*command, "--out", str(run)])
    wait_for_progress(process, run)
    os.killpg(process.pid, signum)
    assert_ended(process)
    assert process.exitcode == 128 + signum
    process = start_group(call_main, [*command, "--out", str(run), "--resume"])
    process.join()
    assert process.exitcode == 0
    assert_same_run(run, whole)


class Numbers:
    def __len__(self):
        return 10_000

    def __getitems__(self, draws):
        return [draw.sample for draw in draws]


def read_batches(ready, how):
    loader = EpochLoader(Numbers(), EpochSampler(10_000, 2), num_workers=2)
    batches = iter(loader)
    next(batches)
    ready.set()
    if how == "kept":
        globals()["batches"] = batches  # nobody shuts the workers down before the process ends
        return
    while True:
        next(batches)
        time.sleep(0.001)


def read_in_late_workers(ready, late):
    """Workers that are slow to begin: a main process that is killed now leaves them before they know of anything."""
    loader = EpochLoader(Numbers(), EpochSampler(10_000, 2), num_workers=2)
    begin = loader.worker_init_fn

    def slow(worker):
        ready.set()
        late.wait(30)
        begin(worker)

    loader.worker_init_fn = slow
    next(iter(loader))


@pytest.mark.long
def test_workers_end_with_a_main_process_that_was_killed_before_they_began():
    """torch's watchdog takes its parent of that moment, which is then another, for the main process."""
    ready, late = forkserver().Event(), forkserver().Event()
    process = start_group(read_in_late_workers, ready, late)
    assert ready.wait(60)
    process.kill()
    process.join()
    late.set()
    assert_ended(process, seconds=15)


@pytest.mark.parametrize("how", long_but(["kept", "kill"], "kill"))
def test_workers_end_with_the_main_process(how):
    """Also where it ends them by SIGTERM, as Python does with those that are left at its end."""
    ready = forkserver().Event()
    process = start_group(read_batches, ready, how)
    assert ready.wait(60)
    if how == "kill":
        assert len(group_of(process)) >= 3
        process.kill()
    assert_ended(process)
    assert process.exitcode == (-signal.SIGKILL if how == "kill" else 0)
