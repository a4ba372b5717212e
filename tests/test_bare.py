"""The core works without extras, and the wheel holds all of the package and nothing else."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from shutil import copy, copytree, ignore_patterns

import pytest

import bare

ROOT = Path(__file__).parent.parent


def test_the_core_needs_none_of_the_extras() -> None:
    done = subprocess.run([sys.executable, bare.__file__], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) > 60


def test_what_is_hidden() -> None:
    hidden = bare.hidden()
    assert hidden >= {"timm", "torchvision", "pytorch_lightning", "transformers", "matplotlib", "scipy", "pytest"}
    assert not hidden & {"lmgraft", "torch", "numpy", "safetensors", "gguf", "huggingface_hub", "platformdirs"}


@pytest.mark.slow
def test_the_wheel_is_the_package(tmp_path: Path) -> None:
    source = tmp_path / "source"
    copytree(ROOT / "src", source / "src", ignore=ignore_patterns("*.egg-info", "__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        copy(ROOT / name, source)
    build = "import sys, setuptools.build_meta as b; b.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = (path for path in (source / "src").rglob("*") if path.is_file())
    assert held == {str(path.relative_to(source / "src")) for path in files if ".egg-info" not in str(path)}
