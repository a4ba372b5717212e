"""Files laid out as large models' are, of which only one layer takes room on disk.

The header is real, the rest a hole; the last layer's bytes are random finite numbers.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from lmgraft.checkpoint.gguf_file import GgufCheckpoint
from lmgraft.checkpoint.places import LocalFile

_PIECE = 9 << 19  # a multiple of 2 and of a Q4_0 block's 18 bytes


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """Sizes of a LLaMA."""

    dim: int
    mlp_dim: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int = 32000

    @property
    def layer_params(self) -> int:
        narrow = self.dim // self.heads * self.kv_heads
        return 2 * self.dim * self.dim + 2 * self.dim * narrow + 3 * self.dim * self.mlp_dim + 2 * self.dim


LLAMA_7B = Anatomy(dim=4096, mlp_dim=11008, layers=32, heads=32, kv_heads=32)
LLAMA_70B = Anatomy(dim=8192, mlp_dim=28672, layers=80, heads=64, kv_heads=8)
LLAMA_8_LAYERS = replace(LLAMA_7B, layers=8)

_HF = {
    "input_layernorm": "norm",
    "self_attn.q_proj": "wide",
    "self_attn.k_proj": "narrow",
    "self_attn.v_proj": "narrow",
    "self_attn.o_proj": "wide",
    "post_attention_layernorm": "norm",
    "mlp.gate_proj": "up",
    "mlp.up_proj": "up",
    "mlp.down_proj": "down",
}
_GGUF = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down")
_META = (
    "attention_norm",
    "attention.wq",
    "attention.wk",
    "attention.wv",
    "attention.wo",
    "ffn_norm",
    "feed_forward.w1",
    "feed_forward.w3",
    "feed_forward.w2",
)


def _shapes(
    of: Anatomy, prefix: str, names: Mapping[str, str], embedding: str, norm: str, output: str
) -> dict[str, tuple[int, ...]]:
    narrow = of.dim // of.heads * of.kv_heads
    by_kind: dict[str, tuple[int, ...]] = {
        "norm": (of.dim,),
        "wide": (of.dim, of.dim),
        "narrow": (narrow, of.dim),
        "up": (of.mlp_dim, of.dim),
        "down": (of.dim, of.mlp_dim),
    }
    shapes: dict[str, tuple[int, ...]] = {f"{embedding}.weight": (of.vocabulary, of.dim)}
    for layer in range(of.layers):
        shapes |= {f"{prefix}{layer}.{name}.weight": by_kind[kind] for name, kind in names.items()}
    return shapes | {f"{norm}.weight": (of.dim,), f"{output}.weight": (of.vocabulary, of.dim)}


def _fill(path: Path, spans: Iterable[tuple[int, int]], block: bytes) -> None:
    with open(path, "r+b") as file:
        for offset, count in spans:
            file.seek(offset)
            for at in range(0, count, len(block)):
                file.write(block[: min(len(block), count - at)])


def _random_halves() -> bytes:
    return (np.random.default_rng(0).standard_normal(_PIECE // 2) * 0.02).astype("<f2").tobytes()


def write_safetensors(folder: Path, of: Anatomy, shards: int) -> Path:
    """Float16 shards with an index and a config.json."""
    shapes = _shapes(of, "model.layers.", _HF, "model.embed_tokens", "model.norm", "lm_head")
    config = {
        "model_type": "llama",
        "hidden_size": of.dim,
        "intermediate_size": of.mlp_dim,
        "num_hidden_layers": of.layers,
        "num_attention_heads": of.heads,
        "num_key_value_heads": of.kv_heads,
        "rms_norm_eps": 1e-5,
    }
    (folder / "config.json").write_text(json.dumps(config))
    each = sum(math.prod(shape) * 2 for shape in shapes.values()) / shards
    weight_map: dict[str, str] = {}
    headers: list[dict[str, dict[str, Any]]] = [{} for _ in range(shards)]
    ends, total = [0] * shards, 0
    for name, shape in shapes.items():
        size = math.prod(shape) * 2
        shard = min(shards - 1, int(total / each))
        headers[shard][name] = {"dtype": "F16", "shape": shape, "data_offsets": [ends[shard], ends[shard] + size]}
        ends[shard] += size
        total += size
    for number, header in enumerate(headers):
        path = folder / f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        weight_map |= dict.fromkeys(header, path.name)
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        path.write_bytes(struct.pack("<Q", len(text)) + text)
        os.truncate(path, 8 + len(text) + ends[number])
        last = [entry["data_offsets"] for name, entry in header.items() if f".{of.layers - 1}." in name]
        _fill(path, [(8 + len(text) + begin, end - begin) for begin, end in last], _random_halves())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def write_gguf(folder: Path, of: Anatomy) -> Path:
    """A Q4_0 file with a vocabulary."""
    path = folder / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(of.layers)
    writer.add_embedding_length(of.dim)
    writer.add_feed_forward_length(of.mlp_dim)
    writer.add_head_count(of.heads)
    writer.add_head_count_kv(of.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_token_list([f"token{i}" for i in range(of.vocabulary)])
    names = dict(zip(_GGUF, _HF.values(), strict=True))
    end = 0
    for name, shape in _shapes(of, "blk.", names, "token_embd", "output_norm", "output").items():
        if len(shape) == 1:
            size, kind = shape[0] * 4, gguf.GGMLQuantizationType.F32
            writer.add_tensor_info(name, shape, np.dtype(np.float32), size)
        else:
            size, kind = math.prod(shape) // 32 * 18, gguf.GGMLQuantizationType.Q4_0
            packed = (*shape[:-1], shape[-1] // 32 * 18)
            writer.add_tensor_info(name, packed, np.dtype(np.uint8), size, raw_dtype=kind)
        end += -(-size // 32) * 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    start = -(-path.stat().st_size // 32) * 32
    os.truncate(path, start + end)
    blocks = np.random.default_rng(0).integers(0, 256, (_PIECE // 18, 18), dtype=np.uint8)
    blocks[:, :2] = np.frombuffer(np.full(len(blocks), 0.01, "<f2").tobytes(), np.uint8).reshape(-1, 2)
    checkpoint = GgufCheckpoint([LocalFile(path)])
    last = [t for n, t in checkpoint._tensors.items() if n.startswith(f"blk.{of.layers - 1}.")]
    _fill(path, ((t.offset, t.nbytes) for t in last if len(t.shape) > 1), blocks.tobytes())
    gains = np.ones(of.dim, "<f4").tobytes()
    _fill(path, ((t.offset, t.nbytes) for t in last if len(t.shape) == 1), gains)
    return path


def write_meta(folder: Path, of: Anatomy, *, whole: bool = False) -> Path:
    """Float16 `consolidated.00.pth` as torch.save lays it out, and params.json; `whole` leaves no holes."""
    names = dict(zip(_META, _HF.values(), strict=True))
    shapes = _shapes(of, "layers.", names, "tok_embeddings", "norm", "output")
    params = {"dim": of.dim, "n_layers": of.layers, "n_heads": of.heads, "n_kv_heads": of.kv_heads, "norm_eps": 1e-5}
    (folder / "params.json").write_text(json.dumps(params | {"vocab_size": -1, "multiple_of": 256}))
    path = folder / "consolidated.00.pth"
    with FakeTensorMode(), torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save({name: torch.empty(shape, dtype=torch.float16) for name, shape in shapes.items()}, path)
    with FakeTensorMode():  # torch then notes where in the file each tensor lies
        state = torch.load(path, weights_only=True)
    wanted = [state[name] for name in shapes if whole or f"layers.{of.layers - 1}." in name]
    spans = ((tensor.untyped_storage()._checkpoint_offset, tensor.nbytes) for tensor in wanted)
    _fill(path, spans, _random_halves())
    return folder


@dataclass(frozen=True)
class Case:
    """One file to load a layer from."""

    title: str
    anatomy: Anatomy
    write: Callable[[Path], Path]
    width: int
    """Bytes of a value in the loaded layer."""


CASES = {
    "7b-safetensors": Case(
        "7B float16 safetensors, 2 shards", LLAMA_7B, lambda f: write_safetensors(f, LLAMA_7B, 2), 2
    ),
    "7b-consolidated": Case("7B float16 consolidated.00.pth", LLAMA_7B, lambda f: write_meta(f, LLAMA_7B), 2),
    "7b-gguf": Case("7B Q4_0 GGUF, to float32", LLAMA_7B, lambda f: write_gguf(f, LLAMA_7B), 4),
    "70b-safetensors": Case(
        "70B float16 safetensors, 15 shards", LLAMA_70B, lambda f: write_safetensors(f, LLAMA_70B, 15), 2
    ),
    "8-layers": Case(
        "8 layers of 7B, float16 consolidated.00.pth, no holes",
        LLAMA_8_LAYERS,
        lambda f: write_meta(f, LLAMA_8_LAYERS, whole=True),
        2,
    ),
}
