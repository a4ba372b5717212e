"""What tests of interrupted runs share: stopping a run at a step, and comparing what two runs left."""

import multiprocessing
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning import Callback

from lmgraft import records
from lmgraft.cli.main import main
from lmgraft.recipes import read_result, train_run
from lmgraft.studies.engine import worker
from lmgraft.training import fit as fit_module
from lmgraft.training.checkpoints import checkpoint_path, read_checkpoint

HARD = (
    "--train.accumulate=2", "--train.ema=0.9", "--optim.schedule=epoch", "--optim.warmup_epochs=0",
    "--optim.lr_per=64", "--optim.mapper_lr=3", "--train.clip_grad=1",
)  # fmt: skip
"""Everything that resuming has to carry over; the stand-in recipe has mixup and drop path by itself."""

KNOBS = (
    "--optim.optimizer=adam", "--optim.schedule=linear", "--optim.min_lr=0", "--optim.warmup_steps=3",
    "--optim.warmup_rise=from_zero", "--optim.rates={head: 5, blocks.*: 0.5, graft.mapper_*: 3}",
    "--optim.decays={graft.mapper_*: 0}", "--train.clip_value=0.01",
)  # fmt: skip
"""Rates by module, a line from zero to zero, clipping by value: what the recipes of other families take."""


class InterruptError(Exception):
    """Stands in for a killed process: nothing after it runs."""


class InterruptAfter(Callback):
    def __init__(self, steps):
        self.left = steps

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.left == 0:
            raise InterruptError
        self.left -= 1


@contextmanager
def watched_by(*callbacks):
    """Inside, every fit has these callbacks more; they see a step before checkpoints are written."""
    original = fit_module._progress
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fit_module, "_progress", lambda *a: [*original(*a), *callbacks])
        yield callbacks[0]


def interrupt(recipe, run_dir, after, **options):
    """Train, and be killed before step `after` + 1."""
    with watched_by(InterruptAfter(after)), pytest.raises(InterruptError):
        train_run(recipe, run_dir, progress="none", **options)


def final_state(run_dir):
    """Weights, optimiser state and running mean of last.ckpt."""
    content = read_checkpoint(checkpoint_path(run_dir, "last"))
    mean = content["callbacks"].get("KeepEma", {"mean": {}})["mean"]
    return {"weights": content["state_dict"], "moments": content["optimizer_states"][0]["state"], "mean": mean}


def assert_same(left, right):
    assert left.keys() == right.keys()
    for key in left:
        if isinstance(left[key], dict):
            assert_same(left[key], right[key])
        else:
            assert torch.equal(left[key], right[key]), key


def assert_same_run(mine, theirs):
    """Two finished runs ended bit by bit alike: weights, moments, means, best weights, metrics, result."""
    assert_same(final_state(mine), final_state(theirs))
    best = [read_checkpoint(checkpoint_path(run, "best")) for run in (mine, theirs)]
    assert_same(best[0]["state_dict"], best[1]["state_dict"])
    assert best[0]["global_step"] == best[1]["global_step"]
    for row, expected in zip(*(records.read_json(run / "metrics.json") for run in (mine, theirs)), strict=True):
        assert row.keys() == expected.keys()
        timed = {key for key in row if key.endswith("seconds") or key.endswith("_per_second")}
        assert {k: v for k, v in row.items() if k not in timed} == {k: v for k, v in expected.items() if k not in timed}
    for name in ("metrics", "by", "val", "steps", "items"):
        assert getattr(read_result(mine), name) == getattr(read_result(theirs), name)


def forkserver():
    """Processes forked from one that has imported everything: real ones, started in no time."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["lmgraft.recipes", "lmgraft.cli.train", "timm.models.vision_transformer", "lasting"]
    )
    return context


def quick_processes(patch):
    """lmgraft's own processes are forked from that one, too; they see the environment as it was at the first."""
    context = forkserver()
    only = SimpleNamespace(get_context=lambda _: context, parent_process=multiprocessing.parent_process)
    patch.setattr(worker, "multiprocessing", only)


def start(*arguments):
    """`lmgraft ARGUMENTS` in a process of its own."""
    process = forkserver().Process(target=call_main, args=([str(a) for a in arguments],))
    process.start()
    return process


def call_main(arguments):
    sys.stdout = sys.stderr = open("/dev/null", "w")  # noqa: SIM115 - to the process's end
    sys.exit(main(arguments))


def wait_for_progress(process, run_dir, seen=None):
    """Wait until last.ckpt is another file than `seen`; its identity then."""
    last = checkpoint_path(run_dir, "last")
    while process.is_alive():
        if last.exists() and last.stat().st_ino != seen:
            return last.stat().st_ino
        process.join(0.005)
    return seen
