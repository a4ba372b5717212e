"""Blocks from a Hub on 127.0.0.1: only the wanted bytes, once, through whatever goes wrong."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import lmgraft
from hub_server import COMMIT, CONVERTED, HubServer, serving
from lmgraft.checkpoint import cache, cache_admin, hub_http, open_checkpoint
from lmgraft.checkpoint.hub import parse_hub_source
from lmgraft.checkpoint.hub_file import RemoteFile
from lmgraft.checkpoint.hub_http import HubFile
from lmgraft.cli.main import main
from lmgraft.errors import CheckpointError, SourceError
from tiny import TINY_LLAMA, make_vit, save_llama, tiny_llama

REPO = "tiny-org/tiny-llama"
WIDE = TINY_LLAMA | {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "vocab_size": 3000}


@pytest.fixture(scope="module")
def wide_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaMA of four layers of 2.3 MB in shards, so that what is not read shows."""
    folder = save_llama(tmp_path_factory.mktemp("wide"), WIDE, seed=4, max_shard_size="2MB")
    assert len(list(folder.glob("*.safetensors"))) > 4
    return folder


@pytest.fixture(scope="module")
def wide_block(wide_folder: Path) -> lmgraft.FrozenBlock:
    return lmgraft.load_block(str(wide_folder), 1)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were asked for; none is made."""
    asked: list[float] = []
    monkeypatch.setattr(hub_http, "pause", asked.append)
    return asked


@pytest.fixture
def hub(wide_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> Iterator[HubServer]:
    """A server with the wide LLaMA, and empty caches of this test's own."""
    with serving() as server:
        server.add(REPO, wide_folder, license="apache-2.0")
        for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.lower(), raising=False)
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("LMGRAFT_CACHE", str(tmp_path / "cache"))
        yield server


def hf_snapshot(tmp_path: Path, folder: Path, leave_out: str = "") -> Path:
    """Put `folder` where huggingface_hub keeps downloads."""
    repo = tmp_path / "hf" / "hub" / f"models--{REPO.replace('/', '--')}"
    snapshot = repo / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for file in folder.iterdir():
        if file.name != leave_out:
            shutil.copy(file, snapshot)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    return snapshot


def assert_cache_is_whole() -> None:
    assert cache_admin.verify() == []
    assert list((cache.cache_dir() / "tmp").iterdir()) == []


class TestLoading:
    def test_one_layer_and_no_more_bytes(self, hub: HubServer, wide_block: lmgraft.FrozenBlock) -> None:
        block = lmgraft.load_block(REPO, 1)
        assert block.provenance.digest == wide_block.provenance.digest
        assert (block.provenance.source, block.provenance.revision) == (REPO, COMMIT)
        assert block.provenance.licence == "apache-2.0"
        sent, layer = sum(hub.sent.values()), 4 * block.config.num_params()
        assert layer <= sent <= layer + (1 << 20)  # measured: 2,361,344 and 2,431,716, of 15,598,879
        index = json.loads(hub.repos[REPO]["model.safetensors.index.json"])["weight_map"]
        needed = {shard for name, shard in index.items() if name.startswith("model.layers.1.")}
        assert {name for name in hub.sent if name.endswith(".safetensors")} == needed
        assert None not in [asked for ranges in hub.ranges.values() for asked in ranges]
        assert_cache_is_whole()

    def test_second_time_nothing_is_asked(self, hub: HubServer, wide_block: lmgraft.FrozenBlock) -> None:
        lmgraft.load_block(REPO, 1)
        hub.forget()
        for source, revision in ((REPO, None), (f"{REPO}@main", None), (f"hf://{REPO}", COMMIT), (REPO, "main")):
            block = lmgraft.load_block(source, 1, revision=revision)
            assert block.provenance.digest == wide_block.provenance.digest
        assert hub.requests == []

    def test_another_layer_reuses_the_headers(self, hub: HubServer) -> None:
        first = lmgraft.load_block(REPO, 1)
        hub.forget()
        lmgraft.load_block(REPO, (1, 2))
        layer = 4 * first.config.num_params()
        assert sum(hub.sent.values()) <= layer + (1 << 20)
        assert not any(path.startswith("/api") for _, path, _ in hub.requests)

    def test_much_is_announced_once(
        self, hub: HubServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(cache, "_MUCH", 1 << 20)
        for _ in range(2):
            lmgraft.load_block(REPO, 1)
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert lines[0].startswith("lmgraft: fetching 2 MB, once: model.layers.1 of tiny-org/tiny-llama@")

    def test_nothing_large_is_read_twice(self, hub: HubServer) -> None:
        lmgraft.load_block(REPO, 1)
        assert all(len(set(ranges)) == len(ranges) for ranges in hub.ranges.values())

    @pytest.mark.parametrize("revision", ["main", "v1.0", "refs/pr/1", COMMIT])
    def test_revision_becomes_the_commit(self, hub: HubServer, revision: str) -> None:
        assert lmgraft.load_block(f"{REPO}@{revision}", 0).provenance.revision == COMMIT
        assert lmgraft.load_block(REPO, 0, revision=revision).provenance.revision == COMMIT
        assert any(path.endswith(f"/revision/{revision}") for _, path, _ in hub.requests)

    def test_two_revisions_at_once(self, hub: HubServer) -> None:
        with pytest.raises(SourceError, match="names a revision"):
            lmgraft.load_block(f"{REPO}@main", revision="v1.0")

    def test_saved_graft_pins_the_commit(self, hub: HubServer, tmp_path: Path) -> None:
        model = lmgraft.graft(make_vit(), llm=f"{REPO}@v1.0", layer=1)
        lmgraft.save_pretrained(model, tmp_path / "out")
        assert json.loads((tmp_path / "out" / "lmgraft.json").read_text())["block"]["revision"] == COMMIT
        hub.forget()
        lmgraft.load_pretrained(tmp_path / "out", model=make_vit())
        assert hub.requests == []

    def test_a_single_file_without_index(self, hub: HubServer, llama_folder: Path) -> None:
        hub.add("tiny-org/single", llama_folder)
        expected = lmgraft.load_block(str(llama_folder)).provenance.digest
        assert lmgraft.load_block("tiny-org/single").provenance.digest == expected
        assert lmgraft.load_block("tiny-org/single/model.safetensors").provenance.digest == expected

    def test_local_paths_win(
        self, hub: HubServer, llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shutil.copytree(llama_folder, tmp_path / REPO)
        monkeypatch.chdir(tmp_path)
        assert lmgraft.load_block(REPO).provenance.revision is None
        with pytest.raises(SourceError, match="no Hub repository"):
            lmgraft.load_block(REPO, revision="main")
        assert hub.requests == []

    def test_long_header(self, hub: HubServer, tmp_path: Path, wide_folder: Path) -> None:
        """A header longer than the first window is completed, not read again."""
        folder = tmp_path / "long"
        folder.mkdir()
        save_llama(folder, WIDE, seed=4)
        file = folder / "model.safetensors"
        data = file.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length]) | {"__metadata__": {"note": "x" * 200_000}}
        text = json.dumps(header).encode()
        file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
        hub.add("tiny-org/long", folder)
        block = lmgraft.load_block("tiny-org/long", 1)
        assert block.provenance.digest == lmgraft.load_block(str(folder), 1).provenance.digest
        assert hub.ranges["model.safetensors"][:2] == ["bytes=0-65535", f"bytes=65536-{8 + len(text) - 1}"]
        hub.forget()
        lmgraft.load_block("tiny-org/long", 1)
        assert hub.requests == []


class TestTorchFiles:
    """They come whole, unless there are safetensors."""

    @pytest.fixture
    def torch_folder(self, hub: HubServer, wide_folder: Path, tmp_path: Path) -> Path:
        folder = tmp_path / "torch"
        folder.mkdir()
        shutil.copy(wide_folder / "config.json", folder)
        torch.save(tiny_llama(WIDE, seed=4).state_dict(), folder / "pytorch_model.bin")
        hub.add(REPO, folder)
        return folder

    def test_whole_and_once(
        self,
        hub: HubServer,
        torch_folder: Path,
        wide_block: lmgraft.FrozenBlock,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr(cache, "_MUCH", 1 << 20)
        for source in (REPO, REPO, f"{REPO}/pytorch_model.bin"):
            assert lmgraft.load_block(source, 1).provenance.digest == wide_block.provenance.digest
        assert hub.sent["pytorch_model.bin"] == (torch_folder / "pytorch_model.bin").stat().st_size
        assert capsys.readouterr().err.count("lmgraft: fetching 16 MB, once: tiny-org/tiny-llama@") == 1
        hub.forget()
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        assert lmgraft.load_block(REPO, 2).provenance.revision == COMMIT
        assert hub.requests == []

    def test_offline(self, hub: HubServer, torch_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        open_checkpoint(f"{REPO}@v1.0")
        shutil.rmtree(Path(os.environ["HF_HOME"]))
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        with pytest.raises(SourceError, match="HF_HUB_OFFLINE is set") as caught:
            lmgraft.load_block(f"{REPO}@v1.0", 1)
        assert f"hf download {REPO}" in caught.value.remedy

    def test_the_hubs_own_conversion_comes_first(
        self,
        hub: HubServer,
        torch_folder: Path,
        wide_folder: Path,
        wide_block: lmgraft.FrozenBlock,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        hub.add(f"{REPO}@refs/pr/1", wide_folder)
        hub.converted[REPO] = 1
        block = lmgraft.load_block(REPO, 1)
        assert (block.provenance.digest, block.provenance.revision) == (wide_block.provenance.digest, CONVERTED)
        assert not hub.sent["pytorch_model.bin"]
        hub.forget()
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        assert lmgraft.load_block(REPO, 1).provenance.revision == CONVERTED
        assert hub.requests == []

    def test_a_snapshot_is_taken(
        self, hub: HubServer, torch_folder: Path, tmp_path: Path, wide_block: lmgraft.FrozenBlock
    ) -> None:
        hf_snapshot(tmp_path, torch_folder)
        assert lmgraft.load_block(REPO, 1).provenance.digest == wide_block.provenance.digest
        assert hub.requests == []


class TestGguf:
    @pytest.fixture
    def repo(self, hub: HubServer, make_gguf: Callable[..., Path], tmp_path: Path) -> Path:
        """Two quantisations, one of them in a folder."""
        folder = tmp_path / "ggufs"
        (folder / "sub").mkdir(parents=True)
        shutil.copy(make_gguf(quantization="Q8_0"), folder / "tiny-Q8_0.gguf")
        shutil.copy(make_gguf(), folder / "sub" / "tiny-F32.gguf")
        hub.add("tiny-org/tiny-gguf", folder, license="mit")
        return folder

    @pytest.mark.parametrize("file", ["tiny-Q8_0.gguf", "sub/tiny-F32.gguf"])
    def test_a_file_of_a_repository(self, hub: HubServer, repo: Path, file: str) -> None:
        expected = lmgraft.load_block(str(repo / file)).provenance.digest
        for source in (f"tiny-org/tiny-gguf/{file}", f"tiny-org/tiny-gguf@v1.0/{file}"):
            block = lmgraft.load_block(source)
            assert (block.provenance.digest, block.provenance.revision) == (expected, COMMIT)
            assert block.provenance.licence == "mit"

    @pytest.mark.parametrize("with_config", [True, False])
    def test_several_files_and_none_named(self, repo: Path, llama_folder: Path, with_config: bool) -> None:
        if with_config:  # many repositories of GGUF files hold the original's
            shutil.copy(llama_folder / "config.json", repo)
        shutil.copy(repo / "tiny-Q8_0.gguf", repo / "other.gguf")
        with pytest.raises(SourceError, match=r"holds 2 GGUF files: other\.gguf, tiny-Q8_0\.gguf"):
            open_checkpoint(str(repo))

    def test_one_file_and_none_named(self, repo: Path) -> None:
        assert lmgraft.load_block("tiny-org/tiny-gguf").provenance.file_dtypes == ("F32", "Q8_0")

    def test_a_quantised_tensor_is_one_request(
        self, hub: HubServer, make_gguf: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Dequantising goes row by row; the network must not."""
        monkeypatch.setattr(hub_http, "_PIECE", 10)
        monkeypatch.setattr("lmgraft.checkpoint.hub_file._HEAD", 4096)
        monkeypatch.setattr("lmgraft.checkpoint.gguf_file._WINDOW", 1024)
        monkeypatch.setattr("lmgraft.checkpoint.gguf_file.CHUNK", 128)
        folder = tmp_path / "one"
        folder.mkdir()
        shutil.copy(make_gguf(quantization="Q8_0"), folder / "tiny.gguf")
        hub.add("tiny-org/rows", folder)
        checkpoint = open_checkpoint("tiny-org/rows/tiny.gguf")
        hub.forget()
        checkpoint.read("blk.2.ffn_up.weight")
        assert len(hub.ranges["tiny.gguf"]) == 1


class TestOffline:
    def test_before_the_first_time(self, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        with pytest.raises(SourceError, match="HF_HUB_OFFLINE is set") as caught:
            lmgraft.load_block(REPO)
        assert "unset HF_HUB_OFFLINE" in caught.value.remedy
        assert f"hf download {REPO}" in caught.value.remedy
        assert hub.requests == []

    def test_afterwards(self, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
        digest = lmgraft.load_block(REPO, 1).provenance.digest
        hub.forget()
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        assert lmgraft.load_block(REPO, 1).provenance.digest == digest
        with pytest.raises(SourceError, match="are not in the cache") as caught:
            lmgraft.load_block(REPO, 3)
        assert "unset HF_HUB_OFFLINE" in caught.value.remedy
        assert hub.requests == []

    def test_hugging_face_snapshot(self, hub: HubServer, tmp_path: Path, wide_folder: Path) -> None:
        """No request even online: the server is as good as down."""
        hf_snapshot(tmp_path, wide_folder)
        hub.server_close()
        block = lmgraft.load_block(REPO, 1)
        assert block.provenance.digest == lmgraft.load_block(str(wide_folder), 1).provenance.digest
        assert block.provenance.revision == COMMIT
        assert lmgraft.inspect_llm(REPO).bytes_to_fetch == 0
        assert list(cache.refs()) == []

    def test_licence_from_the_snapshots_card(self, hub: HubServer, tmp_path: Path, wide_folder: Path) -> None:
        snapshot = hf_snapshot(tmp_path, wide_folder)
        (snapshot / "README.md").write_text(
            "---\ntags: [a]\nlicense: other\nlicense_name: tiny-licence\n---\n# Hello\n"
        )
        with pytest.warns(UserWarning, match="under the licence 'tiny-licence'"):
            assert lmgraft.load_block(REPO, 1).provenance.licence == "tiny-licence"

    def test_snapshot_that_lacks_a_shard(self, hub: HubServer, tmp_path: Path, wide_folder: Path) -> None:
        """What is there is used, the rest comes from the same commit."""
        index = json.loads((wide_folder / "model.safetensors.index.json").read_text())["weight_map"]
        lost = index["model.layers.1.mlp.up_proj.weight"]
        hf_snapshot(tmp_path, wide_folder, leave_out=lost)
        lmgraft.load_block(REPO, 3)
        assert hub.requests == []
        block = lmgraft.load_block(REPO, 1)
        assert block.provenance.digest == lmgraft.load_block(str(wide_folder), 1).provenance.digest
        assert set(hub.sent) == {lost}

    def test_snapshot_that_lacks_a_shard_offline(
        self, hub: HubServer, tmp_path: Path, wide_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        index = json.loads((wide_folder / "model.safetensors.index.json").read_text())["weight_map"]
        hf_snapshot(tmp_path, wide_folder, leave_out=index["model.layers.1.mlp.up_proj.weight"])
        lmgraft.load_block(REPO, 3)
        with pytest.raises(SourceError, match="HF_HUB_OFFLINE is set"):
            lmgraft.load_block(REPO, 1)

    def test_snapshot_of_a_tokenizer_only(self, hub: HubServer, tmp_path: Path, wide_folder: Path) -> None:
        snapshot = hf_snapshot(tmp_path, wide_folder)
        for file in snapshot.glob("model*"):
            file.unlink()
        assert lmgraft.load_block(REPO, 1).provenance.revision == COMMIT


class TestFaults:
    """Each fault strikes twice, then the server behaves."""

    @pytest.fixture
    def strike(self, hub: HubServer) -> Callable[..., list[tuple[str, int]]]:
        def order(*fault: Any, times: int = 2, only: str = ".safetensors") -> list[tuple[str, int]]:
            struck: list[tuple[str, int]] = []

            def faults(file: str, first: int, last: int) -> Any:
                if not file.endswith(only) or len(struck) >= times or last - first < 1000:
                    return None
                struck.append((file, first))
                return fault

            hub.faults = faults
            return struck

        return order

    @pytest.mark.parametrize("fault", [("hangup",), ("drop", 0), ("drop", 700), ("truncate", 700), ("truncate", 0)])
    def test_broken_connection_is_taken_up(
        self, hub: HubServer, strike: Any, wide_block: lmgraft.FrozenBlock, fault: Any, waits: list[float]
    ) -> None:
        struck = strike(*fault)
        assert lmgraft.load_block(REPO, 1).provenance.digest == wide_block.provenance.digest
        assert len(struck) == 2
        assert waits == [0.5, 1.0]
        assert struck[1][1] == struck[0][1] + (fault[1] if len(fault) > 1 else 0)  # the last byte that came
        assert_cache_is_whole()

    def test_busy_server_says_when(
        self, hub: HubServer, strike: Any, wide_block: lmgraft.FrozenBlock, waits: list[float]
    ) -> None:
        strike("status", 503, {"Retry-After": "7"})
        assert lmgraft.load_block(REPO, 1).provenance.digest == wide_block.provenance.digest
        assert waits == [7.0, 7.0]
        strike("status", 429, {"Retry-After": "86400"})
        lmgraft.load_block(REPO, 2)
        assert waits[2:] == [hub_http.MOST_WAIT] * 2
        strike("status", 429, {"RateLimit": '"resolvers";r=0;t=11'}, times=1)
        lmgraft.load_block(REPO, 3)
        assert waits[4:] == [11.0]

    def test_busy_listing(self, hub: HubServer, waits: list[float]) -> None:
        answers = iter([(503, b"", {"Retry-After": "3"}), (500, b"", {})])
        hub.api_faults = lambda _: next(answers, None)
        lmgraft.load_block(REPO, 1)
        assert waits == [3.0, 1.0]

    def test_server_that_stays_away(self, hub: HubServer, strike: Any, waits: list[float]) -> None:
        strike("drop", 100, times=99)
        with pytest.raises(SourceError, match="failed 5 times") as caught:
            lmgraft.load_block(REPO, 1)
        assert "bytes came" in caught.value.message
        assert "ranges that came whole are kept" in caught.value.remedy
        assert waits == [0.5, 1.0, 2.0, 4.0]
        hub.faults = lambda *_: None
        lmgraft.load_block(REPO, 1)
        assert_cache_is_whole()

    @pytest.mark.parametrize("silent", [False, True])
    def test_no_network(self, hub: HubServer, monkeypatch: pytest.MonkeyPatch, silent: bool) -> None:
        """Refused, and taken but never answered: an error within seconds."""
        monkeypatch.setattr(hub_http, "_PATIENCE", 0.5)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            if silent:
                free.listen()
            monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
            before = time.perf_counter()
            with pytest.raises(SourceError, match="could not be asked about") as caught:
                lmgraft.load_block(REPO)
            assert time.perf_counter() - before < 5
        assert "is no local path" in caught.value.message
        assert "check the network" in caught.value.remedy
        assert "local folder" in caught.value.remedy

    def test_the_network_goes_between_two_layers(self, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
        lmgraft.load_block(REPO, 1)
        hub.shutdown()
        hub.server_close()
        monkeypatch.setattr(hub_http, "_answered", set[str]())
        with pytest.raises(SourceError, match="does not answer"):
            lmgraft.load_block(REPO, 3)

    @pytest.mark.parametrize("status", [401, 403])
    def test_gated(self, hub: HubServer, strike: Any, status: int) -> None:
        strike("status", status, {"X-Error-Code": "GatedRepo"}, only="config.json", times=99)
        hub.repos[REPO] = hub.repos[REPO] | {"config.json": hub.repos[REPO]["config.json"] + b" " * 1000}
        with pytest.raises(SourceError, match="is gated") as caught:
            lmgraft.load_block(REPO)
        assert f"accept the licence at {hub.address}/{REPO}" in caught.value.remedy
        assert "hf auth login" in caught.value.remedy
        assert "HF_TOKEN" in caught.value.remedy

    def test_gated_listing(self, hub: HubServer) -> None:
        hub.api_faults = lambda _: (403, b"", {"X-Error-Code": "GatedRepo"})
        with pytest.raises(SourceError, match="is gated"):
            lmgraft.load_block(REPO)

    @pytest.mark.parametrize("body", [b"<html>Please log in</html>", b"[]", b"{}", b"null", b'{"id": "a/b"}'])
    def test_answer_of_a_login_page(self, hub: HubServer, body: bytes) -> None:
        hub.api_faults = lambda _: (200, body, {})
        with pytest.raises(SourceError, match=r"something else than the description|names no commit"):
            lmgraft.load_block(REPO)

    def test_rewritten_history(self, hub: HubServer, strike: Any) -> None:
        """The commit that a branch was kept at is gone."""
        strike("status", 404, {"X-Error-Code": "RevisionNotFound"})
        with pytest.raises(SourceError, match="has no revision") as caught:
            lmgraft.load_block(REPO, 1)
        assert f"lmgraft cache rm {REPO}" in caught.value.remedy

    def test_no_such_repository(self, hub: HubServer) -> None:
        with pytest.raises(SourceError, match="no model 'tiny-org/other' on the Hub, or it is private") as caught:
            lmgraft.load_block("tiny-org/other")
        assert "check the path" in caught.value.remedy
        assert "'tiny-org/other' is no local path" in caught.value.message

    def test_no_such_revision(self, hub: HubServer) -> None:
        with pytest.raises(SourceError, match="has no revision 'nowhere'"):
            lmgraft.load_block(REPO, revision="nowhere")

    def test_no_such_file(self, hub: HubServer) -> None:
        with pytest.raises(SourceError, match=r"has no file 'other\.gguf'"):
            lmgraft.load_block(f"{REPO}/other.gguf")

    def test_file_that_went_away(self, hub: HubServer, strike: Any) -> None:
        strike("status", 404, {"X-Error-Code": "EntryNotFound"})
        with pytest.raises(SourceError, match=r"has no file 'model-.*' at revision"):
            lmgraft.load_block(REPO, 1)

    @pytest.mark.parametrize("name", ["not--allowed/x", "a/b..c"])
    def test_name_the_hub_does_not_allow(self, hub: HubServer, name: str) -> None:
        with pytest.raises(SourceError, match="is no name of a model"):
            lmgraft.load_block(name)

    def test_refusal_without_a_reason(self, hub: HubServer, strike: Any) -> None:
        strike("status", 418, {})
        with pytest.raises(SourceError, match=r"refused .* with status 418"):
            lmgraft.load_block(REPO, 1)

    def test_another_range(self, hub: HubServer, strike: Any) -> None:
        strike("shift", 8)
        with pytest.raises(SourceError, match="when asked for bytes 0 to") as caught:
            lmgraft.load_block(REPO, 1)
        assert "broken" in caught.value.remedy

    def test_ranges_ignored_for_small_files(self, hub: HubServer, wide_block: lmgraft.FrozenBlock) -> None:
        """They come whole, once."""
        hub.faults = lambda *_: ("whole",)
        assert lmgraft.load_block(REPO, 1).provenance.digest == wide_block.provenance.digest
        assert all(len(ranges) <= 2 for ranges in hub.ranges.values())
        hub.forget()
        lmgraft.load_block(REPO, 1)
        assert hub.requests == []

    def test_ranges_ignored_for_large_files(self, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("lmgraft.checkpoint.hub_file._SMALL", 1 << 20)
        hub.faults = lambda file, *_: ("whole",) if file.endswith(".safetensors") else None
        with pytest.raises(SourceError, match="does not serve ranges") as caught:
            lmgraft.load_block(REPO, 1)
        assert "hf download" in caught.value.remedy
        assert_cache_is_whole()

    def test_listing_without_sizes(self, hub: HubServer, wide_block: lmgraft.FrozenBlock) -> None:
        hub.sizes = False
        assert lmgraft.load_block(REPO, 1).provenance.digest == wide_block.provenance.digest
        assert any(method == "HEAD" for method, _, _ in hub.requests)

    def test_past_the_end(self, hub: HubServer) -> None:
        file = RemoteFile(HubFile(REPO, COMMIT, "config.json", len(hub.repos[REPO]["config.json"])))
        with pytest.raises(CheckpointError, match="ends at byte"):
            file.read_into(file.size - 1, memoryview(bytearray(2)))


class TestAccess:
    def authorisations(self, hub: HubServer) -> set[str | None]:
        return {headers.get("authorization") for _, _, headers in hub.requests}

    def test_token_of_the_environment(self, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        lmgraft.load_block(REPO, 1)
        assert self.authorisations(hub) == {"Bearer hf_secret"}
        held = [p.read_bytes() for p in cache.cache_dir().rglob("*") if p.is_file()]
        assert not any(b"hf_secret" in content for content in held)

    def test_no_token(self, hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
        lmgraft.load_block(REPO, 1)
        assert self.authorisations(hub) == {None}

    def test_token_stays_on_its_host(self, hub: HubServer, wide_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Weights lie on another host than the Hub; it must not see the token."""
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        with serving() as elsewhere:
            elsewhere.add(REPO, wide_folder)
            address = elsewhere.address.replace("127.0.0.1", "localhost")
            hub.faults = lambda file, *_: ("redirect", address) if file.endswith(".safetensors") else None
            lmgraft.load_block(REPO, 1)
            assert sum(elsewhere.sent.values()) > 1 << 20
            assert self.authorisations(elsewhere) == {None}
            assert all("range" in headers for _, _, headers in elsewhere.requests)


class TestLicences:
    @pytest.mark.parametrize("licence", ["llama2", "llama3.1", "gemma", "cc-by-nc-4.0", "never-heard-of"])
    def test_restricted_ones_are_named(self, hub: HubServer, wide_folder: Path, licence: str) -> None:
        hub.cards[REPO] = {"license": licence}
        with pytest.warns(UserWarning, match=f"under the licence '{licence}'") as caught:
            assert lmgraft.load_block(REPO, 1).provenance.licence == licence
        assert len(caught) == 1

    def test_licence_by_its_own_name(self, hub: HubServer) -> None:
        hub.cards[REPO] = {"license": "other", "license_name": "tongyi-qianwen"}
        with pytest.warns(UserWarning, match="tongyi-qianwen"):
            assert lmgraft.inspect_llm(REPO).licence == "tongyi-qianwen"

    @pytest.mark.parametrize("card", [{"license": "mit"}, {"license": "Apache-2.0"}, {}, {"license": None}])
    def test_open_and_unknown_ones_are_quiet(self, hub: HubServer, card: dict[str, Any]) -> None:
        hub.cards[REPO] = card
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert lmgraft.inspect_llm(REPO).licence == card.get("license")


def _load(digests: Any) -> None:
    digests.put(lmgraft.load_block(REPO, 1).provenance.digest)


class TestAtOnce:
    def test_threads(self, hub: HubServer, wide_block: lmgraft.FrozenBlock) -> None:
        digests: list[str] = []
        threads = [
            threading.Thread(target=lambda: digests.append(lmgraft.load_block(REPO, 1).provenance.digest))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert digests == [wide_block.provenance.digest] * 4
        assert sum(hub.sent.values()) <= 4 * wide_block.config.num_params() + (1 << 20)  # not four times
        assert_cache_is_whole()

    @pytest.mark.long
    @pytest.mark.slow
    def test_processes(self, hub: HubServer, wide_block: lmgraft.FrozenBlock) -> None:
        assert os.environ["HF_ENDPOINT"] == hub.address  # the children inherit it, and the cache
        context = multiprocessing.get_context("spawn")
        digests = context.Queue()
        processes = [context.Process(target=_load, args=(digests,)) for _ in range(2)]
        for process in processes:
            process.start()
        found = [digests.get(timeout=120) for _ in processes]
        for process in processes:
            process.join()
        assert found == [wide_block.provenance.digest] * 2
        assert sum(hub.sent.values()) <= 4 * wide_block.config.num_params() + (1 << 20)
        assert_cache_is_whole()


class TestInspect:
    def test_what_would_be_fetched(self, hub: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
        report = lmgraft.inspect_llm(REPO, 1)
        assert sum(hub.sent.values()) < 1 << 19  # headers only
        assert report.revision == COMMIT
        assert 0.9 * report.layer_bytes < report.bytes_to_fetch <= report.layer_bytes
        lmgraft.load_block(REPO, 1)
        assert lmgraft.inspect_llm(REPO, 1).bytes_to_fetch == 0

    def test_printed(self, hub: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["inspect", REPO, "--layer", "1"]) == 0
        printed = capsys.readouterr().out
        assert COMMIT in printed
        assert "MiB of this block are not on this machine yet" in printed
        assert main(["inspect", REPO, "--layer", "1", "--revision", "v1.0", "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert (said["revision"], said["licence"]) == (COMMIT, "apache-2.0")
        assert said["bytes_to_fetch"] > 0

    def test_local(self, wide_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["inspect", str(wide_folder)]) == 0
        printed = capsys.readouterr().out
        assert "nothing, this block is on this machine" in printed
        assert "revision" not in printed


def test_importing_lmgraft_leaves_the_hubs_library_alone() -> None:
    code = "import sys, lmgraft, lmgraft.checkpoint.hub; print('huggingface_hub' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("owner/name", ("owner/name", "main", "", None)),
        ("hf://owner/name", ("owner/name", "main", "", None)),
        ("owner/name@v1", ("owner/name", "v1", "", None)),
        ("owner/name@refs/pr/3", ("owner/name", "refs/pr/3", "", None)),
        ("owner/name@refs/pr/3/a.gguf", ("owner/name", "refs/pr/3", "", "a.gguf")),
        ("owner/name/a.gguf", ("owner/name", "main", "", "a.gguf")),
        ("owner/name@v1/deep/er/a.gguf", ("owner/name", "v1", "deep/er", "a.gguf")),
        ("owner/name/original", ("owner/name", "main", "original", None)),
        ("owner/na.me-7B_x", ("owner/na.me-7B_x", "main", "", None)),
    ],
)
def test_source_taken_apart(source: str, parts: tuple[Any, ...]) -> None:
    found = parse_hub_source(source)
    assert found is not None
    assert (found.repo, found.revision, found.folder, found.file) == parts


@pytest.mark.parametrize(
    "source",
    [
        *("name", "./owner/name", "../name", "/owner/name", "~/name", "owner/name/../x", "owner/name@", "a b/c"),
        *("pypi://a==1#b/c", "https://huggingface.co/a/b", "", "/", "owner//x", "owner/..", "owner/name@a/../b"),
        "folder/model.gguf",
    ],
)
def test_no_hub_source(source: str) -> None:
    assert parse_hub_source(source) is None
