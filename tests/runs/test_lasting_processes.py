"""Real processes, really killed: what is left on disk goes on to the same end, bit by bit."""

import os
import random
import signal

import pytest
from lasting import HARD, assert_same_run, start, wait_for_progress

from lmgraft.recipes import read_result
from lmgraft.training.checkpoints import checkpoint_path

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


def test_kill_9_at_any_moment(recipe_file, tmp_path, whole):
    run, draws, seen, kills = tmp_path / "run", random.Random(0), None, 0
    while True:
        process = start("train", recipe_file, "--out", run, "--resume")
        if kills < 4:
            seen = wait_for_progress(process, run, seen)
            process.join(draws.uniform(0, 0.15))  # some steps: in a save, a step or a validation
            process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert kills >= 2
    assert_same_run(run, whole)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
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
