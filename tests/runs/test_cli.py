"""The command line: what it prints, what it writes, and one-screen errors with exit status 2."""

import json
import signal
import subprocess
import sys

import pytest
import yaml

from lmgraft.cli.command import parse
from lmgraft.cli.main import COMMANDS, find_command, main
from lmgraft.cli.study import options_of_both
from lmgraft.recipes import list_recipes
from lmgraft.studies.study.config import list_studies
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


@pytest.mark.slow
def test_a_run_is_resumed_with_what_its_folder_recorded(capsys, recipe_file, tmp_path):
    run = tmp_path / "run"
    options = ["--train.epochs", "1", "--optim.lr", "0.01", "--data.eval_batch_size", "30"]
    assert call(capsys, "train", recipe_file, "--out", run, *options)[0] == 0
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").unlink()
    status, _, err = call(capsys, "train", "--resume", "--out", run)
    assert (status, f"Training what {run} began" in err) == (0, True)
    again = json.loads((run / "result.json").read_text())
    assert (again["metrics"], again["epochs"]) == (result["metrics"], 1)
    assert yaml.safe_load((run / "config.yaml").read_text())["optim"]["lr"] == 0.01
    status, _, err = call(capsys, "train", "--resume", "--out", run, "--optim.lr", "0.02")
    assert (status, "optim.lr is 0.02, was 0.01" in err) == (2, True)


def test_recipes_and_studies_are_listed_and_shown(capsys):
    status, out, _ = call(capsys, "recipes")
    rows = dict(line.split(maxsplit=1) for line in out.splitlines() if line.startswith("  "))
    assert (status, set(rows)) == (0, {*list_recipes(), *list_studies()})
    assert all(len(what) > 10 for what in rows.values())
    status, out, _ = call(capsys, "recipes", "image/fashion_vit", "--layer", "0,1", "--train.epochs", "7")
    assert (status, yaml.safe_load(out)["train"]["epochs"], yaml.safe_load(out)["graft"]["layer"]) == (0, 7, [0, 1])
    status, out, _ = call(capsys, "recipes", "image/fashion_controls_debug")
    assert (status, yaml.safe_load(out)["seeds"]) == (0, [0, 1])


@pytest.mark.parametrize("given", [["0", "2"], ["0,2"], ["[0, 2]"], ["0,", "2"]])
def test_lists_are_written_alike_everywhere(given):
    scan = parse(find_command("scan"), "lmgraft scan", ["image/fashion_vit", "--layers", *given, "--dry-run"])
    assert (scan.layers, scan.recipe, scan.dry_run) == (["0", "2"], "image/fashion_vit", True)
    assert parse(find_command("bench"), "lmgraft bench", ["--batch", *given]).batch == [0, 2]
    assert options_of_both(["--study.seeds", *given]) == ['--seeds=["0", "2"]'] or given[0].startswith("[")
    equals = parse(find_command("scan"), "lmgraft scan", ["image/fashion_vit", f"--layers={','.join(given)}"])
    assert equals.layers == ["0", "2"] or given[0].startswith("[")


def test_the_two_namespaces_of_a_study(capsys):
    words = ["--study.arms", "plain", "llm", "--study.metric=nll", "--recipe.train.epochs", "2", "--recipe.llm=x"]
    new = options_of_both(words)
    assert new == ['--arms=["plain", "llm"]', "--metric=nll", "--train.epochs", "2", "--llm", "x"]
    assert not capsys.readouterr().err
    old = options_of_both([word.replace("--study.", "--").replace("--recipe.", "--") for word in words])
    assert old == new
    note = capsys.readouterr().err
    assert all(text in note for text in ("--arms is --study.arms", "--train.epochs is --recipe.train.epochs"))
    for wrong in (["--study.seds", "3"], ["--recipe.seed", "1"]):
        assert main(["study", "image/fashion_controls", "--dry-run", "--no-timing", *wrong]) == 2


def test_a_shell_completes_commands_and_options(capsys, tmp_path):
    pytest.importorskip("shtab")
    assert call(capsys, "completion", "zsh")[0] == 0
    status, script, _ = call(capsys, "completion", "bash")
    assert status == 0
    (tmp_path / "lmgraft.bash").write_text(script)

    def completed(*words):
        typed = " ".join(f"'{word}'" for word in words)
        ask = f"source {tmp_path}/lmgraft.bash; COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; "
        ask += 'f=$(complete -p lmgraft | sed "s/.*-F \\([^ ]*\\) .*/\\1/"); $f; echo "${COMPREPLY[@]}"'
        return subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True).stdout.split()

    assert completed("lmgraft", "tr") == ["train"]
    assert completed("lmgraft", "train", "--train.ep") == ["--train.epochs"]
    assert completed("lmgraft", "study", "--study.see") == ["--study.seeds"]
    assert completed("lmgraft", "bench", "--grid", "q") == ["quick"]


def test_the_help_of_a_command_imports_nothing_heavy():
    heavy = ("timm", "torchvision", "transformers", "matplotlib", "pytorch_lightning", "ray", "scipy", "torch._dynamo")
    code = "import sys; from lmgraft.cli.main import COMMANDS, main\n"
    code += "for name in COMMANDS: assert main([name, '--help']) == 0\n"
    code += f"assert not set({heavy!r}) & set(sys.modules), sorted(set({heavy!r}) & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(capsys, command):
    assert main([command, "--help"]) == 0
    printed = capsys.readouterr().out
    assert f"lmgraft {command}" in printed
    assert "example" in printed


@pytest.mark.long
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
    def stopped(self):
        raise InterruptedRunError("stopped", "the same command goes on", signum=signum)

    monkeypatch.setattr(find_command(command), "run", stopped)
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
    (["train", "--resume"], "no recipe was named"),
    (["train", "RECIPE", "--auto-lr-retry", "few"], "auto_lr_retry='few' does not fit"),
    (["train", "--resume", "--out", "nowhere"], "no run folder"),
    (["inspect"], "usage"),
    (["inspect", "a", "b"], "unrecognized arguments: b"),
    (["inspect", "a", "--layr", "1"], "'--layer'"),
    (["inspect", "a", "--layer", "last"], "layer='last' does not fit; it takes int"),
    (["cache", "mv"], "mv"),
    (["recipes", "image/fasion_vit"], "image/fashion_vit"),
    (["train", "image/fasion"], "image/fashion_vit"),
    (["train", "RECIPE", "--train.epoch", "3"], "epochs"),
    (["train", "RECIPE", "--layer", "40"], "layer 40 does not exist"),
    (["train", "RECIPE", "--llm", "nowhere.gguf"], "nowhere.gguf"),
    (["train", "RECIPE", "--llm", "some/model"], "Hub"),
    (["train", "RECIPE", "--data.root", "nowhere"], "no such folder"),
    (["train", "RECIPE", "--backbone.name", "resnet10t", "--backbone.kwargs", "{}"], "at='dotted.path'|refused"),
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
