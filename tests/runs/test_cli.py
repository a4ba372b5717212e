"""The command line: what it prints, what it writes, and one-screen errors with exit status 2."""

import json
import signal
import subprocess
import sys

import pytest
import yaml

from lmgraft.cli.main import COMMANDS, main
from lmgraft.training.stopping import InterruptedRunError


@pytest.fixture
def recipe_file(make_recipe, tmp_path):
    file = tmp_path / "tiny.yaml"
    file.write_text(make_recipe().yaml)
    return file


def call(capsys, *arguments):
    status = main([str(a) for a in arguments])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_train_evaluate_and_resume(capsys, recipe_file, tmp_path):
    run = tmp_path / "run"
    status, out, _ = call(capsys, "train", recipe_file, "--out", run, "--train.epochs", "1")
    assert status == 0
    assert "test accuracy" in out
    assert yaml.safe_load((run / "config.yaml").read_text())["train"]["epochs"] == 1
    status, out, err = call(capsys, "train", recipe_file, "--out", run, "--train.epochs", "1")
    assert status == 2
    assert "--resume" in err
    status, again, _ = call(capsys, "train", recipe_file, f"--out={run}", "--resume", "--train.epochs", "1")
    assert status == 0
    assert again.split(",")[0] == out.split(",")[0] or "test accuracy" in again
    status, out, _ = call(capsys, "evaluate", run, "--json")
    result = json.loads(out)
    assert result["items"] == 60
    assert json.loads((run / "evaluation.json").read_text()) == result
    status, out, _ = call(capsys, "evaluate", run)
    assert status == 0
    assert "95 % interval" in out
    assert "ankle boot" in out
    status, out, _ = call(capsys, "evaluate", run, "--approximate")
    assert status == 0
    assert "approximate graft: int8" in out
    status, out, _ = call(capsys, "evaluate", run, "--json", "--approximate", "16bit")
    record = json.loads(out)
    assert record["approximation"]["mode"] == "16bit"
    assert 0 < record["approximation"]["graft_error"] < 0.05
    assert abs(record["metrics"]["accuracy"] - result["metrics"]["accuracy"]) < 0.1
    assert json.loads((run / "evaluation.json").read_text()) == record


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(capsys, command):
    try:
        status = main([command, "--help"])
    except SystemExit as ended:  # argparse's own end
        status = ended.code
    assert status == 0
    printed = capsys.readouterr().out
    assert f"lmgraft {command}" in printed
    assert "example" in printed


def test_help_in_a_process_of_its_own():
    done = subprocess.run(
        [sys.executable, "-m", "lmgraft", "train", "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert "lmgraft train" in done.stdout
    assert not done.stderr


def test_main_help_version_and_unknown_command(capsys):
    assert call(capsys, "--help")[0] == 0
    assert call(capsys)[0] == 2
    assert "lmgraft 0." in call(capsys, "--version")[1]
    status, _, err = call(capsys, "trian")
    assert status == 2
    assert "'train'" in err


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("command", ["study", "scan"])
def test_a_training_that_was_asked_to_stop_ends_with_the_signals_status(command, signum, status, capsys, monkeypatch):
    def stopped(arguments):
        raise InterruptedRunError("stopped", "the same command goes on", signum=signum)

    monkeypatch.setattr(f"lmgraft.cli.{command}.run", stopped)
    assert main([command, "image/fashion_vit"]) == status
    assert capsys.readouterr().err == f"lmgraft {command}: stopped\n  What to do: the same command goes on\n"


def test_inspect(capsys, llama_folder):
    status, out, _ = call(capsys, "inspect", llama_folder, "--json")
    report = json.loads(out)
    assert status == 0
    assert report["family"] == "llama"
    assert report["num_layers"] == 3
    assert report["config"]["num_kv_heads"] < report["config"]["num_heads"]
    status, out, _ = call(capsys, "inspect", llama_folder, "--layer", "0")
    assert "family  llama, 3 layers" in out


BAD = [
    (["train"], "no recipe|usage"),
    (["train", "image/fasion"], "image/fashion_vit"),
    (["train", "RECIPE", "--train.epoch", "3"], "epochs"),
    (["train", "RECIPE", "--layer", "40"], "layer 40 does not exist"),
    (["train", "RECIPE", "--llm", "nowhere.gguf"], "nowhere.gguf"),
    (["train", "RECIPE", "--llm", "some/model"], "Hub"),
    (["train", "RECIPE", "--data.root", "nowhere"], "no such folder"),
    (["train", "RECIPE", "--backbone.name", "test_resnet", "--backbone.kwargs", "{}"], "at='dotted.path'|refused"),
    (["evaluate", "nowhere"], "no run folder"),
    (["inspect", "nowhere"], "not there"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(a) for a, _ in BAD])
def test_mistakes_are_one_screen_and_leave_nothing(capsys, recipe_file, tmp_path, monkeypatch, arguments, message):
    import re

    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    status, out, err = call(capsys, *[recipe_file if a == "RECIPE" else a for a in arguments])
    assert status == 2
    assert re.search(message, out + err)
    assert len(err.splitlines()) < 20
    assert "Traceback" not in err
    assert sorted(tmp_path.rglob("*")) == before
