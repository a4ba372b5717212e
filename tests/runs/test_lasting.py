"""Faults that a run survives, and those that end it with nothing lost: disks, damaged files, NaN."""

import errno
import io
import resource
import signal
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from image_trees import WNIDS, write_folder
from lasting import InterruptAfter, InterruptError, assert_same, assert_same_run, final_state, interrupt, watched_by
from pytorch_lightning import Callback

from lmgraft import records
from lmgraft.cli.command import parse
from lmgraft.cli.main import main
from lmgraft.cli.train import Train, _one_line_warnings
from lmgraft.data.base import UnreadableItemWarning
from lmgraft.errors import RunError
from lmgraft.recipes import build_model, load_trained, read_result, train_run
from lmgraft.recipes.recipe import parse_recipe
from lmgraft.training.checkpoints import AtomicCheckpointIO, RunWarning, checkpoint_path, newest_whole, read_checkpoint
from lmgraft.training.schedule import CUT, make_schedule
from lmgraft.training.stopping import InterruptedRunError, NotFiniteError
from tiny import long_but


@pytest.fixture
def uninterrupted(make_recipe, whole):
    if not whole.exists():
        train_run(make_recipe(), whole, progress="none")
    return whole


class FullDisk(Callback):
    """From the start of step `first` to that of step `last`, no file may grow beyond `limit` bytes: EFBIG."""

    def __init__(self, first, last, limit=100):
        self.first, self.last, self.limit, self.steps = first, last, limit, 0

    def on_train_batch_start(self, trainer, *_):
        if self.steps == self.first:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit, resource.RLIM_INFINITY))
        if self.steps == self.last:
            self.free()
        self.steps += 1

    def free(self):
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


# TensorBoard's writer thread says what it met by itself too.
threads_complain = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


@pytest.fixture
def full_disk():
    disks = []
    yield lambda *a: disks.append(FullDisk(*a)) or disks[-1]
    disks[0].free()


@threads_complain
def test_a_disk_full_for_a_while_costs_nothing(make_recipe, tmp_path, uninterrupted, full_disk):
    """Full from step 3 of epoch 1 to step 2 of epoch 2: last.ckpt, best.ckpt and all logs fail."""
    with watched_by(full_disk(2, 6)), pytest.warns(RunWarning) as met:
        train_run(make_recipe(), tmp_path / "run", progress="none")
    texts = [str(warning.message) for warning in met]
    for file in ("last.ckpt", "best.ckpt"):
        assert any(file in t and f"errno {errno.EFBIG}, EFBIG" in t and "kept" in t for t in texts)
    for log in ("csv", "metrics.json"):
        assert sum(log in t for t in texts) == 1  # once, though many lines failed
    assert_same_run(tmp_path / "run", uninterrupted)
    csv = next((tmp_path / "run" / "logs" / "csv").rglob("metrics.csv")).read_text().splitlines()
    assert len({line.count(",") for line in csv}) == 1  # no half line stayed


@threads_complain
def test_a_run_killed_while_the_disk_is_full_goes_on_from_the_checkpoint_before(
    make_recipe, tmp_path, uninterrupted, full_disk
):
    with watched_by(full_disk(2, 99), InterruptAfter(3)), pytest.warns(RunWarning), pytest.raises(InterruptError):
        train_run(make_recipe(), tmp_path / "run", progress="none")
    full_disk(0, 0).free()
    assert read_checkpoint(checkpoint_path(tmp_path / "run", "last"))["global_step"] == 2
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))
    train_run(make_recipe(), tmp_path / "run", resume=True, progress="none")
    assert_same_run(tmp_path / "run", uninterrupted)


@threads_complain
def test_best_weights_that_cannot_be_written_are_an_error_at_the_end(make_recipe, tmp_path, full_disk):
    disk = full_disk(2, 99)
    with watched_by(disk), pytest.warns(RunWarning), pytest.raises(RunError, match=r"best\.ckpt.*EFBIG"):
        train_run(make_recipe(), tmp_path / "run", progress="none")
    disk.free()
    assert disk.steps == 8  # it trained to the end
    assert not (tmp_path / "run" / "result.json").exists()
    assert newest_whole(tmp_path / "run") == checkpoint_path(tmp_path / "run", "last")


def tiny_content(value=1.0):
    return {"state_dict": {"weight": torch.full((50, 50), value)}, "global_step": 7}


class HalfAFile(io.FileIO):
    def write(self, data):
        if self.tell() > 4000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


def test_no_space_half_way_keeps_what_was_there(tmp_path, monkeypatch):
    path = checkpoint_path(tmp_path, "last")
    AtomicCheckpointIO().save_checkpoint(tiny_content(), path)
    before = path.read_bytes()
    monkeypatch.setattr("lmgraft.training.checkpoints.open", HalfAFile, raising=False)
    with pytest.raises(OSError, match="No space left") as caught:
        AtomicCheckpointIO().save_checkpoint(tiny_content(2.0), path)
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("links", [True, False])
def test_the_checkpoint_before_is_kept(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr("os.link", lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM, "no links here")))
    last, previous = checkpoint_path(tmp_path, "last"), checkpoint_path(tmp_path, "previous")
    for value in (1.0, 2.0, 3.0):
        AtomicCheckpointIO().save_checkpoint(tiny_content(value), last)
    assert read_checkpoint(last)["state_dict"]["weight"][0, 0] == 3
    assert read_checkpoint(previous)["state_dict"]["weight"][0, 0] == 2
    assert sorted(file.name for file in last.parent.iterdir()) == ["last.ckpt", "previous.ckpt"]


@pytest.mark.parametrize("stage", ["link", "replace"])
def test_killed_between_two_renames_a_whole_checkpoint_is_there(tmp_path, monkeypatch, stage):
    last = checkpoint_path(tmp_path, "last")
    for value in (1.0, 2.0):
        AtomicCheckpointIO().save_checkpoint(tiny_content(value), last)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"os.{stage}", killed)
    with pytest.raises(KeyboardInterrupt):
        AtomicCheckpointIO().save_checkpoint(tiny_content(3.0), last)
    assert newest_whole(tmp_path) == last


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "cut short":
        del content[len(content) // 2 :]
    elif how == "one byte":
        content[len(content) // 2] ^= 0x40
    elif how == "empty":
        content.clear()
    if how == "not finite":
        whole = torch.load(path, weights_only=True)
        next(iter(whole["state_dict"].values())).view(-1)[0] = float("nan")
        torch.save(whole, path)
    else:
        path.unlink()  # a hard link beside it stays whole
        path.write_bytes(bytes(content))


@pytest.mark.parametrize("how", long_but(["cut short", "one byte", "empty", "not finite"], "one byte", "not finite"))
def test_from_a_damaged_checkpoint_the_previous_one_goes_on(make_recipe, tmp_path, uninterrupted, how):
    run = tmp_path / "run"
    interrupt(make_recipe(), run, 5)
    damage(checkpoint_path(run, "last"), how)
    with pytest.warns(RunWarning, match=r"last\.ckpt.*previous\.ckpt"):
        train_run(make_recipe(), run, resume=True, progress="none")
    assert_same_run(run, uninterrupted)
    assert (run / "checkpoints" / "damaged.ckpt").exists()  # and did not become previous.ckpt


def test_two_damaged_checkpoints_are_an_error(make_recipe, tmp_path):
    run = tmp_path / "run"
    interrupt(make_recipe(), run, 3)
    for which in ("last", "previous"):
        damage(checkpoint_path(run, which), "cut short")
    with pytest.raises(RunError, match=r"last\.ckpt is cut short"):
        train_run(make_recipe(), run, resume=True, progress="none")


@settings(max_examples=150, deadline=None)
@given(st.floats(0, 1, exclude_max=True), st.integers(0, 7))
def test_a_flipped_bit_is_noticed_or_changes_nothing(tmp_path_factory, place, bit):
    path = tmp_path_factory.mktemp("flip") / "last.ckpt"
    torch.save(tiny_content(), path)
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    path.write_bytes(bytes(content))
    try:
        found = read_checkpoint(path)
    except RunError:
        return
    assert found["global_step"] == 7
    assert_same(found["state_dict"], tiny_content()["state_dict"])


def test_no_room_for_the_result_is_one_line(make_recipe, tmp_path, capsys, monkeypatch):
    file, original = tmp_path / "tiny.yaml", records.write_json

    def full(path, value):
        if path.name == "result.json":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        original(path, value)

    file.write_text(make_recipe("--train.epochs=1").yaml)
    monkeypatch.setattr(records, "write_json", full)
    assert main(["train", str(file), "--out", str(tmp_path / "run")]) == 2
    assert "result.json could not be written: No space left on device (errno 28)" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(["train", str(file), "--out", str(tmp_path / "run"), "--resume"]) == 0


class Poison(Callback):
    """A weight becomes NaN before step `at`, once."""

    def __init__(self, at, times=1):
        self.at, self.left, self.rates, self.batches = at, times, {}, []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append(batch[2].tolist())
        if trainer.global_step == self.at and self.left:
            self.left -= 1
            with torch.no_grad():
                pl_module.model.head.weight[0, 0] = float("nan")

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates.setdefault(trainer.global_step, []).append(optimizer.param_groups[0]["lr"])


def test_a_loss_that_is_not_finite_is_described(make_recipe, tmp_path):
    with watched_by(Poison(5)) as watch, pytest.raises(NotFiniteError) as caught:
        train_run(make_recipe(), tmp_path / "run", progress="none")
    error = caught.value
    assert (error.epoch, error.step) == (1, 1)
    assert error.samples == tuple(watch.batches[-1])
    assert error.learning_rate == expected_rates(make_recipe(), [])[5]
    assert f"images {error.samples[0]}, {error.samples[1]}" in error.message
    assert read_checkpoint(checkpoint_path(tmp_path / "run", "last"))["global_step"] == 5


def test_the_rate_of_the_loss_that_is_not_finite_is_the_recipe_s_peak_rate(make_recipe, tmp_path):
    """Not that of the first layer, which layer_decay makes smaller, nor that of the step after."""
    recipe = make_recipe("--optim.layer_decay=0.5", "--optim.warmup=0.9")
    with watched_by(Poison(5)), pytest.raises(NotFiniteError) as caught:
        train_run(recipe, tmp_path / "run", progress="none")
    assert caught.value.learning_rate == pytest.approx(expected_rates(recipe, [])[5], rel=1e-12)


FILES = """
arm: plain
backbone: {{name: vit_tiny_patch16_224, kwargs: {{embed_dim: 24, depth: 1, num_heads: 2}}}}
data:
  class_path: lmgraft.data.image.image_files.ImageFiles
  init_args: {{root: {root}, img_size: 32, batch_size: 4, eval_batch_size: 8, num_workers: 0, val_size: 2}}
train: {{epochs: 1, save_every: 1, log_every: 1, accelerator: cpu}}
"""


def test_the_files_of_a_loss_that_is_not_finite_are_named(tmp_path):
    root = write_folder(tmp_path / "tree", {"train": 6, "test": 2})
    recipe = parse_recipe(FILES.format(root=root))
    with watched_by(Poison(1)) as watch, pytest.raises(NotFiniteError) as caught:
        train_run(recipe, tmp_path / "run", progress="none")
    table = recipe.data.split("train").table
    assert caught.value.files == tuple(table.name(source) for source in watch.batches[-1])
    assert ": " + ", ".join(caught.value.files[:3]) + ", ...)" in caught.value.message


def test_a_corrupt_test_image_found_after_training_is_allowed_on_resuming(tmp_path, capsys):
    root = write_folder(tmp_path / "tree", {"train": 6, "test": 2})
    file = root / "test" / WNIDS[1] / f"{WNIDS[1]}_0.JPEG"
    file.write_bytes(file.read_bytes()[:200])
    recipe, run = tmp_path / "files.yaml", tmp_path / "run"
    recipe.write_text(FILES.format(root=root))
    command = ["train", str(recipe), "--out", str(run)]
    assert main(command) == 2
    assert "data.max_corrupt_test is 0" in capsys.readouterr().err
    with pytest.warns(UnreadableItemWarning), watched_by(InterruptAfter(0)):  # no step is taken any more
        assert main([*command, "--resume", "--data.max_corrupt_test", "1"]) == 0
    assert len(read_result(run).faults) == 1


class PoisonBehind(Callback):
    """A weight becomes infinite behind a step whose loss was finite."""

    def on_train_batch_end(self, trainer, pl_module, *_):
        if trainer.global_step == 3:
            with torch.no_grad():
                pl_module.model.head.weight[0, 0] = float("inf")


def test_weights_that_are_not_finite_are_never_saved(make_recipe, tmp_path):
    with watched_by(PoisonBehind()), pytest.raises(NotFiniteError, match=r"head\.weight .*last\.ckpt was not written"):
        train_run(make_recipe(), tmp_path / "run", progress="none")
    for which, step in (("last", 2), ("previous", 1)):
        assert read_checkpoint(checkpoint_path(tmp_path / "run", which))["global_step"] == step


def expected_rates(recipe, cuts):
    schedule = make_schedule(
        torch.optim.SGD([torch.zeros(1)], lr=recipe.optim.lr), 8, recipe.optim, epochs=2, cuts=cuts
    )
    return [recipe.optim.lr * schedule.lr_lambdas[0](step) for step in range(8)]


def test_a_retry_goes_on_from_the_last_good_checkpoint_at_a_fifth(make_recipe, tmp_path):
    recipe, run = make_recipe("--train.save_every=2"), tmp_path / "run"
    with watched_by(Poison(5)) as watch, pytest.warns(RunWarning, match="restart 1 of 3 from step 4"):
        result = train_run(recipe, run, progress="none", retries=3)
    uncut, cut = expected_rates(recipe, []), expected_rates(recipe, [4])
    assert cut[:4] == uncut[:4]
    assert cut[4:] == pytest.approx([rate * CUT for rate in uncut[4:]])
    assert watch.rates == {
        0: [uncut[0]], 1: [uncut[1]], 2: [uncut[2]], 3: [uncut[3]],
        4: [uncut[4], cut[4]], 5: [uncut[5], cut[5]], 6: [cut[6]], 7: [cut[7]],
    }  # fmt: skip
    (retry,) = records.read_json(run / "retries.json")["retries"]
    assert (retry["from_step"], retry["epoch"], retry["step_in_epoch"]) == (4, 1, 1)
    assert result.retries == read_result(run).retries == [retry]


@pytest.mark.long
def test_each_retry_is_a_fifth_again_and_there_is_an_end(make_recipe, tmp_path):
    recipe = make_recipe()
    with watched_by(Poison(5, times=3)) as watch, pytest.warns(RunWarning), pytest.raises(NotFiniteError):
        train_run(recipe, tmp_path / "run", progress="none", retries=2)
    assert watch.rates[5] == [expected_rates(recipe, [5] * count)[5] for count in range(3)]
    assert len(records.read_json(tmp_path / "run" / "retries.json")["retries"]) == 2


def test_a_retry_survives_an_interruption(make_recipe, tmp_path):
    recipe, run = make_recipe(), tmp_path / "run"
    with watched_by(Poison(3)), pytest.warns(RunWarning):
        train_run(recipe, tmp_path / "whole", progress="none", retries=1)
    with watched_by(Poison(3), InterruptAfter(6)), pytest.warns(RunWarning), pytest.raises(InterruptError):
        train_run(recipe, run, progress="none", retries=1)
    with watched_by(Poison(99)) as watch:
        result = train_run(recipe, run, progress="none", resume=True)
    assert watch.rates == {step: [expected_rates(recipe, [3])[step]] for step in watch.rates}
    assert len(result.retries) == 1
    assert_same_run(run, tmp_path / "whole")


def test_a_loss_that_is_not_finite_from_the_start_is_retried_from_the_start(make_recipe, tmp_path):
    recipe = make_recipe()
    with watched_by(Poison(0)) as watch, pytest.warns(RunWarning, match="from step 0"):
        train_run(recipe, tmp_path / "run", progress="none", retries=1)
    assert watch.rates[0] == [expected_rates(recipe, [])[0], expected_rates(recipe, [0])[0]]


class Signal(Callback):
    def __init__(self, hook):
        setattr(self, hook, lambda *_: signal.raise_signal(signal.SIGTERM))


@pytest.mark.parametrize(
    ("hook", "step"),
    [
        ("on_train_start", 1),
        pytest.param("on_train_batch_start", 1, marks=pytest.mark.long),
        pytest.param("on_before_optimizer_step", 1, marks=pytest.mark.long),
        ("on_validation_start", 4),
    ],
)
def test_a_signal_is_answered_at_a_step(make_recipe, tmp_path, uninterrupted, hook, step):
    before = signal.getsignal(signal.SIGTERM)
    with watched_by(Signal(hook)), pytest.raises(InterruptedRunError, match=f"SIGTERM in epoch 1, after step {step};"):
        train_run(make_recipe("--train.save_every=100"), tmp_path / "run", progress="none")
    assert signal.getsignal(signal.SIGTERM) == before
    assert read_checkpoint(checkpoint_path(tmp_path / "run", "last"))["global_step"] == step
    train_run(make_recipe("--train.save_every=100"), tmp_path / "run", progress="none", resume=True)
    assert_same_run(tmp_path / "run", uninterrupted)


class TwiceCtrlC(Callback):
    def on_train_batch_start(self, trainer, *_):
        for _ in range(2 if trainer.global_step == 2 else 0):
            signal.raise_signal(signal.SIGINT)


def test_a_second_ctrl_c_ends_at_once(make_recipe, tmp_path, capfd):
    file, before = tmp_path / "tiny.yaml", signal.getsignal(signal.SIGINT)
    file.write_text(make_recipe().yaml)
    with watched_by(TwiceCtrlC()):
        assert main(["train", str(file), "--out", str(tmp_path / "run")]) == 130
    assert signal.getsignal(signal.SIGINT) == before
    assert "--resume goes on" in capfd.readouterr().err
    assert read_checkpoint(checkpoint_path(tmp_path / "run", "last"))["global_step"] == 2


def test_a_signal_waits_for_accumulated_batches(make_recipe, tmp_path):
    options = ("--train.accumulate=2", "--train.save_every=100")
    with watched_by(Signal("on_train_batch_start")), pytest.raises(InterruptedRunError, match="after step 1;"):
        train_run(make_recipe(*options), tmp_path / "run", progress="none")
    content = read_checkpoint(checkpoint_path(tmp_path / "run", "last"))
    assert content["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["ready"] == 2


@pytest.mark.long
def test_the_running_mean(make_recipe, tmp_path):
    """It is DeiT's, over what is trained; it is tested only where that is asked for."""
    seen = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            seen.append({n: t.clone() for n, t in pl_module.state_dict().items()})

    with watched_by(Watch()):
        plain = train_run(make_recipe("--train.ema=0.5"), tmp_path / "plain", progress="none")
    initial = {f"model.{n}": t for n, t in build_model(make_recipe()).state_dict().items()}
    expected = dict(initial)
    for state in seen:
        expected = {n: 0.5 * mean + 0.5 * state[n] for n, mean in expected.items()}
    mean = final_state(tmp_path / "plain")["mean"]
    assert mean.keys() == expected.keys()
    assert not [name for name in mean if ".block." in name]
    for name, tensor in mean.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-7)
    train_run(make_recipe(), tmp_path / "without", progress="none")
    assert_same(final_state(tmp_path / "plain")["weights"], final_state(tmp_path / "without")["weights"])
    assert plain.metrics == read_result(tmp_path / "without").metrics


def test_the_running_mean_is_validated_and_tested_where_asked(make_recipe, tmp_path):
    tested = []

    class Watch(Callback):
        def on_validation_batch_start(self, trainer, pl_module, *_):
            tested.append(pl_module.model.head.weight.clone())

        def on_train_epoch_end(self, trainer, pl_module):
            tested.append(pl_module.model.head.weight.clone())

    options = ("--train.ema=0.99", "--train.evaluate_ema=true")
    with watched_by(Watch()):
        train_run(make_recipe(*options), tmp_path / "run", progress="none")
    assert not torch.equal(tested[0], tested[1])  # validated is the mean; afterwards the weights are back
    best = read_checkpoint(checkpoint_path(tmp_path / "run", "best"))
    mean = best["callbacks"]["KeepEma"]["mean"]["model.head.weight"]
    assert torch.equal(load_trained(tmp_path / "run")[1].head.weight, mean)
    assert any(torch.equal(mean, weight) for weight in tested)
    assert not torch.equal(best["state_dict"]["model.head.weight"], mean)


def repeat(capsys, run, out, *more):
    status = main(["train", "--from-run", str(run), "--out", str(out), *more])
    return status, capsys.readouterr().err


def test_a_run_is_repeated_from_its_folder(make_recipe, tmp_path, uninterrupted, capsys):
    status, err = repeat(capsys, uninterrupted, tmp_path / "again")
    assert status == 0
    assert "not as it was" not in err
    assert_same_run(tmp_path / "again", uninterrupted)


def test_a_repetition_says_what_is_different(make_recipe, tmp_path, uninterrupted, capsys):
    status, err = repeat(capsys, uninterrupted, tmp_path / "other", "--layer", "0")
    assert status == 2
    assert "block.digest is '" in err
    assert "--allow-difference" in err
    status, err = repeat(capsys, uninterrupted, tmp_path / "other", "--data.train_size", "48")
    assert status == 2
    assert "data.sizes" in err
    assert not (tmp_path / "other").exists()
    options = ("--data.train_size", "48", "--allow-difference", "--train.epochs", "1")
    with pytest.warns(RunWarning, match=r"not as it was .*data\.sizes"):
        assert repeat(capsys, uninterrupted, tmp_path / "other", *options)[0] == 0


def test_a_repetition_with_other_versions_is_a_warning(make_recipe, tmp_path, uninterrupted, capsys, monkeypatch):
    here = records.environment()
    here["versions"]["torch"] = "1.0"
    monkeypatch.setattr(records, "environment", lambda *_: here)
    with pytest.warns(RunWarning, match=r"torch is '1\.0', was '\d+"):
        assert repeat(capsys, uninterrupted, tmp_path / "again", "--train.epochs", "1")[0] == 0


@pytest.mark.long
def test_a_repetition_restarts_as_often_as_the_original(make_recipe, tmp_path, capsys):
    with watched_by(Poison(5)), pytest.warns(RunWarning, match="restart 1 of 2"):
        train_run(make_recipe(), tmp_path / "run", progress="none", retries=2)
    with watched_by(Poison(5)), pytest.warns(RunWarning, match="restart 1 of 1"):
        assert repeat(capsys, tmp_path / "run", tmp_path / "again")[0] == 0
    assert_same_run(tmp_path / "again", tmp_path / "run")
    with watched_by(Poison(5)):
        assert repeat(capsys, tmp_path / "run", tmp_path / "none", "--auto-lr-retry=0")[0] == 2


def test_warnings_of_a_run_are_one_line():
    usual = warnings.formatwarning
    with _one_line_warnings():
        assert warnings.formatwarning("text", RunWarning, "file.py", 3) == "lmgraft train: text\n"
        assert "file.py:3" in warnings.formatwarning("text", UserWarning, "file.py", 3)
    assert warnings.formatwarning is usual


@pytest.mark.parametrize(
    ("arguments", "retries"),
    [(["--auto-lr-retry"], 3), (["--auto-lr-retry", "5"], 5), (["--auto-lr-retry=1", "--seed", "2"], 1), ([], None)],
)
def test_the_number_of_retries(arguments, retries):
    command = parse(Train, "lmgraft train", ["image/fashion_vit", *arguments])
    assert command.auto_lr_retry == retries
    assert command.more in ((), ("--seed", "2"))
