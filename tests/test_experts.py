"""Models whose layers differ or hold experts, read by lmgraft's own code: what is routed, refused and named."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

import lmgraft
from lmgraft.checkpoint import Checkpoint, memory
from lmgraft.checkpoint.names import read_finite
from lmgraft.errors import BlockError, CheckpointError
from test_families import GEMMA4, HYBRID, LATENT, LLAMA, SHARED, WIDE
from tiny import randomise_, relative_error


def written(folder: Path, model_type: str, fields: dict[str, Any]) -> str:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **fields))
    randomise_(model, seed=3).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def deepseek(tmp_path_factory: pytest.TempPathFactory) -> str:
    return written(tmp_path_factory.mktemp("deepseek"), "deepseek_v3", LLAMA | LATENT)


def test_only_the_tokens_that_are_read_are_routed(deepseek: str) -> None:
    block = lmgraft.load_block(deepseek)
    routed: list[int] = []
    block.layers[0].mlp.router.register_forward_hook(lambda *call: routed.append(len(call[1][0])))
    x = torch.randn(3, 7, 32)
    assert relative_error(block(x, reads=0), block(x)[:, :1]) <= 1e-5
    assert routed == [3, 21]


def test_latent_attention_forms_no_key_of_a_head(deepseek: str) -> None:
    block = lmgraft.load_block(deepseek)
    k, padded = block.layers[0].attention.split_keys(torch.randn(2, 5, 16)), torch.ones(2, 5, dtype=torch.bool)
    assert k.shape == (2, 1, 5, 16)
    x = torch.randn(2, 5, 32)
    alone = lmgraft.load_block(deepseek).layers[0].attention(x, x, padded)
    assert not alone.any()


def test_an_expert_that_a_shard_lacks_is_named(deepseek: str, tmp_path: Path) -> None:
    state = load_file(Path(deepseek) / "model.safetensors")
    lost = "model.layers.1.mlp.experts.2.up_proj.weight"
    del state[lost]
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((Path(deepseek) / "config.json").read_text())
    with pytest.raises(CheckpointError, match=f"missing {lost}"):
        lmgraft.load_block(str(tmp_path), 1)


def test_scales_of_another_shape_than_an_experts_weight_are_named(deepseek: str, tmp_path: Path) -> None:
    state = load_file(Path(deepseek) / "model.safetensors")
    name = "model.layers.1.mlp.experts.2.up_proj.weight"
    state[name] = state[name].to(torch.float8_e4m3fn)
    state[f"{name}_scale_inv"] = torch.ones(5, 5)
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((Path(deepseek) / "config.json").read_text())
    with pytest.raises(CheckpointError, match=r"experts\.2\.up_proj\.weight.* has shape \(5, 5\)"):
        lmgraft.load_block(str(tmp_path), 1)


def test_layers_of_several_kinds_are_listed_and_chosen_by_number(deepseek: str, tmp_path: Path) -> None:
    assert lmgraft.inspect_llm(deepseek).kinds == ("dense", "experts", "experts")
    assert lmgraft.load_block(deepseek, 0).config.num_experts == 0
    with pytest.raises(BlockError, match="several kinds: 0 dense, 1 experts"):
        lmgraft.load_block(deepseek, (0, 1))
    gemma = written(tmp_path / "gemma", "gemma4_text", WIDE | GEMMA4)
    shapes = [lmgraft.load_block(gemma, layer).config.head_dim for layer in (0, 1)]
    assert shapes == [16, 12]
    with pytest.raises(BlockError, match="several kinds: 0 sliding_attention, 1 full_attention"):
        lmgraft.load_block(gemma, (0, 1))


def test_linear_attention_is_refused_by_number(tmp_path: Path) -> None:
    source = written(tmp_path, "qwen3_5_text", WIDE | HYBRID)
    kinds = ("linear_attention, dense", "full_attention, dense", "full_attention, dense")
    assert lmgraft.inspect_llm(source).kinds == kinds
    with pytest.raises(BlockError, match="layer 0 is linear_attention") as caught:
        lmgraft.load_block(source, 0)
    assert "full attention (1, 2)" in caught.value.remedy
    assert "order='causal'" in caught.value.remedy


def test_a_layer_without_keys_of_its_own_is_refused_by_number(tmp_path: Path) -> None:
    types = ["sliding_attention", "full_attention", "full_attention"]
    source = written(tmp_path, "gemma4_text", WIDE | GEMMA4 | {"num_kv_shared_layers": 1, "layer_types": types})
    with pytest.raises(BlockError, match="layer 2 has no keys and values of its own"):
        lmgraft.load_block(source)
    assert lmgraft.load_block(source, 1)(torch.randn(1, 3, 32)).shape == (1, 3, 32)


@pytest.mark.parametrize("tower", [None, "model.layers"])
def test_what_does_not_fit_into_memory_is_refused_before_it_is_read(
    deepseek: str, monkeypatch: pytest.MonkeyPatch, tower: str | None
) -> None:
    state = load_file(Path(deepseek) / "model.safetensors")
    layer = 4 * sum(t.numel() for n, t in state.items() if n.startswith("model.layers.2."))
    monkeypatch.setattr(memory, "free_memory", lambda: layer)
    monkeypatch.setattr("lmgraft.borrowed.tensors.read_finite", None)
    monkeypatch.setattr("lmgraft.block.reading.read_finite", None)
    with pytest.raises(CheckpointError, match=rf"need [\d,]+ bytes .*{layer:,} .* are free"):
        lmgraft.load_block(deepseek, tower=tower)


@pytest.mark.parametrize("tower", [None, "model.layers"])
def test_experts_are_narrowed_as_they_are_read_and_none_is_kept(
    deepseek: str, monkeypatch: pytest.MonkeyPatch, tower: str | None
) -> None:
    """So the peak is the layer in its target dtype and one tensor as it is read, which is what is counted."""
    room = "lmgraft.borrowed.tensors" if tower else "lmgraft.block.reading"
    alive: list[weakref.ref[torch.UntypedStorage]] = []
    most = 0

    def read(checkpoint: Checkpoint, name: str) -> Tensor:
        nonlocal most
        tensor = read_finite(checkpoint, name)
        held = [storage() for storage in alive]
        most = max(most, sum(storage is not None for storage in held))
        alive.append(weakref.ref(tensor.untyped_storage()))
        return tensor

    counted: list[int] = []
    count = memory.peak_memory
    monkeypatch.setattr(memory, "_BUFFERS", 0)
    monkeypatch.setattr(memory, "peak_memory", lambda *given: counted.append(count(*given)) or counted[-1])
    monkeypatch.setattr(f"{room}.read_finite", read)
    narrow = lmgraft.load_block(deepseek, dtype="bfloat16", tower=tower)
    assert most <= 1
    assert narrow.provenance.digest == lmgraft.load_block(deepseek, tower=tower).provenance.digest
    tensors = narrow.tensors()[0][0].values()
    layer = sum(t.nbytes for t in tensors)
    assert layer < counted[0] <= layer + 4 * max(t.numel() for t in tensors)


def test_free_memory_is_a_number_of_bytes_or_unknown() -> None:
    free = memory.free_memory()
    assert free is None or free > 1 << 20


def test_experts_in_one_tensor_are_those_in_one_each(tmp_path: Path) -> None:
    apart = Path(written(tmp_path / "apart", "qwen3_5_moe_text", WIDE | HYBRID | SHARED))
    state = load_file(apart / "model.safetensors")
    name = "model.layers.1.mlp.experts"
    parts = [[state.pop(f"{name}.{i}.{part}_proj.weight") for part in ("gate", "up", "down")] for i in range(5)]
    state[f"{name}.gate_up_proj"] = torch.stack([torch.cat([gate, up]) for gate, up, _ in parts])
    state[f"{name}.down_proj"] = torch.stack([down for _, _, down in parts])
    whole = tmp_path / "whole"
    whole.mkdir()
    save_file(state, whole / "model.safetensors")
    (whole / "config.json").write_text((apart / "config.json").read_text())
    digests = [lmgraft.load_block(str(folder), 1).provenance.digest for folder in (apart, whole)]
    assert digests[0] == digests[1]


def mxfp4(shape: tuple[int, int, int], seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Blocks and scales of `shape` (experts, outputs, inputs), and the values that they stand for, transposed."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 16, shape, generator=generator)
    exponents = torch.randint(-4, 1, (*shape[:2], shape[2] // 32), generator=generator)
    magnitudes = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    values = magnitudes[codes % 8] * torch.where(codes < 8, 1.0, -1.0)
    values = values * torch.exp2(exponents.float()).repeat_interleave(32, -1)
    pairs = codes.view(*shape[:2], -1, 16, 2)
    blocks = (pairs[..., 0] + 16 * pairs[..., 1]).to(torch.uint8)
    return blocks, (exponents + 127).to(torch.uint8), values.transpose(1, 2).contiguous()


def test_gpt_oss_in_mxfp4_is_the_block_of_the_values_that_it_stands_for(tmp_path: Path) -> None:
    fields = WIDE | {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 64}
    plain = Path(written(tmp_path / "plain", "gpt_oss", fields))
    state, packed = load_file(plain / "model.safetensors"), {}
    for seed, (name, shape) in enumerate({"gate_up_proj": (4, 128, 32), "down_proj": (4, 32, 64)}.items()):
        whole = f"model.layers.1.mlp.experts.{name}"
        packed[f"{whole}_blocks"], packed[f"{whole}_scales"], state[whole] = mxfp4(shape, seed)
    save_file(state, plain / "model.safetensors")
    quantised = tmp_path / "quantised"
    quantised.mkdir()
    config = (plain / "config.json").read_text().rstrip().removesuffix("}")
    (quantised / "config.json").write_text(config + ', "quantization_config": {"quant_method": "mxfp4"}}')
    kept = {n: t for n, t in state.items() if f"{n}_blocks" not in packed}
    save_file(kept | packed, quantised / "model.safetensors")
    digests = [lmgraft.load_block(str(folder), 1).provenance.digest for folder in (plain, quantised)]
    assert digests[0] == digests[1]
