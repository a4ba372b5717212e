"""Torch and Meta checkpoints: the same block as from safetensors, only it loaded, nothing run."""

from __future__ import annotations

import builtins
import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lmgraft
from lmgraft.checkpoint import open_checkpoint
from lmgraft.checkpoint.places import LocalFile
from lmgraft.checkpoint.torch_file import TorchFile
from lmgraft.errors import CheckpointError, LmgraftError, SourceError
from tiny import TINY_LLAMA

HEADS, KV_HEADS = TINY_LLAMA["num_attention_heads"], TINY_LLAMA["num_key_value_heads"]


@pytest.fixture
def folder(llama_folder: Path, tmp_path: Path) -> Path:
    """A copy of `llama_folder` without weights."""
    copy = Path(shutil.copytree(llama_folder, tmp_path / "model"))
    (copy / "model.safetensors").unlink()
    return copy


@pytest.fixture
def bin_folder(folder: Path, llama_state: dict[str, Tensor]) -> Path:
    torch.save(llama_state, folder / "pytorch_model.bin")
    return folder


@pytest.fixture
def reference(llama_folder: Path) -> Callable[..., str]:
    """The digest of a layer out of safetensors."""
    return lambda *args, **options: lmgraft.load_block(str(llama_folder), *args, **options).provenance.digest


def digest(source: Path, *args: Any, **options: Any) -> str:
    return lmgraft.load_block(str(source), *args, **options).provenance.digest


_META = {
    "input_layernorm": "attention_norm",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
}
_META_OUTSIDE = {"model.embed_tokens": "tok_embeddings", "model.norm": "norm", "lm_head": "output"}


def as_meta(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state as Meta names and orders it: the inverse of transformers' conversion."""
    found = {"layers.0.attention.inner_attention.rope.freqs": torch.ones(4)}
    for name, tensor in state.items():
        base, kind = name.rsplit(".", 1)
        if base in _META_OUTSIDE:
            found[f"{_META_OUTSIDE[base]}.{kind}"] = tensor
            continue
        _, _, layer, rest = base.split(".", 3)
        heads = {"self_attn.q_proj": HEADS, "self_attn.k_proj": KV_HEADS}.get(rest)
        if heads:  # HF did view(heads, rows // heads // 2, 2, columns).transpose(1, 2)
            rows, columns = tensor.shape
            tensor = tensor.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)
        found[f"layers.{layer}.{_META[rest]}.{kind}"] = tensor
    return found


def write_meta(into: Path, state: Mapping[str, Tensor], ranks: int = 1, **params: Any) -> Path:
    """params.json and one consolidated file for each rank, split as Meta's model-parallel layers are."""
    into.mkdir(exist_ok=True)
    said = {"dim": 32, "n_layers": 3, "n_heads": HEADS, "n_kv_heads": KV_HEADS, "norm_eps": 1e-5, "multiple_of": 999}
    (into / "params.json").write_text(json.dumps(said | {"vocab_size": -1} | params))
    for rank in range(ranks):
        mine = {}
        for name, tensor in state.items():
            columns = name.endswith(("wo.weight", "w2.weight")) or name.startswith("tok_embeddings")
            if tensor.dim() == 2:
                mine[name] = tensor.chunk(ranks, 1 if columns else 0)[rank].clone()
            else:
                mine[name] = tensor
        torch.save(mine, into / f"consolidated.{rank:02d}.pth")
    return into


class TestSameBlock:
    @pytest.mark.parametrize("layer", [0, -1, (0, 1, 2)])
    @pytest.mark.parametrize("final_norm", ["unit", "pretrained"])
    def test_one_bin(self, bin_folder: Path, reference: Any, layer: Any, final_norm: Any) -> None:
        expected = reference(layer, final_norm=final_norm)
        assert digest(bin_folder, layer, final_norm=final_norm) == expected
        assert digest(bin_folder / "pytorch_model.bin", layer, final_norm=final_norm) == expected
        assert lmgraft.inspect_llm(str(bin_folder)).file_dtypes == ("F32",)

    def test_shards(self, folder: Path, llama_state: dict[str, Tensor], reference: Any) -> None:
        names, weight_map = sorted(llama_state), {}
        for number in range(3):
            shard = f"pytorch_model-{number + 1:05d}-of-00003.bin"
            torch.save({n: llama_state[n].clone() for n in names[number::3]}, folder / shard)
            weight_map |= dict.fromkeys(names[number::3], shard)
        index = folder / "pytorch_model.bin.index.json"
        index.write_text(json.dumps({"weight_map": weight_map}))
        (folder / "training_args.bin").write_bytes(b"not weights")
        assert digest(folder) == reference()
        index.write_text(json.dumps({"weight_map": weight_map | {"model.more": shard}}))
        with pytest.raises(CheckpointError, match=r"model\.more"):
            lmgraft.load_block(str(folder))
        index.write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
        with pytest.raises(CheckpointError, match="outside"):
            lmgraft.load_block(str(folder))

    def test_ways_to_save(self, folder: Path, llama_state: Any, reference: Any) -> None:
        """Parameters, transposed views, one storage for all, a state dict with metadata."""
        state: Any = torch.nn.Module().state_dict()
        flat = torch.cat([t.reshape(-1) for t in llama_state.values()])
        at = 0
        for name, tensor in llama_state.items():
            state[name] = flat[at : at + tensor.numel()].view(tensor.shape)
            at += tensor.numel()
        last = "model.layers.2.mlp.up_proj.weight"
        state[last] = torch.nn.Parameter(llama_state[last].t().contiguous().t())
        state["steps"] = 7
        torch.save(state, folder / "pytorch_model.bin")
        assert digest(folder) == reference()

    def test_half_precision_stays(self, folder: Path, llama_state: dict[str, Tensor]) -> None:
        torch.save({n: t.bfloat16() for n, t in llama_state.items()}, folder / "pytorch_model.bin")
        block = lmgraft.load_block(str(folder))
        assert {p.dtype for p in block.parameters()} == {torch.bfloat16}
        assert block.provenance.file_dtypes == ("BF16",)

    def test_safetensors_come_first(self, bin_folder: Path, llama_folder: Path) -> None:
        (bin_folder / "pytorch_model.bin").write_bytes(b"never opened")
        shutil.copy(llama_folder / "model.safetensors", bin_folder)
        lmgraft.load_block(str(bin_folder))

    @pytest.mark.parametrize("ranks", [1, 2])
    @pytest.mark.parametrize("layer", [0, -1, (0, 1, 2)])
    @pytest.mark.parametrize("final_norm", ["unit", "pretrained"])
    def test_meta(
        self, tmp_path: Path, llama_state: Any, reference: Any, ranks: int, layer: Any, final_norm: Any
    ) -> None:
        folder = write_meta(tmp_path / "meta", as_meta(llama_state), ranks)
        expected = reference(layer, final_norm=final_norm)
        assert digest(folder, layer, final_norm=final_norm) == expected
        assert digest(folder / "consolidated.00.pth", layer, final_norm=final_norm) == expected
        checkpoint = open_checkpoint(str(folder))
        assert checkpoint.style == "meta"
        for name, tensor in as_meta(llama_state).items():
            assert torch.equal(checkpoint.read(name), tensor)
            assert checkpoint.shape(name) == tensor.shape
            assert checkpoint.nbytes(name) == tensor.numel() * 4

    def test_meta_ranks_that_do_not_fit(self, tmp_path: Path, llama_state: Any) -> None:
        folder = write_meta(tmp_path / "meta", as_meta(llama_state), 2)
        torch.save({"norm.weight": torch.ones(32)}, folder / "consolidated.01.pth")
        with pytest.raises(CheckpointError, match="no rank of the same model"):
            lmgraft.load_block(str(folder))
        (folder / "consolidated.01.pth").rename(folder / "consolidated.02.pth")
        with pytest.raises(CheckpointError, match=r"lacks consolidated\.01\.pth"):
            lmgraft.load_block(str(folder))

    def test_meta_wants_params(self, tmp_path: Path, llama_state: Any) -> None:
        folder = write_meta(tmp_path / "meta", as_meta(llama_state))
        (folder / "params.json").unlink()
        with pytest.raises(SourceError):
            lmgraft.load_block(str(folder))
        folder = write_meta(tmp_path / "meta", as_meta(llama_state), n_heads=5)
        with pytest.raises(LmgraftError):
            lmgraft.load_block(str(folder))


class TestNested:
    @pytest.mark.parametrize("keys", [("state_dict",), ("module",), ("model",), ("module", "model_state_dict")])
    def test_where_trainers_keep_weights(self, folder: Path, llama_state: Any, reference: Any, keys: Any) -> None:
        state: Any = {f"module.{name}": tensor for name, tensor in llama_state.items()}
        for key in keys:
            state = {key: state, "step": 7}
        torch.save(state, folder / "mp_rank_00_model_states.pt")
        assert digest(folder / "mp_rank_00_model_states.pt") == reference()
        assert digest(folder) == reference()

    def test_a_dict_that_holds_itself(self, bin_folder: Path) -> None:
        state: Any = {"step": 1}
        state["model"] = state
        torch.save(state, bin_folder / "pytorch_model.bin")
        with pytest.raises(CheckpointError, match="holds no tensors by name"):
            lmgraft.load_block(str(bin_folder))


@pytest.mark.long
def test_only_what_is_read_is_loaded(tmp_path: Path) -> None:
    """Of a file of 256 MiB that is mostly one tensor, another is read."""
    torch.save({"large": torch.zeros(1 << 26), "small": torch.ones(8)}, tmp_path / "x.bin")
    code = (
        "import resource, sys, pathlib, lmgraft\n"
        "from lmgraft.checkpoint.places import LocalFile\n"
        "from lmgraft.checkpoint.torch_file import TorchFile\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "assert TorchFile(LocalFile(pathlib.Path(sys.argv[1]))).read('small').sum() == 8\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "x.bin"], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100 << 10  # KiB


class Hostile:
    """Pickles as a call of `function` on `arguments`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


def repack(path: Path, change: Callable[[dict[str, bytes]], None], method: int = zipfile.ZIP_STORED) -> None:
    """Change the members of an archive."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


class TestHostile:
    @pytest.mark.parametrize(
        ("function", "arguments"),
        [
            (os.system, ("touch {}",)),
            (builtins.eval, ("open({!r}, 'w')",)),
            (builtins.exec, ("open({!r}, 'w')",)),
            (builtins.getattr, (os, "system")),
            (torch.load, ("{}",)),
            (torch.hub.load, ("{}", "model")),
            (torch.serialization.load, ("{}",)),
            (torch._utils._rebuild_qtensor, (1,)),
            (io.open, ("{}", "w")),
        ],
    )
    @pytest.mark.parametrize("protocol", [2, 4])
    def test_calls_are_never_made(
        self, bin_folder: Path, tmp_path: Path, function: Any, arguments: Any, protocol: int
    ) -> None:
        witness = tmp_path / "witness"
        filled = tuple(a.format(str(witness)) if isinstance(a, str) else "x" for a in arguments)
        torch.save(
            {"a": torch.ones(1), "b": Hostile(function, *filled)},
            bin_folder / "pytorch_model.bin",
            pickle_protocol=protocol,
        )
        with pytest.raises(CheckpointError, match=r"not run|damaged"):
            lmgraft.load_block(str(bin_folder))
        assert not witness.exists()

    def test_objects_are_not_built(self, bin_folder: Path) -> None:
        torch.save({"a": torch.ones(1), "b": torch.nn.Linear(1, 1)}, bin_folder / "pytorch_model.bin")
        with pytest.raises(CheckpointError, match="not run"):
            lmgraft.load_block(str(bin_folder))

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b".",
            b"\x80\x02}.",
            b"\x80\x02N.",
            b"cos\nsystem\nX\x01\x00\x00\x00a\x85R.",
            b"(S'touch x'\nios\nsystem\n.",  # INST
            b"\x8e" + struct.pack("<Q", 1 << 40) + b".",  # BINBYTES8 with an absurd size
            b"X" + struct.pack("<I", 0xFFFFFFFF) + b".",
            b"Nr" + struct.pack("<I", 0xFFFFFFFF) + b".",  # memo index: other readers take 64 GB
            b"\x80\x02}(" + b")" + b"\x86" * 3 + b"N" + b"u.",
            b"N" + b"2" * 50 + b".",
        ],
    )
    def test_odd_pickles(self, bin_folder: Path, data: bytes) -> None:
        repack(bin_folder / "pytorch_model.bin", lambda m: m.update({"pytorch_model/data.pkl": data}))
        with pytest.raises(CheckpointError):
            lmgraft.load_block(str(bin_folder))


class TestDamaged:
    def test_cut_anywhere(self, bin_folder: Path) -> None:
        path = bin_folder / "pytorch_model.bin"
        whole = path.read_bytes()
        for at in [*range(0, 40), *range(40, len(whole), len(whole) // 60), len(whole) - 1]:
            path.write_bytes(whole[:at])
            with pytest.raises(LmgraftError):
                lmgraft.load_block(str(bin_folder))

    def test_index_that_names_an_unknown_folder_or_file(self, bin_folder: Path) -> None:
        (bin_folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": "b.bin"}}))
        with pytest.raises(CheckpointError, match=r"b\.bin is missing"):
            lmgraft.load_block(str(bin_folder))

    def test_nan_is_counted(self, folder: Path, llama_state: dict[str, Tensor]) -> None:
        bad = torch.tensor([torch.nan, torch.inf, -torch.inf])
        spoilt = {n: t.clone() for n, t in llama_state.items()}
        spoilt["model.layers.2.mlp.up_proj.weight"].view(-1)[[0, 77, -1]] = bad
        torch.save(spoilt, folder / "pytorch_model.bin")
        with pytest.raises(CheckpointError, match="holds 3 values"):
            lmgraft.load_block(str(folder))
        large = {n: torch.full_like(t, 6e4, dtype=torch.float16) for n, t in llama_state.items()}
        torch.save(large, folder / "pytorch_model.bin")  # finite values whose float16 sum is not
        lmgraft.load_block(str(folder))

    def test_old_format(self, bin_folder: Path, llama_state: Any) -> None:
        torch.save(llama_state, bin_folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
        with pytest.raises(CheckpointError, match="save it anew"):
            lmgraft.load_block(str(bin_folder))
        (bin_folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))
        with pytest.raises(CheckpointError, match="save it anew"):
            lmgraft.load_block(str(bin_folder))

    def test_compressed(self, bin_folder: Path) -> None:
        repack(bin_folder / "pytorch_model.bin", dict.copy, zipfile.ZIP_DEFLATED)
        with pytest.raises(CheckpointError, match="compressed"):
            lmgraft.load_block(str(bin_folder))

    def test_repacked_but_stored_is_read(self, bin_folder: Path, reference: Any) -> None:
        repack(bin_folder / "pytorch_model.bin", lambda m: m.update({"pytorch_model/more": b"x"}))
        assert digest(bin_folder) == reference()

    @pytest.mark.parametrize(
        "change",
        [
            lambda m: m.pop("pytorch_model/data/5"),
            lambda m: m.update({"pytorch_model/data/5": b"short"}),
            lambda m: m.pop("pytorch_model/data.pkl"),
        ],
    )
    def test_odd_members(self, bin_folder: Path, change: Any) -> None:
        repack(bin_folder / "pytorch_model.bin", change)
        with pytest.raises(CheckpointError):
            lmgraft.load_block(str(bin_folder))

    def test_a_view_that_repeats_its_numbers(self, tmp_path: Path) -> None:
        torch.save({"a": torch.ones(1).expand(1 << 30, 1 << 20)}, tmp_path / "x.bin")
        with pytest.raises(CheckpointError, match="repeats its numbers"):
            TorchFile(LocalFile(tmp_path / "x.bin")).read("a")

    @pytest.mark.parametrize(
        "tensor",
        [
            torch.ones(4, 4)[:, :2],
            torch.arange(8)[::2],
            torch.arange(24.0).view(2, 3, 4).permute(2, 0, 1),
            torch.arange(24.0).view(4, 6)[1:3],
            torch.arange(3.0).view(1, 3).t(),
            torch.empty(0, 5),
            torch.tensor(3.0),
            torch.arange(6).view(2, 3),
            torch.tensor([True, False]),
        ],
    )
    def test_views(self, tmp_path: Path, tensor: Tensor) -> None:
        torch.save({"a": tensor}, tmp_path / "x.bin")
        assert torch.equal(TorchFile(LocalFile(tmp_path / "x.bin")).read("a"), tensor)
