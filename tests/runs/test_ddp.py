"""Several processes: as one process with the double batch; and FSDP's wiring on a CPU mesh."""

import csv
import os
import signal
import socket
import subprocess
import sys

import pytest
import timm
import torch
import torch.distributed as dist
from lasting import assert_same_run, call_main, final_state, forkserver, wait_for_progress, watched_by
from lightning_utilities.core.rank_zero import rank_zero_only
from pytorch_lightning import Callback
from torch.distributed.device_mesh import init_device_mesh

import lmgraft
from lmgraft import records
from lmgraft.data.image.fashion_mnist import FashionMNIST
from lmgraft.data.image.images import ImageData
from lmgraft.data.loader import EpochSampler, Fault
from lmgraft.errors import RecipeError
from lmgraft.recipes import read_result, train_run
from lmgraft.training.checkpoints import checkpoint_path, read_checkpoint
from lmgraft.training.fit import TrainConfig, processes
from lmgraft.training.strategy import fully_shard, make_plugins
from tiny import long_but

ONE = (
    "--backbone.kwargs.drop_path_rate=0", "--task.init_args.mixup=0", "--task.init_args.cutmix=0",
    "--optim.lr_per=24", "--train.log_every=1", "--train.epochs=4", "--train.save_every=2",
)  # fmt: skip
TWO = (*ONE, "--data.batch_size=12", "--train.devices=2", "--train.accelerator=cpu", "--train.strategy=ddp")


def logged(run_dir, name):
    values = {}
    for file in sorted((run_dir / "logs" / "csv").glob("version_*/metrics.csv")):
        with open(file, newline="") as lines:
            values |= {int(row["step"]): float(row[name]) for row in csv.DictReader(lines) if row.get(name)}
    return [values[step] for step in sorted(values)]


def as_torchrun_does(arguments, rank, port):
    """One of two processes, with the environment that torchrun gives it."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", GROUP_RANK="0",
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_RUN_ID="test",
    )  # fmt: skip
    rank_zero_only.rank = rank  # read from the environment when Lightning is imported: here it was before
    call_main(arguments)


def start_two(*arguments):
    context, port = forkserver(), free_port()
    processes = [
        context.Process(target=as_torchrun_does, args=([str(a) for a in arguments], rank, port)) for rank in (0, 1)
    ]
    for process in processes:
        process.start()
    return processes


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def assert_like_one(run, one):
    for name in ("train/loss", "val/nll", "val/accuracy"):
        assert logged(run, name) == pytest.approx(logged(one, name), rel=1e-5)
    for name in ("train/loss", "learning_rate", "val/top5", "step"):
        mine, theirs = ([row[name] for row in records.read_json(folder / "metrics.json")] for folder in (run, one))
        assert mine == pytest.approx(theirs, rel=1e-5)
    for name, tensor in final_state(one)["weights"].items():
        if not name.endswith("qkv.bias"):  # a key's bias has no gradient but rounding, which Adam blows up
            torch.testing.assert_close(final_state(run)["weights"][name], tensor, rtol=1e-3, atol=1e-4)
    mine, theirs = read_result(run), read_result(one)
    assert mine.metrics == pytest.approx(theirs.metrics, rel=1e-5)
    assert mine.val == pytest.approx(theirs.val, rel=1e-5)
    assert mine.steps == theirs.steps


@pytest.fixture
def two_recipe(make_recipe, tmp_path):
    file = tmp_path / "two.yaml"
    file.write_text(make_recipe(*TWO).yaml)
    return file


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("strategy", long_but(["ddp", "fsdp"], "ddp"))
def test_two_processes_are_one_with_the_double_batch(make_recipe, two_recipe, tmp_path, strategy):
    """Under torchrun: stopped by SIGTERM to one of them, resumed, and without interruption."""
    strategy = f"--train.strategy={strategy}"
    one, stopped, run = tmp_path / "one", tmp_path / "stopped", tmp_path / "run"
    train_run(make_recipe(*ONE), one, progress="none")
    first, second = start_two("train", two_recipe, strategy, "--out", stopped)
    wait_for_progress(first, stopped)
    os.kill(second.pid, signal.SIGTERM)
    for process in (first, second):
        process.join()
        assert process.exitcode == 143
    assert not (stopped / "result.json").exists()
    for command in (("--out", stopped, "--resume"), ("--out", run)):
        for process in start_two("train", two_recipe, strategy, *command):
            process.join()
            assert process.exitcode == 0
    assert_same_run(stopped, run)
    assert_like_one(run, one)
    assert [folder.name for folder in (run / "logs" / "csv").iterdir()] == ["version_0"]  # one process wrote


@pytest.mark.long
def test_two_processes_from_one_command(make_recipe, two_recipe, tmp_path):
    """Lightning starts the second process; the first evaluates and reports alone."""
    train_run(make_recipe(*ONE), tmp_path / "one", progress="none")
    command = [sys.executable, "-m", "lmgraft", "train", str(two_recipe), "--out", str(tmp_path / "two")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test accuracy") == 1
    assert done.stderr.count("Training ") == 1
    assert_like_one(tmp_path / "two", tmp_path / "one")


@pytest.mark.long
@pytest.mark.slow
def test_a_loss_that_is_not_finite_in_one_process_stops_and_restarts_both(two_recipe, tmp_path):
    context, port = forkserver(), free_port()
    arguments = ["train", str(two_recipe), "--out", str(tmp_path / "run"), "--auto-lr-retry"]
    processes = [context.Process(target=poisoned, args=(arguments, rank, port)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    (retry,) = records.read_json(tmp_path / "run" / "retries.json")["retries"]
    assert retry["from_step"] == 4
    assert read_result(tmp_path / "run").steps == 16


def poisoned(arguments, rank, port):
    with watched_by(*([Poison()] if rank == 1 else [Callback()])):
        as_torchrun_does(arguments, rank, port)


class Poison(Callback):
    """The images of one batch of this process are NaN, once."""

    def __init__(self):
        self.left = 1

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 5 and self.left:
            self.left = 0
            batch[0].fill_(float("nan"))


@pytest.mark.parametrize("batch", [4, 7])
def test_batches_of_all_ranks_are_the_batch_of_one(batch):
    whole = EpochSampler(61, 2 * batch, seed=5, shuffle=True, drop_last=True)
    halves = [EpochSampler(61, batch, seed=5, shuffle=True, drop_last=True, rank=r, world=2) for r in (0, 1)]
    for one, left, right in zip(whole, *halves, strict=True):
        assert sorted(one) == sorted(left + right)


def model_and_batch(llm):
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=24, depth=2, num_heads=2, num_classes=5)
    model = lmgraft.graft(vit, str(llm))
    return model, torch.randn(8, 3, 32, 32), torch.arange(8) % 5


def step(model, images, labels):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    loss = torch.nn.functional.cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()
    return loss


def sharded_step(rank, llm, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    model, images, labels = model_and_batch(llm)
    mesh = init_device_mesh("cpu", (2,))
    for layer in [*model.blocks, model.graft]:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert type(model.graft).__name__ == "FSDPGraftLayer"
    loss = step(model, images[rank::2], labels[rank::2])
    dist.all_reduce(loss.detach(), op=dist.ReduceOp.SUM)
    whole = {name: p.full_tensor() for name, p in model.named_parameters()}
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    if rank == 0:
        torch.save({"loss": loss.detach() / 2, "weights": whole, "frozen": frozen}, folder / "out.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_a_sharded_step_is_the_unsharded_one(tmp_path, llama_folder):
    """FSDP2 on two processes: frozen and trained tensors share units; loss and weights are as without."""
    context = forkserver()
    processes = [context.Process(target=sharded_step, args=(r, llama_folder, tmp_path)) for r in (0, 1)]
    for process in processes:
        process.start()
    model, images, labels = model_and_batch(llama_folder)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    loss = step(model, images, labels)
    for process in processes:
        process.join()
        assert process.exitcode == 0
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    assert found["loss"].item() == pytest.approx(loss.item(), rel=1e-5)
    assert found["frozen"] == [name for name, p in model.named_parameters() if not p.requires_grad]
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found["weights"][name], parameter.detach(), rtol=1e-4, atol=1e-6)
        assert torch.equal(found["weights"][name], before[name]) == (not parameter.requires_grad)


def test_a_running_mean_and_shards_are_refused():
    with pytest.raises(RecipeError, match=r"train\.ema"):
        TrainConfig(strategy="fsdp", ema=0.9)


def test_processes_that_would_train_each_for_itself_are_refused(make_recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match=r"train\.devices"):
        train_run(make_recipe(), tmp_path / "run", progress="none")


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({}, (4, 2)),
        ({"devices": 4}, (4, 2)),
        ({"devices": "4", "num_nodes": 2}, (4, 2)),
        ({"devices": 8}, "torchrun started 4 processes on this machine, but train.devices is 8"),
        ({"num_nodes": 3}, "torchrun has 2 machines, but train.num_nodes is 3"),
    ],
)
def test_processes_are_torchrun_s(monkeypatch, options, found):
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "4", "GROUP_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    if isinstance(found, tuple):
        assert processes(TrainConfig(**options)) == found
        return
    with pytest.raises(RecipeError, match=found):
        processes(TrainConfig(**options))


def test_without_torchrun_processes_are_the_recipe_s(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")  # Lightning's own launcher sets such too
    assert processes(TrainConfig(devices=3, num_nodes=5)) == (3, 5)


class MeetFaults(Callback):
    """This process meets unreadable files in epoch 1."""

    def __init__(self, names):
        self.faults = [Fault(name, "cut short") for name in names]

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            trainer.datamodule.report("train", self.faults)


def meeting_faults(arguments, rank, port, limit, names):
    ImageData.max_corrupt = limit
    with watched_by(MeetFaults(names)):
        as_torchrun_does(arguments, rank, port)


@pytest.mark.long
@pytest.mark.slow
def test_unreadable_files_of_all_processes_are_counted(two_recipe, tmp_path):
    """Under torchrun, without --train.devices."""
    run, port = tmp_path / "run", free_port()
    arguments = ["train", str(two_recipe), "--train.devices=auto", "--train.epochs=3", "--out", str(run)]
    met = (["b.jpg"], ["a.jpg", "b.jpg"])
    both = [forkserver().Process(target=meeting_faults, args=(arguments, r, port, 2, met[r])) for r in (0, 1)]
    for process in both:
        process.start()
    for process in both:
        process.join()
        assert process.exitcode == 0
    rows = records.read_json(run / "metrics.json")
    assert [row["unreadable_files"] for row in rows] == [0, 2, 2]
    assert {fault["file"] for fault in read_result(run).faults} == {"a.jpg", "b.jpg"}
    kept = read_checkpoint(checkpoint_path(run, "last"))[FashionMNIST.__qualname__]
    assert kept["unreadable"]["train"].keys() == {"a.jpg", "b.jpg"}


@pytest.mark.long
def test_unreadable_files_of_all_processes_beyond_the_limit_end_all(two_recipe, tmp_path):
    """Each process meets one file, which alone it may."""
    run, port = tmp_path / "run", free_port()
    arguments = ["train", str(two_recipe), "--train.devices=auto", "--out", str(run)]
    both = [
        forkserver().Process(target=meeting_faults, args=(arguments, rank, port, 1, [f"{rank}.jpg"])) for rank in (0, 1)
    ]
    for process in both:
        process.start()
    for process in both:
        process.join()
        assert process.exitcode == 2
    assert read_checkpoint(checkpoint_path(run, "last"))["epoch"] == 1


def test_slurm_s_signals_are_ours(monkeypatch):
    assert make_plugins() == []
    for name, value in {"SLURM_NTASKS": "2", "SLURM_JOB_NAME": "train", "SLURM_NTASKS_PER_NODE": "2"}.items():
        monkeypatch.setenv(name, value)
    (plugin,) = make_plugins()
    assert plugin.auto_requeue is False


@pytest.mark.long
def test_compiling_changes_no_names(make_recipe, tmp_path, monkeypatch):
    original, backends = torch.nn.Module.compile, []

    def compile_eagerly(self, *_, **__):
        backends.append("eager")
        original(self, backend="eager")

    monkeypatch.setattr(torch.nn.Module, "compile", compile_eagerly)
    train_run(make_recipe("--train.compile=true", "--train.epochs=1"), tmp_path / "compiled", progress="none")
    train_run(make_recipe("--train.epochs=1"), tmp_path / "plain", progress="none")
    assert backends == ["eager"]
    contents = [read_checkpoint(checkpoint_path(tmp_path / run, "last")) for run in ("compiled", "plain")]
    assert contents[0]["state_dict"].keys() == contents[1]["state_dict"].keys()
    for name, tensor in contents[0]["state_dict"].items():
        torch.testing.assert_close(tensor, contents[1]["state_dict"][name], rtol=1e-3, atol=1e-4)
