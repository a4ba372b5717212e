"""The examples run as they are written: they train, save, and load the same model again."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

import lmgraft

EXAMPLES = Path(__file__).parent.parent / "examples"
SCRIPTS = sorted(path.name for path in EXAMPLES.glob("*.py") if path.name != "toy.py")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # what other libraries' trainers warn about is theirs
@pytest.mark.parametrize("name", SCRIPTS)
def test_runs_and_learns(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(sys, "argv", [name, "--out", str(tmp_path / "out")])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    (accuracy,) = re.findall(r"^accuracy (\d\.\d+)$", capsys.readouterr().out, re.MULTILINE)
    assert float(accuracy) > 0.6  # by chance it is 0.25
    assert (tmp_path / "out" / "lmgraft.json").exists()


def test_a_real_source_takes_the_place_of_the_toy(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    toy = runpy.run_path(str(EXAMPLES / "toy.py"))
    assert lmgraft.inspect_llm(toy["write_llm"](tmp_path / "llm")).config.dim == 32
    monkeypatch.setattr(sys, "argv", ["x", "--llm", str(llama_folder), "--out", str(tmp_path / "out")])
    assert toy["options"](None).llm == str(llama_folder)
    assert not (tmp_path / "out").exists()


def test_the_page_names_every_example() -> None:
    named = set(re.findall(r"\]\((\w+\.py)\)", (EXAMPLES / "README.md").read_text()))
    assert named == set(SCRIPTS)
