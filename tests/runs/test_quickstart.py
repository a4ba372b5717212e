"""The quickstart at toy size, end to end: page, table, a kill in the middle, and going on."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest
from lasting import quick_processes
from pages import Page

from lmgraft.cli.main import main
from lmgraft.errors import RunError
from lmgraft.recipes import read_result
from lmgraft.studies.engine.worker import WorkerDiedError, in_own_process
from lmgraft.words.paper import SMALL_LLMS

ARMS = ("plain", "llm", "random_frozen")


@pytest.fixture
def toy(make_recipe, tmp_path):
    """Arguments of a quickstart over the stand-in data and the tiny LLM."""
    file = tmp_path / "toy.yaml"
    file.write_text(make_recipe().yaml)
    return ["quickstart", "--out", str(tmp_path / "out"), "--recipe", str(file)]


@pytest.mark.long
def test_killed_it_goes_on(toy, tmp_path, capsys):
    out = tmp_path / "out"
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "lmgraft", *toy],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for line in process.stderr:
        if "[llm, seed 3] epoch 1" in line:
            break
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()
    assert (out / "plain" / "result.json").exists()
    assert not (out / "llm" / "result.json").exists()
    assert (out / "llm" / "checkpoints" / "last.ckpt").exists()
    plain = (out / "plain" / "result.json").stat().st_mtime_ns

    assert main(toy) == 0
    printed = capsys.readouterr()
    assert "arms: 3 in all, 1 done before, 2 to do" in printed.err
    assert (out / "plain" / "result.json").stat().st_mtime_ns == plain
    # It went on with the killed arm: its first launch's log is still there beside the second's.
    assert len(list((out / "llm" / "logs" / "csv").glob("version_*"))) == 2
    assert set(json.loads((out / "quickstart.json").read_text())) == set(ARMS)


@pytest.mark.slow
def test_quickstart_end_to_end(toy, tmp_path, capsys, monkeypatch):
    quick_processes(monkeypatch)
    out = tmp_path / "out"
    assert main(toy) == 0
    assert "arms: 3 in all, 0 done before, 3 to do" in capsys.readouterr().err
    results = json.loads((out / "quickstart.json").read_text())
    assert set(results) == set(ARMS)
    assert results["plain"]["frozen_params"] == 0
    assert results["llm"]["frozen_params"] == results["random_frozen"]["frozen_params"] > 0
    assert results["llm"]["block_digest"] != results["random_frozen"]["block_digest"]
    assert not [p for p in out.rglob("*") if p.suffix == ".tmp"]

    html = (out / "report.html").read_text()
    page = Page(html)
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert "script" not in page.tags
    assert page.tags.count("img") == 12 + 4 * (1 + 3 * 2)
    assert page.tags.count("svg") == 2
    for words in (SMALL_LLMS, *ARMS, "magnitude", "frequency"):
        assert words in page.text
    for arm in ARMS:
        shown = re.search(rf"\| {arm} \| ([\d.]+) % \| ([\d.]+) to ([\d.]+) \|", (out / "table.md").read_text())
        accuracy, low, high = map(float, shown.groups())
        assert accuracy == pytest.approx(100 * read_result(out / arm).metrics["accuracy"], abs=0.006)
        assert low < accuracy < high or accuracy in (0, 100)
        assert f"{accuracy:.2f} %" in html

    assert main([*toy, "--train.epochs", "7"]) == 2
    assert "another recipe" in capsys.readouterr().err


def test_a_mistake_comes_before_any_training(toy, tmp_path, capsys):
    assert main([*toy, "--layer", "77"]) == 2
    assert "layer 77 does not exist" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def fail(message):
    raise RunError(message, "a remedy")


def die():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.long
@pytest.mark.slow
def test_errors_and_deaths_of_a_worker_come_home():
    with pytest.raises(RunError, match="what happened") as caught:
        in_own_process(fail, "what happened")
    assert caught.value.remedy == "a remedy"
    with pytest.raises(WorkerDiedError):
        in_own_process(die)
