"""Training runs: resuming is exact, arms share their draws, what is frozen stays frozen."""

import math
import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from lasting import HARD, KNOBS, InterruptAfter, InterruptError, assert_same_run, final_state, interrupt, watched_by
from pytorch_lightning import Callback
from timm.data.mixup import Mixup
from torchmetrics.classification import MulticlassAccuracy

import lmgraft
from lmgraft import records
from lmgraft.analysis.curves import read_curves
from lmgraft.cli.main import main
from lmgraft.data.base import UnreadableItemWarning
from lmgraft.data.image.fashion_mnist import FashionMNIST
from lmgraft.data.labelled import LabelledBatch
from lmgraft.data.loader import Fault
from lmgraft.errors import BlockError, RecipeError, RunError
from lmgraft.recipes import build_model, evaluate_run, load_trained, read_result, train_run
from lmgraft.recipes import run as run_module
from lmgraft.recipes.run import alone_in, lock_of, read_run
from lmgraft.registry import FACTORIES
from lmgraft.tasks.classification import Classification
from lmgraft.training import so_far
from lmgraft.training.callbacks import PlainProgress
from lmgraft.training.checkpoints import RunWarning, checkpoint_path, read_checkpoint
from lmgraft.training.features import encoder_digest
from lmgraft.training.fit import TrainConfig, precision_of
from lmgraft.training.items import read_items
from lmgraft.training.schedule import make_schedule
from lmgraft.training.so_far import TestSoFar
from tiny import long_but

STEPS = 8  # two epochs of four


@pytest.mark.parametrize("steps", long_but(range(1, STEPS), 3, 4))
def test_resume_after_any_step_is_bit_equal(make_recipe, tmp_path, whole, steps):
    if not whole.exists():
        train_run(make_recipe(), whole, progress="none")
    interrupt(make_recipe(), tmp_path / "run", steps)
    assert not (tmp_path / "run" / "result.json").exists()
    with watched_by(InterruptAfter(STEPS)) as rest:
        result = train_run(make_recipe(), tmp_path / "run", resume=True, progress="none")
    assert rest.left == steps  # it went on, and did not start again
    assert result.steps == STEPS
    assert_same_run(tmp_path / "run", whole)


@pytest.fixture(scope="module")
def uncut(tmp_path_factory):
    return tmp_path_factory.mktemp("uncut")


@pytest.mark.parametrize(
    ("name", "options", "batches"),
    long_but(
        [*(("hard", HARD, n) for n in (1, 2, 3, 5, 6, 7)), ("knobs", KNOBS, 2)], ("hard", HARD, 3), ("knobs", KNOBS, 2)
    ),
)
def test_resume_with_what_else_has_to_be_carried_over(make_recipe, tmp_path, uncut, name, options, batches):
    """With accumulation, after odd batches the step is half done: last.ckpt is from before it."""
    options = (*options, "--train.save_every", "1")
    if not (uncut / name).exists():
        with watched_by(Steepest()) as watch:
            train_run(make_recipe(*options), uncut / name, progress="none")
        assert bool(final_state(uncut / name)["mean"]) == (name == "hard")
        assert (watch.steepest == pytest.approx(0.01)) == (name == "knobs")
    interrupt(make_recipe(*options), tmp_path / "run", batches)
    interrupt(make_recipe(*options), tmp_path / "run", 1, resume=True)
    train_run(make_recipe(*options), tmp_path / "run", resume=True, progress="none")
    assert_same_run(tmp_path / "run", uncut / name)


class Steepest(Callback):
    """The largest gradient of any one weight behind the steps."""

    steepest = 0.0

    def on_train_batch_end(self, trainer, pl_module, *_):
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        self.steepest = max(self.steepest, *(float(g.abs().max()) for g in gradients))


@pytest.mark.parametrize(
    "hook",
    long_but(
        ["on_validation_start", "on_validation_batch_end", "on_train_epoch_end", "on_train_end"], "on_train_epoch_end"
    ),
)
def test_resume_after_an_end_behind_the_last_batch(make_recipe, tmp_path, whole, hook):
    """The epoch is validated again: its weights may be the best."""

    def end(self, trainer, *_):
        if trainer.current_epoch == 1 or hook == "on_train_end":
            raise InterruptError

    watch = type("End", (Callback,), {hook: end})()
    if not whole.exists():
        train_run(make_recipe(), whole, progress="none")
    with watched_by(watch), pytest.raises(InterruptError):
        train_run(make_recipe(), tmp_path / "run", progress="none")
    train_run(make_recipe(), tmp_path / "run", resume=True, progress="none")
    assert_same_run(tmp_path / "run", whole)


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
    assert evaluate_run(tmp_path / "run")[0] == result
    assert result.items == 60
    assert result.metrics["accuracy"] * 60 == pytest.approx(round(result.metrics["accuracy"] * 60))
    weighted = sum(result.by["class"].values()) / 10
    assert math.isclose(weighted, result.metrics["accuracy"], abs_tol=1e-6)  # the stand-in's classes are balanced


class Batches(Callback):
    """The items that a test scores, until it is interrupted."""

    def __init__(self, stop: int = -1) -> None:
        self.seen, self.stop = [], stop

    def on_test_batch_start(self, trainer, pl_module, batch, batch_idx, *_):
        if batch_idx == self.stop:
            raise InterruptError
        self.seen.append(batch.index.tolist())


def test_a_test_that_was_interrupted_goes_on(make_recipe, tmp_path, monkeypatch, whole):
    if not whole.exists():
        train_run(make_recipe(), whole, progress="none")
    run = shutil.copytree(whole, tmp_path / "run")
    expected = read_items(run)

    def tested(*overrides, stop=-1):
        batches = Batches(stop)
        monkeypatch.setattr(run_module, "testing", lambda *_: [batches])
        if stop >= 0:
            with pytest.raises(InterruptError):
                evaluate_run(run, list(overrides))
        else:
            result, items = evaluate_run(run, list(overrides))
            assert result == read_result(run)
            assert {n: v.tolist() for n, v in items.items()} == {n: v.tolist() for n, v in expected.items()}
        return [index for batch in batches.seen for index in batch]

    assert tested(stop=2) == list(range(40))  # a test of seconds leaves nothing
    assert tested() == list(range(60))

    monkeypatch.setattr(TestSoFar.__init__, "__defaults__", (0.0,))
    assert tested(stop=1) == list(range(20))
    (kept,) = run.glob("test_so_far.*.npz")
    assert tested("--data.eval_batch_size", "30") == list(range(60))  # others' batches are not taken
    assert tested(stop=1) == list(range(20, 40))
    assert tested() == list(range(40, 60))
    assert not kept.exists()

    tested(stop=1)
    kept.write_bytes(kept.read_bytes()[:100])
    assert tested() == list(range(60))  # damaged, and made again

    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(so_far, "write_arrays", refuse)
    assert tested() == list(range(60))


def test_a_resumed_run_goes_on_with_its_test(make_recipe, tmp_path, monkeypatch, whole):
    if not whole.exists():
        train_run(make_recipe(), whole, progress="none")
    monkeypatch.setattr(TestSoFar.__init__, "__defaults__", (0.0,))
    monkeypatch.setattr(run_module, "testing", lambda *_: [Batches(stop=2)])
    with pytest.raises(InterruptError):
        train_run(make_recipe(), tmp_path / "run", progress="none")
    rest = Batches()
    monkeypatch.setattr(run_module, "testing", lambda *_: [rest])
    train_run(make_recipe(), tmp_path / "run", resume=True, progress="none")
    assert rest.seen == [list(range(40, 60))]
    assert_same_run(tmp_path / "run", whole)
    assert not list((tmp_path / "run").glob("test_so_far*"))


def test_it_learns(make_recipe, tmp_path):
    options = ("--train.epochs", "12", "--task.init_args.mixup=0", "--task.init_args.cutmix=0", "--data.flip=false")
    result = train_run(make_recipe(*options, "--data.pad=0"), tmp_path / "run", progress="none")
    assert result.metrics["accuracy"] > 0.5


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
    with pytest.raises(RunError, match=r"different now: train\.epochs is 2, was 1"):
        train_run(make_recipe(), tmp_path / "run", resume=True, progress="none")


def test_a_loss_that_is_not_finite_stops_the_run(make_recipe, tmp_path):
    with pytest.raises(RunError, match=r"loss became (nan|inf).*learning rate"):
        train_run(make_recipe("--optim.lr", "1e30", "--optim.warmup", "0"), tmp_path / "run", progress="none")
    assert not (tmp_path / "run" / "result.json").exists()


def test_a_damaged_checkpoint_is_named_where_there_is_no_other(make_recipe, tmp_path):
    interrupt(make_recipe(), tmp_path / "run", 1)
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


def test_leftovers_of_a_kill_are_swept(make_recipe, tmp_path):
    interrupt(make_recipe(), tmp_path / "run", 5)
    leftover = tmp_path / "run" / "checkpoints" / ".last.ckpt.abc.tmp"
    leftover.write_bytes(b"half")
    train_run(make_recipe(), tmp_path / "run", resume=True, progress="none")
    assert not leftover.exists()


def test_records_and_terminal_say_which_items_were_tested_and_which_chose_the_epoch(
    recipe_file, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(FashionMNIST, "split_names", lambda _: {"test": "their validation"})
    monkeypatch.setattr(FashionMNIST, "selection", "test")
    run = tmp_path / "run"
    assert main(["train", str(recipe_file), "--out", str(run), "--train.epochs", "1"]) == 0
    said = capsys.readouterr()
    assert "Tested on the images of their validation; the test images themselves chose the epoch" in said.out
    assert ", test accuracy 0." in said.err
    assert ", val accuracy" not in said.err
    for file in ("run.json", "result.json"):
        record = records.read_json(run / file)
        assert (record["selection"], record["splits"]) == ("test", {"test": "their validation"})
    assert main(["evaluate", str(run)]) == 0
    assert "Tested on the images of their validation" in capsys.readouterr().out


def test_the_record_says_what_a_repetition_needs(make_recipe, tmp_path):
    train_run(make_recipe(), tmp_path / "run", progress="none")
    record = records.read_json(tmp_path / "run" / "run.json")
    assert record["block"]["layers"] == [2]
    assert len(record["block"]["digest"]) == 64
    assert record["data"]["sizes"] == {"train": 100, "val": 20, "test": 60}
    assert record["environment"]["versions"]["torch"] == torch.__version__.split("+")[0]
    assert record["trained_params"] > 0
    assert record["frozen_params"] > 0
    assert (record["selection"], record["splits"]) == ("val", {})
    assert record["seeds"] == {"weights": 3, "order_and_augmentation": 3, "steps": 3}
    assert record["encoder"] == {"pretrained": False, "digest": encoder_digest(build_model(make_recipe()))}
    (launch,) = record["launches"]
    assert launch == {"command": record["command"], "environment": record["environment"]}
    train_run(make_recipe(), tmp_path / "run", resume=True, progress="none")
    assert records.read_json(tmp_path / "run" / "run.json")["launches"] == [launch, launch]


def test_resuming_with_other_data_or_another_block_is_refused(make_recipe, tmp_path):
    run = tmp_path / "run"
    interrupt(make_recipe(), run, 1)
    file = run / "run.json"
    whole = records.read_json(file)
    for part, changed in (
        ("data.sha256", {"data": whole["data"] | {"sha256": "other"}}),
        ("block.digest", {"block": whole["block"] | {"digest": "other"}}),
    ):
        records.write_json(file, whole | changed)
        with pytest.raises(RunError, match=f"trained otherwise; different: {part}"):
            train_run(make_recipe(), run, resume=True, progress="none")
        assert records.read_json(file) == whole | changed
    there = whole["environment"] | {"python": "2.7"}
    records.write_json(file, whole | {"environment": there, "commands": [["old"]]})
    with pytest.warns(RunWarning, match=r"python is .*was '2\.7'"):
        train_run(make_recipe(), run, resume=True, progress="none")
    assert len(records.read_json(file)["launches"]) == 2


def test_what_does_not_change_training_may_be_changed_on_resuming(make_recipe, tmp_path, fashion_root):
    run, moved = tmp_path / "run", tmp_path / "moved"
    interrupt(make_recipe(), run, 1)
    moved.symlink_to(fashion_root)
    free = (f"--data.root={moved}", "--data.eval_batch_size=7", "--train.log_every=2", "--train.save_every=3")
    with pytest.raises(RunError, match=r"different now: optim\.lr is 0\.1, was 0\.003"):
        train_run(make_recipe(*free, "--optim.lr=0.1"), run, resume=True, progress="none")
    result = train_run(make_recipe(*free), run, resume=True, progress="none")
    assert result.steps == STEPS
    assert read_run(run).data.eval_batch_size == 7


class StrangeWeights:
    """timm's factory, whose pretrained weights are made up; counts how often they were fetched."""

    def __init__(self, patched):
        self.fetched, self.value = 0, 0.5
        self.original = FACTORIES.load("timm")
        patched.setitem(FACTORIES._rows, "timm", "test_training:_strange")
        patched.setitem(globals(), "_strange", self.make)

    def make(self, name, arguments):
        model = self.original(name, arguments | {"pretrained": False})
        if arguments.get("pretrained"):
            self.fetched += 1
            with torch.no_grad():
                model.pos_embed.fill_(self.value)
        return model


@pytest.mark.parametrize("options", [(), ("--features.cached=true", "--data.pad=0", "--data.flip=false")])
def test_pretrained_weights_are_not_fetched_to_be_overwritten(make_recipe, tmp_path, monkeypatch, options):
    monkeypatch.setenv("LMGRAFT_CACHE", str(tmp_path / "cache"))
    options = (*options, "--backbone.kwargs.pretrained=true", "--task.mixup=0", "--task.cutmix=0")
    weights = StrangeWeights(monkeypatch)
    result = train_run(make_recipe(*options), tmp_path / "run", progress="none")
    assert weights.fetched == 1
    assert evaluate_run(tmp_path / "run")[0] == result
    _, trained = load_trained(tmp_path / "run")
    assert weights.fetched == 1
    loaded = lmgraft.load_pretrained(tmp_path / "run" / "model")
    images = torch.randn(2, 1, 28, 28)
    with torch.no_grad():
        assert torch.equal(loaded(images), trained.eval()(images))
    assert weights.fetched == 1
    assert records.read_json(tmp_path / "run" / "run.json")["encoder"]["pretrained"]
    weights.value = 0.6
    with pytest.raises(RunError, match=r"no repetition .*encoder.digest"):
        train_run(make_recipe(*options), tmp_path / "again", repeats=tmp_path / "run", progress="none")


def test_the_table_of_epochs(make_recipe, tmp_path):
    options = ("--task.init_args.mixup=0", "--task.init_args.cutmix=0", "--train.accumulate=2", "--train.log_every=1")
    result = train_run(make_recipe(*options), tmp_path / "run", progress="none")
    rows = records.read_json(tmp_path / "run" / "metrics.json")
    logged = [read_curves(tmp_path / "run")[name] for name in ("train/loss", "val/accuracy", "val/top5")]
    assert [row["epoch"] for row in rows] == [0, 1]
    assert [row["step"] for row in rows] == [2, 4]
    assert [row["val/accuracy"] for row in rows] == pytest.approx([value for _, value in logged[1]])
    assert [row["val/top5"] for row in rows] == pytest.approx([value for _, value in logged[2]])
    assert max(row["val/accuracy"] for row in rows) == pytest.approx(result.val["accuracy"])
    assert result.metrics["top5"] >= result.metrics["accuracy"]
    config = make_recipe(*options).optim
    schedule = make_schedule(torch.optim.SGD([torch.zeros(1)], lr=config.lr), 4, config, epochs=2)
    assert [row["learning_rate"] for row in rows] == [config.lr * schedule.lr_lambdas[0](step) for step in (1, 3)]
    for row in rows:
        assert row["seconds"] > 0
        assert row["images_per_second"] == pytest.approx(96 / row["seconds"])
        assert math.isclose(row["train/loss"], 2.3, abs_tol=0.3)  # of whole batches, though two make a step


def test_files_that_could_not_be_read_are_in_result_and_table(make_recipe, tmp_path):
    recipe = make_recipe()
    recipe.data.max_corrupt = 1
    with pytest.warns(UnreadableItemWarning):
        recipe.data.report("train", [Fault("a/b.jpg", "cut short")])
    result = train_run(recipe, tmp_path / "run", progress="none")
    assert result.faults == read_result(tmp_path / "run").faults == [{"file": "a/b.jpg", "reason": "cut short"}]
    assert [row["unreadable_files"] for row in records.read_json(tmp_path / "run" / "metrics.json")] == [1, 1]
    assert evaluate_run(tmp_path / "run")[0].faults == result.faults


def test_a_result_of_an_earlier_version_is_read(make_recipe, tmp_path):
    result = train_run(make_recipe("--train.epochs=1"), tmp_path / "run", progress="none")
    file = tmp_path / "run" / "result.json"
    values = records.read_json(file)
    for name in ("selection", "faults", "retries"):
        del values[name]
    records.write_json(file, values)
    assert read_result(tmp_path / "run").metrics["accuracy"] == result.metrics["accuracy"]
    records.write_json(file, values | {"unknown": 1})
    with pytest.raises(RunError, match="does not hold a result of this version"):
        read_result(tmp_path / "run")


def test_lines_say_images_a_second(make_recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(PlainProgress.__init__, "__defaults__", (0.0,))
    train_run(make_recipe(), tmp_path / "run", progress="plain")
    lines = capsys.readouterr().err
    assert re.search(r"\[llm\] step 3/8, loss \d\.\d+, \d+ images/s, about \d+ s left", lines)
    assert re.search(r"\[llm\] test: batch 2/3 of images, about \d+ s left", lines)


def test_the_rate_follows_the_images_of_a_step(make_recipe, tmp_path):
    options = ("--train.accumulate=2", "--optim.lr_per=512", "--optim.schedule=epoch", "--optim.warmup_epochs=0")
    train_run(make_recipe(*options), tmp_path / "run", progress="none")
    rows = records.read_json(tmp_path / "run" / "metrics.json")
    assert [row["learning_rate"] for row in rows] == pytest.approx([0.003 * 48 / 512] * 2, rel=1e-12)


class Logits(torch.nn.Module):
    """Images (B, 1, 1, C) are the logits."""

    def forward(self, images):
        return images.flatten(1)


def make_task(data, **options):
    return Classification(Logits(), data, None, None, **options)


def test_metrics_are_torchmetrics(make_recipe):
    data = make_recipe().data
    task = make_task(data)
    logits, labels = torch.randn(40, 10), torch.randint(10, (40,))
    index = torch.arange(40)
    parts = [
        task.columns(LabelledBatch(logits[half, None, None], labels[half], index[half], index[half]))
        for half in (slice(20, 40), slice(20))
    ]
    task.settle(parts, "val")
    for name, k in (("accuracy", 1), ("top5", 5)):
        oracle = MulticlassAccuracy(10, top_k=k, average="micro")
        assert task.values[name] == pytest.approx(oracle(logits, labels).item())
    assert task.values["nll"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item())
    assert task.items["index"].tolist() == list(range(40))
    data.class_names = data.class_names[:5]
    assert [metric.name for metric in make_task(data).metrics(data)] == ["accuracy", "nll"]


def test_mixing_is_timm_s(make_recipe):
    options = {"mixup": 0.8, "cutmix": 1.0, "mixup_prob": 0.7, "switch_prob": 0.3, "mixup_mode": "elem"}
    task = make_task(make_recipe().data, **options, label_smoothing=0.1)
    oracle = Mixup(0.8, 1.0, prob=0.7, switch_prob=0.3, mode="elem", label_smoothing=0.1, num_classes=10)
    images, labels = torch.randn(6, 1, 4, 2), torch.arange(6)
    mixed = []
    for mix in (task._mix, oracle):
        np.random.seed(0)
        mixed.append(mix(images.clone(), labels))
    assert torch.equal(mixed[0][0], mixed[1][0])
    assert torch.equal(mixed[0][1], mixed[1][1])


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("--task.init_args.mixup_prob=1.5", r"task\.mixup_prob"),
        ("--task.init_args.switch_prob=-1", r"task\.switch_prob"),
        ("--data.batch_size=25", r"data\.batch_size=25 is odd"),
        ("--optim.warmup_epochs=2", r"optim\.warmup_epochs=2 .* train\.epochs=2"),
        ("--train.ema=1", r"train\.ema"),
        ("--train.evaluate_ema=true", r"train\.evaluate_ema"),
        ("--train.clip_grad=0", r"train\.clip_grad"),
        ("--train.num_nodes=0", r"train\.num_nodes"),
        ("--train.accelerator=abacus", r"train\.accelerator=abacus.*invalid accelerator name"),
        ("--train.devices=0", r"train\.devices=0"),
        ("--train.precision=fp3", r"train\.precision=fp3"),
        ("--train.strategy=together", "invalid strategy name"),
    ],
)
def test_a_mistake_is_found_before_the_first_step(make_recipe, tmp_path, override, key):
    with pytest.raises(RecipeError, match=key):
        train_run(make_recipe(override), tmp_path / "run", progress="none")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("gpu", "bf16", "options", "expected"),
    [
        (False, False, {}, "32-true"),
        (True, True, {}, "bf16-mixed"),
        (True, False, {}, "16-mixed"),
        (True, False, {"strategy": "fsdp"}, "32-true"),
        (True, False, {"accelerator": "cpu"}, "32-true"),
        (True, False, {"precision": "bf16-true"}, "bf16-true"),
    ],
)
def test_precision_follows_the_device(monkeypatch, gpu, bf16, options, expected):
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    # Older GPUs emulate bfloat16, slowly: that does not count.
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: bf16 or including_emulation)
    assert precision_of(TrainConfig(**options)) == expected


def test_one_process_at_a_time_is_at_a_run(make_recipe, tmp_path, monkeypatch):
    run = tmp_path / "run"
    with records.only_one(lock_of(run), "it"):
        for resume in (False, True):
            with pytest.raises(RunError, match=f"another process is at run {run}"):
                train_run(make_recipe(), run, resume=resume, progress="none")
        monkeypatch.setattr("lmgraft.recipes.run.rank", lambda: 1)
        with alone_in(run):  # the others of the process that holds it
            pass
    assert not run.exists()
    monkeypatch.undo()
    with alone_in(run):
        with alone_in(run):
            pass
        with ThreadPoolExecutor() as pool, pytest.raises(RunError, match="another process"):
            pool.submit(train_run, make_recipe(), run, progress="none").result()
    with alone_in(run):
        pass
