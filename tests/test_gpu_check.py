"""`benchmarks/gpu_check.py` in tiny sizes on the CPU: the same code, and checks that can fail."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

ROOT = Path(__file__).parent.parent


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu_check

    return gpu_check


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # compilers warn about themselves
def test_all_of_it_on_the_cpu(script: ModuleType, tmp_path: Path) -> None:
    assert script.main(["--device", "cpu", "--tiny", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "gpu_check.json").read_text())
    assert {check["status"] for check in found["checks"]} == {"passed"}
    names = [check["name"] for check in found["checks"]]
    assert len([name for name in names if name.startswith("parity")]) == 15
    assert {"torch.compile, one graph", "resume, bit for bit", "DDP of one process"} <= set(names)
    (train, evaluate) = [check["figures"] for check in found["checks"] if check["name"].startswith("time")]
    for figures in (train, evaluate):
        assert figures["dense over plain, time"]["count"] >= 3
        assert figures["auto over plain, time"]["median"] > 0
    for page in ("gpu_check.md", "gpu_check.html"):
        text = (tmp_path / page).read_text()
        assert all(name in text for name in names)


def test_a_wrong_form_fails(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    grafted = script.grafted

    def wrong(cell: object, form: str) -> nn.Module:
        model: nn.Module = grafted(cell, form)
        if form == "folded":
            with torch.no_grad():
                model.graft.mapper_out.weight.mul_(1.01)
        return model

    monkeypatch.setattr(script, "grafted", wrong)
    monkeypatch.setattr(script, "FORMS", ("dense", "folded"))
    monkeypatch.setattr(script, "DTYPES", {"float32": torch.float32})
    assert [check.status for check in script.parity(script.sizes("cpu", True))] == ["passed", "failed"]


def test_a_part_that_ends_early_is_recorded(script: ModuleType, tmp_path: Path) -> None:
    def out_of_memory():
        yield script.Check("first", "passed")
        raise torch.OutOfMemoryError("no more")

    def broken():
        raise RuntimeError("no kernel\nand more")
        yield

    assert [check.status for check in script.guarded("part", out_of_memory())] == ["passed", "skipped"]
    (check,) = script.guarded("part", broken())
    assert (check.status, check.message) == ("failed", "RuntimeError: no kernel")
    late = list(script.timing(script.sizes("cpu", True), tmp_path, deadline=0.0))
    assert {check.status for check in late} == {"skipped"}


def test_without_a_gpu_the_real_sizes_are_refused(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        script.main(["--out", "x"])
    assert "gpu_check" in sys.modules
