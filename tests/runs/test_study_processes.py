"""Studies in real processes: killed drivers, workers that die, several at a time."""

import os
import re
import signal
import threading
import time
from dataclasses import replace

import pytest
import studying
from lasting import assert_same_run, quick_processes, start, wait_for_progress
from studying import run_here, study_of, without_flops

from lmgraft.errors import RunError
from lmgraft.records import only_one
from lmgraft.studies.engine import local as local_module
from lmgraft.studies.engine.local import local
from lmgraft.studies.engine.runs import Run
from lmgraft.training.checkpoints import checkpoint_path
from lmgraft.training.stopping import InterruptedRunError
from tiny import long_but

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _quick_processes(monkeypatch):
    """Real processes, forked from one that has imported everything: a fresh interpreter takes seconds."""
    without_flops(monkeypatch)
    quick_processes(monkeypatch)


def two_arms(recipe_file, *options):
    return study_of(recipe_file, "--arms", "plain,llm", *options)


def assert_same_as(tiny_study, out):
    for arm in ("plain", "llm"):
        for seed in ("seed0", "seed1"):
            assert_same_run(out / "runs" / arm / seed, tiny_study[0] / "runs" / arm / seed)


@pytest.mark.long
def test_two_workers_that_die_are_said_and_tried_again_with_the_same_results(
    recipe_file, tiny_study, tmp_path, monkeypatch
):
    monkeypatch.setattr(local_module, "train_at", studying.die_once_at)
    out = tmp_path / "out"
    result, _, lines = run_here(two_arms(recipe_file), out, executor=local(2))
    assert sum("died without a word" in line and "attempt 1 of 3" in line for line in lines) == 4
    assert sum("done in" in line for line in lines) == 4
    assert result.contrasts[0].differences
    assert_same_as(tiny_study, out)


@pytest.mark.long
@pytest.mark.parametrize(
    ("fault", "said"),
    long_but(
        [
            ("die_with_llm_at", "its process died 3 times"),
            ("fall_over_at", "CUDA out of memory"),
            ("have_a_bug_at", r"KeyError: 'no such thing'; \S+/llm/seed0/error\.txt says where"),
        ],
        ("fall_over_at", "CUDA out of memory"),
    ),
)
def test_the_others_go_on_where_one_arm_always_dies(recipe_file, tmp_path, monkeypatch, fault, said):
    monkeypatch.setattr(local_module, "train_at", getattr(studying, fault))
    with pytest.raises(RunError, match=rf"(?s)2 of 4 runs failed:.*llm, seed 0: .*{said}.*llm, seed 1"):
        run_here(two_arms(recipe_file), tmp_path / "out", executor=local())
    for seed in ("seed0", "seed1"):
        assert (tmp_path / "out" / "runs" / "plain" / seed / "result.json").exists()
    if fault == "have_a_bug_at":
        assert "in have_a_bug_at" in (tmp_path / "out" / "runs" / "llm" / "seed0" / "error.txt").read_text()


@pytest.mark.long
@pytest.mark.parametrize(
    ("signum", "status"), long_but([(signal.SIGKILL, -9), (signal.SIGTERM, 143)], (signal.SIGKILL, -9))
)
def test_a_driver_that_is_stopped(recipe_file, tiny_study, tmp_path, signum, status):
    file, out = tmp_path / "tiny.yaml", tmp_path / "out"
    file.write_text(studying.STUDY.format(recipe=recipe_file).replace(", random_frozen", ""))
    driver = start("study", file, "--out", out)
    assert wait_for_progress(driver, out / "runs" / "plain" / "seed0") is not None
    os.kill(driver.pid, signum)
    driver.join(60)
    assert driver.exitcode == status
    wait_for_workers(out)
    finished = list(out.rglob("result.json"))
    assert len(finished) < 4
    run_here(study_of(recipe_file, "--arms", "plain,llm"), out)
    assert_same_as(tiny_study, out)


@pytest.mark.parametrize(
    ("signum", "end"),
    [
        pytest.param(signal.SIGTERM, InterruptedRunError, marks=pytest.mark.long),
        (signal.SIGINT, KeyboardInterrupt),
    ],
)
def test_a_signal_to_the_driver_alone_lets_the_runs_save(recipe_file, tmp_path, signum, end):
    folder = tmp_path / "runs" / "long"
    job = Run(arm="long", seed=3, recipe=str(recipe_file), options=("--train.epochs=2000",), folder=folder)
    later = replace(job, arm="later", folder=tmp_path / "runs" / "later")
    before, said = signal.getsignal(signum), []

    def stop():
        while not checkpoint_path(folder, "last").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signum)

    stopper = threading.Thread(target=stop)
    stopper.start()
    with pytest.raises(end):
        list(local()([job, later], said.append))
    stopper.join()
    assert signal.getsignal(signum) == before
    assert re.fullmatch(
        r"long, seed 3: stopped by SIGTERM in epoch \d+, after step \d+; last.ckpt is written", said[-1]
    )
    assert not (folder / "result.json").exists()
    assert not (tmp_path / "runs" / "later").exists()
    with only_one(folder.parent / ".long.lock", "run"):
        pass  # nobody is left at it


def wait_for_workers(out):
    """Until no process holds a lock of the study: workers end with their driver."""
    deadline = time.monotonic() + 60
    for lock in [out / ".study.lock", *out.rglob(".seed*.lock")]:
        while True:
            try:
                with only_one(lock, "it"):
                    break
            except RunError:
                assert time.monotonic() < deadline
