"""GGUF files of every family that llama.cpp converts: same block, same digest as the Hugging Face files.

The converter here follows llama.cpp's: tensor names from the gguf package's own map, rows of q and k
interleaved for llama's kin, fused q/k/v reordered, one added to gemma's gains, Conv1D transposed.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from lmgraft import load_block
from lmgraft.checkpoint import open_checkpoint
from lmgraft.errors import BlockError, CheckpointError
from test_families import ROWS, models  # noqa: F401 - a fixture

ARCH = {
    "llama": "LLAMA",
    "mistral": "LLAMA",
    "qwen2": "QWEN2",
    "qwen3": "QWEN3",
    "gemma": "GEMMA",
    "gemma2": "GEMMA2",
    "gemma3_text": "GEMMA3",
    "phi": "PHI2",
    "phi3": "PHI3",
    "olmo2": "OLMO2",
    "granite": "GRANITE",
    "smollm3": "SMOLLM3",
    "gpt2": "GPT2",
    "gpt_neox": "GPTNEOX",
    "falcon": "FALCON",
    "bloom": "BLOOM",
    "mpt": "MPT",
}
PERMUTED = {"LLAMA", "GRANITE", "SMOLLM3"}
# What GGUF cannot say: llama.cpp has no switch for it, or always takes the other way.
UNSAYABLE = {
    "gemma2-uncapped", "gpt2-unscaled", "gpt2-by-layer", "falcon-rw", "bloom-after-norm", "mpt-clipped", "gemma2",
    "gemma3", "granite-biases",
}  # fmt: skip
NAMES = [n for n, (model_type, _) in ROWS.items() if model_type in ARCH and n not in UNSAYABLE]


def convert(name: str, value: Tensor, arch: str, config: Any) -> Tensor:
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    if arch in PERMUTED and ("q_proj" in name or "k_proj" in name):
        count = heads if "q_proj" in name else kv_heads
        return value.reshape(count, 2, -1, *value.shape[1:]).transpose(1, 2).reshape(value.shape)
    if arch.startswith("GEMMA") and name.endswith("norm.weight"):
        return value + 1
    if arch in ("GPTNEOX", "BLOOM") and "query_key_value" in name:
        split = value.reshape(heads, 3, -1, *value.shape[1:])
        return torch.cat([split[:, i].reshape(-1, *value.shape[1:]) for i in range(3)])
    if arch == "FALCON" and "query_key_value" in name:
        groups = config.num_kv_heads if config.new_decoder_architecture else (1 if config.multi_query else heads)
        split = value.reshape(groups, heads // groups + 2, -1, *value.shape[1:])
        parts = (split[:, :-2], split[:, -2], split[:, -1])
        return torch.cat([p.reshape(-1, *value.shape[1:]) for p in parts])
    if arch == "GPT2" and value.dim() == 2 and ".c_" in name:
        return value.t().contiguous()
    return value


def write(path: Path, model: Any, arch: str, tensors_a_part: int = 0) -> None:
    config = model.config
    name = gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH[arch]]
    writer = gguf.GGUFWriter(path, name, split_max_tensors=tensors_a_part)
    heads = config.num_attention_heads
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(3)
    writer.add_head_count(heads)
    strip = "transformer." if arch == "BLOOM" else ""
    state = {n.removeprefix(strip): t for n, t in model.state_dict().items()}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch], 3)
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is not None and target.startswith(("blk.", "output_norm")):
            found[target] = convert(name, value.detach(), arch, config)
    kv = getattr(config, "num_key_value_heads", None) or heads
    if arch == "FALCON":
        kv = config.num_kv_heads if config.new_decoder_architecture else 1
    writer.add_head_count_kv(kv)
    if width := getattr(config, "head_dim", None):
        writer.add_key_length(width)
    ups = found["blk.0.ffn_up.weight"].shape[0]
    writer.add_feed_forward_length(ups // 2 if arch == "PHI3" else ups)
    eps = next(
        getattr(config, k) for k in ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon") if hasattr(config, k)
    )
    rms = hasattr(config, "rms_norm_eps")
    (writer.add_layer_norm_rms_eps if rms else writer.add_layer_norm_eps)(eps)
    if arch == "GPTNEOX":
        writer.add_parallel_residual(config.use_parallel_residual)
    if arch == "GRANITE":
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    for name, value in found.items():
        writer.add_tensor(name, np.ascontiguousarray(value.numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("name", NAMES)
def test_gguf_and_hugging_face_files_give_the_same_block(models, name: str, tmp_path: Path) -> None:  # noqa: F811
    folder, model = models[name]
    write(tmp_path / "m.gguf", model, ARCH[ROWS[name][0]])
    x = torch.randn(2, 5, 32)
    for layer, final_norm in ((1, "none"), (-1, "pretrained"), ((0, 1), "unit")):
        theirs = load_block(str(folder), layer, final_norm=final_norm)
        mine = load_block(str(tmp_path / "m.gguf"), layer, final_norm=final_norm)
        assert torch.allclose(mine(x), theirs(x), rtol=1e-5, atol=1e-5)
        if not name.startswith("gemma"):  # one was added and subtracted again, which rounds
            assert mine.provenance.tensors == theirs.provenance.tensors


def test_gemma_scales_and_caps_come_from_the_metadata(models, tmp_path: Path) -> None:  # noqa: F811
    for name, cap in (("gemma2", 50.0), ("gemma3", None)):
        write(tmp_path / f"{name}.gguf", models[name][1], ARCH[ROWS[name][0]])
        config = load_block(str(tmp_path / f"{name}.gguf")).config
        assert config.attention_scales == (16**-0.5,)
        assert config.logit_softcap == cap
        assert (config.norm, config.norm_place) == ("rms_plus_one", "sandwich")


def test_an_architecture_without_gguf_says_so(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "opt")
    writer.add_block_count(3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(BlockError, match="not read from GGUF"):
        load_block(str(tmp_path / "m.gguf"))


def test_a_model_in_parts_is_one_model(models, tmp_path: Path) -> None:  # noqa: F811
    folder, model = models["llama"]
    write(tmp_path / "m.gguf", model, "LLAMA", tensors_a_part=8)
    parts = sorted(tmp_path.glob("m-*.gguf"))
    assert [p.name for p in parts] == [f"m-0000{i}-of-00004.gguf" for i in range(1, 5)]
    expected = load_block(str(folder), -1).provenance
    for source in (parts[0], parts[2], tmp_path):
        assert load_block(str(source), -1).provenance.tensors == expected.tensors
    parts[3].unlink()
    with pytest.raises(CheckpointError, match=r"lacks m-00004-of-00004\.gguf"):
        load_block(str(parts[0]))
    shutil.copy(parts[1], tmp_path / "alone.gguf")
    with pytest.raises(CheckpointError, match="one of 4 parts"):
        load_block(str(tmp_path / "alone.gguf"))


@pytest.mark.parametrize("kind", sorted(gguf.quants._type_traits, key=lambda k: k.name), ids=lambda k: k.name)
def test_every_quantisation_of_the_gguf_package_is_read(kind: gguf.GGMLQuantizationType, tmp_path: Path) -> None:
    """Row by row as the whole: enough rows that several pieces are dequantised one after another."""
    per_block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    rows, columns = 700, 8 * max(256, per_block)
    raw = np.random.default_rng(0).integers(0, 64, (rows, columns // per_block * block_bytes), dtype=np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("blk.0.ffn_up.weight", raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    read = open_checkpoint(str(tmp_path / "m.gguf")).read("blk.0.ffn_up.weight")
    with np.errstate(all="ignore"):
        expected = torch.from_numpy(gguf.quants.dequantize(raw, kind)).float()
    assert read.shape == (rows, columns)
    assert torch.equal(read.float().nan_to_num(), expected.nan_to_num())
