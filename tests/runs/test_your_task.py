"""docs/your_task.md is complete: its files, written out as they stand there, run."""

import re
import sys
from pathlib import Path

import pytest

from lmgraft.cli.main import main
from lmgraft.recipes import read_result

PAGE = (Path(__file__).parents[2] / "docs" / "your_task.md").read_text()


@pytest.fixture
def example(tmp_path, monkeypatch):
    """A folder with the page's files, as the current one."""
    for name, _, text in re.findall(r"`(\w+\.(?:py|yaml))`[^`]*?:\n\n```(python|yaml)\n(.*?)```", PAGE, re.DOTALL):
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("hertz", None)


def commands():
    blocks = "".join(re.findall(r"```\w*\n(.*?)```", PAGE, re.DOTALL))
    return [line.split()[1:] for line in re.findall(r"^lmgraft .*$", blocks, re.MULTILINE)]


@pytest.mark.long
@pytest.mark.slow
def test_every_command_of_the_page_runs(example, llama_folder, in_this_process):
    assert {path.name for path in example.iterdir()} == {"hertz.py", "hertz.yaml", "hertz_study.yaml"}
    ran = []
    for command, *arguments in commands():
        if command in ("train", "study", "scan"):
            arguments += ["--train.epochs", "2"] if command != "scan" else ["--train-epochs", "0", "--draws", "2"]
            arguments += {"train": ["--llm"], "study": ["--llm"], "scan": ["--llms"]}[command] + [str(llama_folder)]
            arguments += ["--seeds", "2"] if command == "study" else []
            few = ["--cka-images", "8", "--train-images", "40", "--val-images", "40"]
            arguments += few if command == "scan" else []
        assert main([command, *arguments]) == 0, command
        ran.append(command)
    assert ran == ["check-data", "train", "evaluate", "study", "scan"]
    result = read_result(example / "runs" / "hertz")
    assert result.metrics.keys() == {"error"}
    page = (example / "runs" / "hertz_study" / "report.html").read_text()
    assert "absolute error" in page
