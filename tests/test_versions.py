"""What is too old is said in one sentence, at its first use; nothing in a checkpoint is run by an old torch."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import nullcontext
from importlib import metadata
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch
from torch import nn

from lmgraft.checkpoint import torch_file
from lmgraft.errors import CheckpointError, RunError, VersionError
from lmgraft.training.checkpoints import read_checkpoint
from lmgraft.versions import check_versions, numbers, optional
from tiny import needs_torch

DECLARED = [
    "torch>=2.4",
    "numpy>=1.26",
    'timm>=0.9.12; extra == "image"',
    'jsonargparse[signatures]>=4.50; extra == "image"',
    'timm>=1.0.23; extra == "transformers"',
    'lmgraft[image]; extra == "medical"',
    'av>=16; extra == "video"',
    'lmgraft[transformers]; python_version >= "3.11" and extra == "dev"',
]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Versions by package, instead of those that are; what is not named is not installed."""
    versions: dict[str, str] = {}

    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(metadata, "requires", lambda _: DECLARED)
    monkeypatch.setattr(metadata, "version", version)
    return versions


@pytest.mark.parametrize(
    ("package", "version", "extra", "asker", "oldest"),
    [
        ("torch", "2.3.1+cpu", "", "lmgraft", "2.4"),
        ("timm", "0.9.11", "image", "lmgraft[image]", "0.9.12"),
        ("timm", "1.0.22", "transformers", "lmgraft[transformers]", "1.0.23"),
        ("jsonargparse", "4.9.0", "image", "lmgraft[image]", "4.50"),
    ],
)
def test_what_is_too_old(
    installed: dict[str, str], package: str, version: str, extra: str, asker: str, oldest: str
) -> None:
    installed[package] = version
    with pytest.raises(VersionError) as caught:
        check_versions(extra)
    assert caught.value.message == f"{asker} needs {package} {oldest} or newer, and {package} {version} is installed"
    assert caught.value.remedy == f'pip install --upgrade "{package}>={oldest}"'
    assert isinstance(caught.value, ImportError)
    installed[package] = oldest
    check_versions(extra)


def test_what_is_not_asked_is_not_checked(installed: dict[str, str]) -> None:
    installed |= {"torch": "2.10.0", "numpy": "1.26.0", "timm": "0.6.13"}
    check_versions()
    check_versions("medical")
    check_versions("image", "torchvision")
    with pytest.raises(VersionError, match="timm"):
        check_versions("image", "torchvision", "timm")


def test_numbers() -> None:
    assert numbers("2.4.0+cu121") == (2, 4, 0)
    assert numbers("2.10.0.dev20260101") == (2, 10, 0)
    assert numbers("1.0.9") < numbers("1.0.23") < numbers("2.4")


@pytest.mark.parametrize(
    ("module", "extra", "remedy"),
    [
        ("scipy.special", "image", 'pip install "lmgraft[image]"'),
        ("av", "video", 'pip install "lmgraft[video]"'),
        ("datasets", "", "pip install datasets"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, module: str, extra: str, remedy: str
) -> None:
    package = module.partition(".")[0]
    for name in {module, package}:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(VersionError) as caught:
        optional(module, extra, "reading this")
    assert (caught.value.message, caught.value.remedy) == (f"reading this needs the package {package!r}", remedy)


def test_what_lmgraft_itself_lacks_is_no_missing_extra() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"lmgraft\.absent"):
        optional("lmgraft.absent", "image", "reading this")


def test_an_old_optional_package_is_refused_before_it_is_imported(installed: dict[str, str]) -> None:
    installed["av"] = "12.0"
    with pytest.raises(VersionError, match="needs av 16 or newer"):
        optional("av.nothing", "video", "reading this")


@pytest.mark.parametrize(
    ("package", "code", "word"),
    [
        ("torch-1.13.1", "import lmgraft", "lmgraft needs torch"),
        ("timm-0.6.13", "import lmgraft.backbones.timm_vit", "lmgraft[image] needs timm"),
        ("rich-9.0", "from lmgraft.cli.main import main; main(['inspect'])", "lmgraft[image] needs rich"),
        (
            "transformers-4.57.1",
            "from lmgraft.block.load import borrow; borrow('transformers', 'load')",
            "lmgraft[transformers] needs transformers",
        ),
        pytest.param(
            "onnx-1.10.0",
            "from lmgraft.graft.export.onnx_file import require; require(False)",
            "lmgraft[export] needs onnx",
            marks=needs_torch("2.8"),  # of which an older one is told first
        ),
    ],
)
def test_the_first_use_says_it(tmp_path: Path, package: str, code: str, word: str) -> None:
    """An older release that lies first on the path, as far as its metadata."""
    name, _, version = package.partition("-")
    (tmp_path / f"{package}.dist-info").mkdir()
    (tmp_path / f"{package}.dist-info" / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert word in done.stderr
    assert f"and {name} {version} is installed" in done.stderr


def _scripted(path: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(str(path))


def _tar_with_an_archive_behind(path: Path) -> None:
    """An archive to Python's zipfile, and none to torch."""
    path.write_bytes(b"\0" * 512)
    with ZipFile(path, "a") as archive:
        archive.writestr("data.pkl", b"")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("write", [_scripted, _tar_with_an_archive_behind])
@pytest.mark.parametrize("first_safe", [torch_file._FIRST_SAFE, (99,)])
def test_what_an_old_torch_would_run_is_refused(tmp_path: Path, monkeypatch, write, first_safe) -> None:
    monkeypatch.setattr(torch_file, "_FIRST_SAFE", first_safe)
    write(tmp_path / "last.ckpt")
    with pytest.raises(RunError):
        read_checkpoint(tmp_path / "last.ckpt")


@pytest.mark.parametrize(
    ("version", "safe"), [("2.5.1", False), ("2.9.1+cu128", False), ("2.10.0", True), ("2.14.1+cpu", True)]
)
def test_which_torch_opens_pickles_of_others(monkeypatch: pytest.MonkeyPatch, version: str, safe: bool) -> None:
    """CVE-2026-24747: a crafted file corrupts memory in all before 2.10, under weights_only too."""
    monkeypatch.setattr(torch, "__version__", version)
    with nullcontext() if safe else pytest.raises(CheckpointError, match=rf"2\.10, and torch {version[:5]}"):
        torch_file.refuse_old_torch(Path("weights.bin"))


def test_an_old_torch_reads_what_a_run_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_file, "_FIRST_SAFE", (99,))
    torch.save({"state_dict": {"w": torch.arange(3.0)}, "epoch": 2}, tmp_path / "last.ckpt")
    assert read_checkpoint(tmp_path / "last.ckpt")["state_dict"]["w"].tolist() == [0, 1, 2]
