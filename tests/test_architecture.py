"""The house stands: layering contracts that can fail, light imports, no file that grew too large.

That each module says what it is for is asked by ruff (D100, D104).
"""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tiny import long_but

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "src" / "lmgraft").rglob("*.py"))
HEAVY = ("timm", "torchvision", "transformers", "matplotlib", "lightning", "pytorch_lightning", "ray", "torch._dynamo")


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    environment = os.environ | {"PYTHONPATH": str(folder / "src")}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def house(tmp_path):
    shutil.copytree(ROOT / "src" / "lmgraft", tmp_path / "src" / "lmgraft")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


FAULTS = {
    "data/images.py": "import lmgraft.cli.main",
    "block/parts.py": "import lmgraft.graft.insert",
    "backbones/timm_vit.py": "import lmgraft.graft.layer",
    "graft/layer.py": "import timm",
    "checkpoint/names.py": "import transformers",
    "block/families/other.py": "import lmgraft.block.families.llama",
}


@pytest.mark.slow
def test_each_planted_fault_is_found(house):
    for file, line in FAULTS.items():
        with open(house / "src" / "lmgraft" / file, "a") as module:
            module.write(f"\n{line}\n")
    done = lint_imports(house)
    assert done.returncode != 0
    for file, line in FAULTS.items():
        importer = "lmgraft." + file.removesuffix(".py").replace("/", ".")
        assert f"{importer} -> {line.removeprefix('import ')} (" in done.stdout, done.stdout


@pytest.mark.slow
def test_a_room_without_a_place_is_found(house):
    (house / "src" / "lmgraft" / "newroom").mkdir()
    (house / "src" / "lmgraft" / "newroom" / "__init__.py").touch()
    done = lint_imports(house)
    assert done.returncode != 0
    assert "newroom" in done.stdout + done.stderr


@pytest.mark.slow
def test_the_contracts_hold(house):
    done = lint_imports(house)
    assert done.returncode == 0, done.stdout


def loaded_by(code: str) -> set[str]:
    script = f"{code}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_lmgraft_and_help_need_no_torch():
    code = "import lmgraft; from lmgraft.cli.main import main; main(['--help']); main(['--version'])"
    assert not loaded_by(code).intersection((*HEAVY, "torch", "numpy", "jsonargparse"))


def test_grafting_needs_torch_and_little_else():
    """What is not needed to begin: readers of a kind of file come with the first such file."""
    late = (*HEAVY, "gguf", "yaml", "huggingface_hub", "PIL", "scipy", "jsonargparse", "rich")
    assert not loaded_by("from lmgraft import graft, load_block, load_pretrained").intersection(late)


@pytest.mark.parametrize(
    "before",
    long_but(["", "import lmgraft.graft.layer", "from lmgraft import load_pretrained"], "import lmgraft.graft.layer"),
)
def test_public_names_are_what_they_are_called_whatever_was_imported_before(before):
    code = f"{before}\nimport lmgraft\nfrom lmgraft import graft\nassert callable(graft) and graft is lmgraft.graft"
    code += "\nassert graft.__module__ == 'lmgraft.graft.insert'\nassert set(lmgraft.__all__) <= set(dir(lmgraft))"
    assert "torch" in loaded_by(code)


def test_the_check_of_imports_can_fail():
    assert "matplotlib" in loaded_by("import matplotlib")


def taken_from_top_level(text: str) -> list[str]:
    """Names that a module imports from `lmgraft` itself."""
    return [
        alias.name
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ImportFrom) and node.module == "lmgraft"
        for alias in node.names
    ]


def test_rooms_do_not_import_through_the_front_door():
    modules = {path.stem for path in (ROOT / "src" / "lmgraft").iterdir()}
    taken = {path: taken_from_top_level(path.read_text()) for path in SOURCES}
    assert not [(path, name) for path, names in taken.items() for name in names if name not in modules]


def test_the_front_door_check_can_fail():
    assert taken_from_top_level("from lmgraft import graft, records") == ["graft", "records"]


def test_files_stay_small():
    sizes = {str(path.relative_to(ROOT)): path.stat().st_size for path in SOURCES}
    assert not {name: size for name, size in sizes.items() if size > 20_000}


def test_public_names_are_documented():
    import lmgraft

    text = (ROOT / "README.md").read_text() + "".join(p.read_text() for p in (ROOT / "docs").glob("*.md"))
    assert not [name for name in lmgraft.__all__ if f"`{name}" not in text and f".{name}(" not in text]
