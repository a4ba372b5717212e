"""Training runs: resuming is exact, arms share their draws, what is frozen stays frozen."""

import math
from contextlib import contextmanager

import pytest
import torch
from pytorch_lightning import Callback

from lmgraft import records
from lmgraft.errors import BlockError, RunError
from lmgraft.recipes import build_model, evaluate_run, load_trained, read_result, train_run
from lmgraft.training import fit as fit_module
from lmgraft.training.checkpoints import read_checkpoint
from lmgraft.training.fit import checkpoint_path

STEPS = 8  # two epochs of four


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
def watched_by(callback):
    """Inside, every fit has one callback more."""
    original = fit_module._progress
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fit_module, "_progress", lambda *a: [*original(*a), callback])
        yield callback


def interrupt(recipe, run_dir, after, **options):
    """Train, and be killed before step `after` + 1."""
    with watched_by(InterruptAfter(after)), pytest.raises(InterruptError):
        train_run(recipe, run_dir, progress="none", **options)


def final_state(run_dir):
    content = read_checkpoint(checkpoint_path(run_dir, "last"))
    return content["state_dict"], content["optimizer_states"][0]["state"]


def assert_same(left, right):
    assert left.keys() == right.keys()
    for key in left:
        if isinstance(left[key], dict):
            assert_same(left[key], right[key])
        else:
            assert torch.equal(left[key], right[key]), key


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return tmp_path_factory.mktemp("whole") / "run"


@pytest.mark.parametrize("steps", range(1, STEPS))
def test_resume_after_any_step_is_bit_equal(make_recipe, tmp_path, whole, steps):
    if not whole.exists():
        train_run(make_recipe(), whole, progress="none")
    interrupt(make_recipe(), tmp_path / "run", steps)
    assert not (tmp_path / "run" / "result.json").exists()
    with watched_by(InterruptAfter(STEPS)) as rest:
        result = train_run(make_recipe(), tmp_path / "run", resume=True, progress="none")
    assert rest.left == steps  # it went on, and did not start again
    for mine, theirs in zip(final_state(tmp_path / "run"), final_state(whole), strict=True):
        assert_same(mine, theirs)
    expected = read_result(whole)
    assert result.steps == STEPS
    for name in ("accuracy", "class_accuracy", "val_accuracy", "steps"):
        assert getattr(result, name) == getattr(expected, name)


def test_resume_with_two_interruptions_and_gradient_accumulation(make_recipe, tmp_path):
    options = ("--train.accumulate", "2", "--train.save_every", "1")
    train_run(make_recipe(*options), tmp_path / "whole", progress="none")
    for steps in (3, 3):
        interrupt(make_recipe(*options), tmp_path / "run", steps, resume=True)
    train_run(make_recipe(*options), tmp_path / "run", resume=True, progress="none")
    for mine, theirs in zip(final_state(tmp_path / "run"), final_state(tmp_path / "whole"), strict=True):
        assert_same(mine, theirs)


def test_arms_share_initial_weights_order_and_draws(make_recipe, tmp_path):
    seen = {}

    class Watch(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.setdefault(self.arm, []).append((batch[0].clone(), batch[2].clone(), torch.rand(3)))
            torch.manual_seed(0)

    for arm in ("plain", "llm", "random_frozen"):
        watch = Watch()
        watch.arm = arm
        with watched_by(watch):
            train_run(make_recipe("--arm", arm), tmp_path / arm, progress="none")
    for arm in ("llm", "random_frozen"):
        for mine, plain in zip(seen[arm], seen["plain"], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(mine, plain, strict=True))
    models = {arm: build_model(make_recipe("--arm", arm)).state_dict() for arm in seen}
    for name, tensor in models["plain"].items():
        assert torch.equal(tensor, models["llm"][name])
        assert torch.equal(tensor, models["random_frozen"][name])
    assert torch.equal(models["llm"]["graft.mapper_in.weight"], models["random_frozen"]["graft.mapper_in.weight"])


def test_the_block_is_in_no_checkpoint_and_unchanged(make_recipe, tmp_path):
    recipe = make_recipe()
    before = [p.clone() for p in build_model(recipe).graft.block.parameters()]
    train_run(recipe, tmp_path / "run", progress="none")
    content = read_checkpoint(checkpoint_path(tmp_path / "run", "best"))
    assert not [name for name in content["state_dict"] if ".block." in name]
    assert content["lmgraft"]["block_digest"]
    _, model = load_trained(tmp_path / "run")
    after = list(model.graft.block.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    initial = build_model(recipe).state_dict()
    changed = {n for n, t in model.state_dict().items() if not torch.equal(t, initial[n])}
    assert {"graft.mapper_in.weight", "graft.mapper_out.weight", "patch_embed.proj.weight"} <= changed


def test_evaluate_repeats_the_result(make_recipe, tmp_path):
    result = train_run(make_recipe(), tmp_path / "run", progress="none")
    assert evaluate_run(tmp_path / "run") == result
    assert result.total == 60
    assert result.correct == round(result.accuracy * 60)
    weighted = sum(result.class_accuracy.values()) / 10
    assert math.isclose(weighted, result.accuracy, abs_tol=1e-6)  # the stand-in's classes are balanced


def test_it_learns(make_recipe, tmp_path):
    options = ("--train.epochs", "12", "--task.init_args.mixup=0", "--task.init_args.cutmix=0", "--data.flip=false")
    result = train_run(make_recipe(*options, "--data.pad=0"), tmp_path / "run", progress="none")
    assert result.accuracy > 0.5


def test_a_checkpoint_of_another_block_is_refused(make_recipe, tmp_path):
    train_run(make_recipe(), tmp_path / "run", progress="none")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("layer: -1", "layer: 0"))
    with pytest.raises(BlockError, match="trained with block"):
        evaluate_run(tmp_path / "run")


def test_a_used_folder_is_not_overwritten(make_recipe, tmp_path):
    train_run(make_recipe("--train.epochs", "1"), tmp_path / "run", progress="none")
    with pytest.raises(RunError, match="--resume"):
        train_run(make_recipe(), tmp_path / "run", progress="none")
    with pytest.raises(RunError, match="epochs: 2"):
        train_run(make_recipe(), tmp_path / "run", resume=True, progress="none")


def test_a_loss_that_is_not_finite_stops_the_run(make_recipe, tmp_path):
    with pytest.raises(RunError, match=r"loss became (nan|inf).*learning rate"):
        train_run(make_recipe("--optim.lr", "1e30", "--optim.warmup", "0"), tmp_path / "run", progress="none")
    assert not (tmp_path / "run" / "result.json").exists()


def test_a_damaged_checkpoint_is_named(make_recipe, tmp_path):
    interrupt(make_recipe(), tmp_path / "run", 5)
    last = checkpoint_path(tmp_path / "run", "last")
    last.write_bytes(last.read_bytes()[:1000])
    with pytest.raises(RunError, match=r"last\.ckpt is cut short"):
        train_run(make_recipe(), tmp_path / "run", resume=True, progress="none")


class Hostile:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code in a checkpoint ran')",))


@pytest.mark.parametrize("where", ["hyper_parameters", "state_dict"])
def test_code_in_a_checkpoint_does_not_run(tmp_path, where):
    file = tmp_path / "last.ckpt"
    torch.save({"state_dict": {}, where: {"_instantiator": Hostile()}}, file)
    with pytest.raises(RunError, match="was not run"):
        read_checkpoint(file)


def test_an_instantiator_named_by_a_checkpoint_is_not_called(make_recipe, tmp_path, monkeypatch):
    """Lightning's loader would import and call what `_instantiator` names; ours has no such step."""
    train_run(make_recipe(), tmp_path / "run", progress="none")
    file = checkpoint_path(tmp_path / "run", "best")
    content = torch.load(file, weights_only=True)
    content["hyper_parameters"] = {"_instantiator": "os.abort"}
    content["hparams_name"] = "kwargs"
    torch.save(content, file)
    called = []
    monkeypatch.setattr("os.abort", lambda *a: called.append(a))
    evaluate_run(tmp_path / "run")
    assert not called


def test_a_failed_save_leaves_the_old_checkpoint(make_recipe, tmp_path, monkeypatch):
    train_run(make_recipe("--train.epochs", "1"), tmp_path / "run", progress="none")
    last = checkpoint_path(tmp_path / "run", "last")
    before = last.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        fit_module.AtomicCheckpointIO().save_checkpoint({"state_dict": {}}, last)
    assert last.read_bytes() == before
    assert not list(last.parent.glob(".*"))


def test_leftovers_of_a_kill_are_swept(make_recipe, tmp_path):
    interrupt(make_recipe(), tmp_path / "run", 5)
    leftover = tmp_path / "run" / "checkpoints" / ".last.ckpt.abc.tmp"
    leftover.write_bytes(b"half")
    train_run(make_recipe(), tmp_path / "run", resume=True, progress="none")
    assert not leftover.exists()


def test_the_record_says_what_a_repetition_needs(make_recipe, tmp_path):
    train_run(make_recipe(), tmp_path / "run", progress="none")
    record = records.read_json(tmp_path / "run" / "run.json")
    assert record["block"]["layers"] == [2]
    assert len(record["block"]["digest"]) == 64
    assert record["data"]["sizes"] == {"train": 100, "val": 20, "test": 60}
    assert record["environment"]["versions"]["torch"] == torch.__version__.split("+")[0]
    assert record["trained_params"] > 0
    assert record["frozen_params"] > 0
