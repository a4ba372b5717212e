"""LLM files: what is read is what was written, and every damaged file is an error with a name."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lmgraft
from lmgraft.checkpoint import NameMap, open_checkpoint, read_tensors, tensor_digest
from lmgraft.checkpoint.gguf_file import GgufCheckpoint
from lmgraft.checkpoint.safetensors_file import SafetensorsCheckpoint
from lmgraft.errors import BlockError, CheckpointError, LmgraftError, SourceError
from tiny import TINY_LLAMA, relative_error

MakeGguf = Callable[..., Path]
LAYERS = TINY_LLAMA["num_hidden_layers"]


@pytest.fixture
def folder(llama_folder: Path, tmp_path: Path) -> Path:
    """A copy of `llama_folder` to spoil."""
    return Path(shutil.copytree(llama_folder, tmp_path / "model"))


def edit_json(file: Path, **changes: Any) -> None:
    """Set keys of a JSON object; None removes one."""
    value = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in value.items() if v is not None}))


def edit_weights(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def in_shards(folder: Path, tensors_each: int = 7) -> Path:
    """Split model.safetensors as Hugging Face does; returns the index."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    chunks = [names[i : i + tensors_each] for i in range(0, len(names), tensors_each)]
    weight_map = {}
    for number, chunk in enumerate(chunks, 1):
        shard = f"model-{number:05d}-of-{len(chunks):05d}.safetensors"
        save_file({n: state[n] for n in chunk}, folder / shard)
        weight_map |= dict.fromkeys(chunk, shard)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


class TestGgufValues:
    @pytest.mark.parametrize("quantization", ["F32", "F16", "BF16", "Q8_0", "Q4_1", "Q4_0", "Q5_1"])
    def test_read_equals_what_was_written(
        self, make_gguf: MakeGguf, llama_state: dict[str, Tensor], quantization: str
    ) -> None:
        checkpoint = open_checkpoint(str(make_gguf(quantization=quantization)))
        written = llama_state["model.layers.1.mlp.down_proj.weight"]
        name = "blk.1.ffn_down.weight"
        kind = GGMLQuantizationType[quantization]
        expected = gguf.quants.dequantize(gguf.quants.quantize(written.numpy(), kind), kind)
        found = checkpoint.read(name)
        assert found.dtype == {"F16": torch.float16, "BF16": torch.bfloat16}.get(quantization, torch.float32)
        assert torch.equal(found.float(), torch.from_numpy(np.ascontiguousarray(expected)))
        assert relative_error(found, written) <= {"F32": 0.0, "F16": 1e-3, "BF16": 1e-2, "Q8_0": 0.02}.get(
            quantization, 0.15
        )
        assert checkpoint.dtype(name) == quantization
        assert checkpoint.shape(name) == tuple(written.shape) == (32, 64)
        assert checkpoint.nbytes(name) == gguf.quants.quantize(written.numpy(), kind).nbytes
        norm = checkpoint.read("blk.1.attn_norm.weight")
        assert torch.equal(norm, llama_state["model.layers.1.input_layernorm.weight"])

    def test_mixed_types_as_real_files_have(self, make_gguf: MakeGguf, llama_folder: Path) -> None:
        path = make_gguf(quantization={"attn_q.weight": "Q8_0", "ffn_down.weight": "F16"})
        block = lmgraft.load_block(str(path))
        reference = lmgraft.load_block(str(llama_folder))
        assert block.provenance.file_dtypes == ("F16", "F32", "Q8_0")
        (found,), _ = block.tensors()
        (expected,), _ = reference.tensors()
        assert found["mlp.down.weight"].dtype == torch.float16
        for name, tensor in found.items():
            tolerance = {"attention.q.weight": 0.02, "mlp.down.weight": 1e-3}.get(name, 0.0)
            assert relative_error(tensor, expected[name]) <= tolerance

    @pytest.mark.parametrize("layer", [0, -1, (0, 1, 2)])
    @pytest.mark.parametrize("final_norm", ["unit", "pretrained"])
    def test_same_weights_have_the_same_digest_in_both_formats(
        self, make_gguf: MakeGguf, llama_folder: Path, layer: int | tuple[int, ...], final_norm: Any
    ) -> None:
        ours = lmgraft.load_block(str(make_gguf()), layer, final_norm=final_norm).provenance
        theirs = lmgraft.load_block(str(llama_folder), layer, final_norm=final_norm).provenance
        assert ours.tensors == theirs.tensors
        assert ours.digest == theirs.digest

    def test_the_permutation_is_really_there(self, make_gguf: MakeGguf, llama_state: dict[str, Tensor]) -> None:
        raw = open_checkpoint(str(make_gguf())).read("blk.0.attn_q.weight")
        written = llama_state["model.layers.0.self_attn.q_proj.weight"]
        assert not torch.equal(raw, written)
        # Head 0, 8 rows: llama.cpp interleaves row i with row i + 4.
        assert torch.equal(raw[:8], written[[0, 4, 1, 5, 2, 6, 3, 7]])

    def test_biases_are_found_and_permuted_along(
        self, make_gguf: MakeGguf, folder: Path, llama_state: dict[str, Tensor]
    ) -> None:
        projections = [n for n in llama_state if n.startswith("model.layers") and "_proj" in n]
        biases = {n.removesuffix("weight") + "bias": torch.randn(llama_state[n].shape[0]) for n in projections}
        edit_weights(folder, lambda state: state.update(biases))
        edit_json(folder / "config.json", attention_bias=True, mlp_bias=True)
        theirs = lmgraft.load_block(str(folder))
        ours = lmgraft.load_block(str(make_gguf(state=llama_state | biases)))
        assert theirs.config.qkv_bias
        assert theirs.config.output_bias
        assert theirs.config.mlp_bias
        assert ours.provenance.digest == theirs.provenance.digest

    def test_metadata(self, make_gguf: MakeGguf) -> None:
        """Strings of the vocabulary are skipped; everything behind them is still found."""
        checkpoint = open_checkpoint(str(make_gguf()))
        assert checkpoint.config["tokenizer.ggml.tokens"] is None
        assert checkpoint.config["tokenizer.ggml.token_type"] == [1] * TINY_LLAMA["vocab_size"]
        assert checkpoint.config["tokenizer.ggml.model"] == "gpt2"
        assert checkpoint.config["llama.attention.head_count_kv"] == 2
        assert checkpoint.licence == "apache-2.0"
        assert checkpoint.style == "gguf"

    def test_inspect(self, make_gguf: MakeGguf, llama_folder: Path) -> None:
        path = make_gguf(quantization="Q8_0")
        report = lmgraft.inspect_llm(str(path), -2)
        assert (report.family, report.num_layers, report.layer) == ("llama", LAYERS, LAYERS - 2)
        assert report.file_dtypes == ("F32", "Q8_0")
        matrices = report.config.num_params() - 2 * 32
        assert report.layer_bytes == matrices // 32 * 34 + 2 * 32 * 4
        assert report.licence == "apache-2.0"
        assert report.metadata["general.name"] == "tiny"
        assert lmgraft.inspect_llm(str(llama_folder)).layer_bytes == report.config.num_params() * 4


class TestOnlyWhatIsAsked:
    @pytest.mark.parametrize("form", ["gguf", "hf"])
    def test_reads_one_layer(
        self, make_gguf: MakeGguf, llama_folder: Path, monkeypatch: pytest.MonkeyPatch, form: str
    ) -> None:
        cls = GgufCheckpoint if form == "gguf" else SafetensorsCheckpoint
        source = str(make_gguf() if form == "gguf" else llama_folder)
        prefix = "blk.1." if form == "gguf" else "model.layers.1."
        names: list[str] = []
        original = cls.read

        def counted(self: Any, name: str) -> Tensor:
            names.append(name)
            return original(self, name)

        monkeypatch.setattr(cls, "read", counted)
        lmgraft.inspect_llm(source)
        assert names == []
        lmgraft.load_block(source, 1)
        assert len(names) == len(set(names)) == 9
        assert all(n.startswith(prefix) for n in names)
        names.clear()
        lmgraft.load_block(source, (0, 1), final_norm="pretrained")
        assert len(names) == len(set(names)) == 19


class TestSafetensors:
    def test_shards_with_an_index(self, folder: Path, tiny_block: lmgraft.FrozenBlock) -> None:
        in_shards(folder)
        assert len(list(folder.glob("*.safetensors"))) > 2
        assert lmgraft.load_block(str(folder)).provenance.digest == tiny_block.provenance.digest

    def test_single_file_with_its_config(self, folder: Path, tiny_block: lmgraft.FrozenBlock) -> None:
        block = lmgraft.load_block(str(folder / "model.safetensors"))
        assert block.provenance.digest == tiny_block.provenance.digest

    def test_bfloat16_stays_and_has_the_digest_of_its_float32_copy(self, folder: Path, tmp_path: Path) -> None:
        edit_weights(folder, lambda s: s.update({n: t.bfloat16() for n, t in s.items()}))
        narrow = lmgraft.load_block(str(folder))
        assert {p.dtype for p in narrow.parameters()} == {torch.bfloat16}
        assert narrow.provenance.file_dtypes == ("BF16",)
        edit_weights(folder, lambda s: s.update({n: t.float() for n, t in s.items()}))
        assert lmgraft.load_block(str(folder)).provenance.digest == narrow.provenance.digest

    def test_inv_freq_of_old_checkpoints_is_dropped(self, folder: Path, tiny_block: lmgraft.FrozenBlock) -> None:
        key = "model.layers.2.self_attn.rotary_emb.inv_freq"
        edit_weights(folder, lambda s: s.update({key: torch.ones(4)}))
        assert lmgraft.load_block(str(folder)).provenance.digest == tiny_block.provenance.digest

    def test_missing_shard(self, folder: Path) -> None:
        in_shards(folder)
        lost = sorted(folder.glob("*.safetensors"))[1]
        lost.unlink()
        with pytest.raises(CheckpointError, match=f"{lost.name} is missing"):
            lmgraft.load_block(str(folder))

    def test_index_promises_what_a_shard_lacks(self, folder: Path) -> None:
        index = in_shards(folder)
        weight_map = json.loads(index.read_text())["weight_map"]
        weight_map["model.layers.9.extra"] = next(iter(weight_map.values()))
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(CheckpointError, match=r"lacks 1 tensors that its index promises, first model\.layers\.9"):
            lmgraft.load_block(str(folder))

    @pytest.mark.parametrize("target", ["../outside.safetensors", "/etc/passwd", "sub/x.safetensors", "", ".."])
    def test_index_pointing_outside_its_folder(self, folder: Path, target: str) -> None:
        index = in_shards(folder)
        weight_map = json.loads(index.read_text())["weight_map"]
        weight_map["model.norm.weight"] = target
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(CheckpointError, match="points outside its folder"):
            lmgraft.load_block(str(folder))

    @pytest.mark.parametrize(
        "text", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 3}}', '{"weight_map": {"a": null}}', "{"]
    )
    def test_index_that_is_none(self, folder: Path, text: str) -> None:
        (folder / "model.safetensors.index.json").write_text(text)
        with pytest.raises(CheckpointError, match="is not a weight index"):
            lmgraft.load_block(str(folder))

    def test_index_that_is_a_pointer(self, folder: Path) -> None:
        (folder / "model.safetensors.index.json").write_text("version https://git-lfs.github.com/spec/v1\n")
        with pytest.raises(CheckpointError, match=r"index\.json is a git-lfs pointer"):
            lmgraft.load_block(str(folder))

    def test_no_config(self, folder: Path) -> None:
        (folder / "config.json").unlink()
        with pytest.raises(SourceError, match=r"has no config\.json"):
            lmgraft.load_block(str(folder))

    @pytest.mark.parametrize("text", ["", "{", "[1]", '"llama"'])
    def test_damaged_config(self, folder: Path, text: str) -> None:
        (folder / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"config\.json (is not readable JSON|holds no JSON object)"):
            lmgraft.load_block(str(folder))

    def test_no_weights(self, folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        with pytest.raises(SourceError, match=r"holds no \.safetensors file"):
            lmgraft.load_block(str(folder))

    @pytest.mark.parametrize("keep", [0, 4, 8, 200, 0.5, 0.999])
    def test_truncated(self, folder: Path, keep: float) -> None:
        file = folder / "model.safetensors"
        data = file.read_bytes()
        file.write_bytes(data[: int(keep if keep >= 1 else keep * len(data))])
        with pytest.raises(CheckpointError, match="cut short or damaged"):
            lmgraft.load_block(str(folder))

    def test_integers_without_scales_are_refused(self, folder: Path) -> None:
        key = "model.layers.2.mlp.up_proj.weight"
        edit_weights(folder, lambda s: s.update({key: torch.ones(64, 32, dtype=torch.int8)}))
        with pytest.raises(CheckpointError, match="stored as I8, and no scales lie beside it"):
            lmgraft.load_block(str(folder))


class TestDoesNotFit:
    def test_everything_wrong_is_listed_at_once(self, folder: Path) -> None:
        prefix = "model.layers.2."

        def change(state: dict[str, Tensor]) -> None:
            del state[prefix + "mlp.gate_proj.weight"]
            del state[prefix + "input_layernorm.weight"]
            state[prefix + "self_attn.q_norm.weight"] = torch.ones(8)
            state[prefix + "self_attn.k_proj.weight"] = torch.ones(8, 32)

        edit_weights(folder, change)
        with pytest.raises(CheckpointError) as caught:
            lmgraft.load_block(str(folder))
        for part in (
            f"missing {prefix}mlp.gate_proj.weight",
            f"missing {prefix}input_layernorm.weight",
            f"unknown {prefix}self_attn.q_norm.weight",
            f"{prefix}self_attn.k_proj.weight has shape (8, 32), the config says (16, 32)",
        ):
            assert part in str(caught.value)
        # The other layers are whole and still load.
        assert lmgraft.load_block(str(folder), 0).provenance.layers == (0,)

    def test_bias_that_the_config_does_not_know(self, folder: Path) -> None:
        key = "model.layers.2.self_attn.q_proj.bias"
        edit_weights(folder, lambda s: s.update({key: torch.ones(32)}))
        with pytest.raises(CheckpointError, match=r"unknown model\.layers\.2\.self_attn\.q_proj\.bias"):
            lmgraft.load_block(str(folder))

    def test_layer_1_is_not_layer_10(self, folder: Path, tiny_block: lmgraft.FrozenBlock) -> None:
        edit_weights(folder, lambda s: s.update({"model.layers.20.self_attn.q_norm.weight": torch.ones(8)}))
        assert lmgraft.load_block(str(folder)).provenance.digest == tiny_block.provenance.digest

    def test_a_wish_without_a_rule(self, llama_folder: Path) -> None:
        names = NameMap(layer_prefix="model.layers.{layer}.", tensors={}, dropped=(".*",))
        with pytest.raises(CheckpointError, match="no rule for side"):
            read_tensors(open_checkpoint(str(llama_folder)), names, 0, {"side": (1,)})

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
    def test_values_that_are_no_numbers(self, folder: Path, bad: float) -> None:
        def change(state: dict[str, Tensor]) -> None:
            state["model.layers.2.mlp.up_proj.weight"][3, :2] = bad

        edit_weights(folder, change)
        with pytest.raises(CheckpointError, match=r"up_proj\.weight in .* holds 2 values that are NaN or infinite"):
            lmgraft.load_block(str(folder))
        assert lmgraft.load_block(str(folder), 1).provenance.layers == (1,)

    def test_nan_in_gguf(self, make_gguf: MakeGguf, llama_state: dict[str, Tensor]) -> None:
        state = {n: t.clone() for n, t in llama_state.items()}
        state["model.layers.2.mlp.up_proj.weight"][0, 0] = float("nan")
        with pytest.raises(CheckpointError, match=r"blk\.2\.ffn_up\.weight in .* holds 1 values"):
            lmgraft.load_block(str(make_gguf(state=state)))

    def test_architecture_of_other_names(self, folder: Path) -> None:
        pytest.importorskip("transformers", minversion="5.24")
        edit_json(folder / "config.json", model_type="bert")
        with pytest.raises(CheckpointError, match="does not hold the layer its config describes"):
            lmgraft.load_block(str(folder))
        with pytest.raises(CheckpointError, match="does not hold layer 2"):
            lmgraft.inspect_llm(str(folder))

    @pytest.mark.parametrize("model_type", ["lama", 3, None])
    def test_wrong_architecture(self, folder: Path, model_type: Any) -> None:
        pytest.importorskip("transformers", minversion="5.24")
        edit_json(folder / "config.json", model_type=model_type)
        with pytest.raises(BlockError) as caught:
            lmgraft.load_block(str(folder))
        assert repr(model_type) in str(caught.value)
        assert "knows no model_type" in str(caught.value) or "does not say what it is" in str(caught.value)

    def test_wrong_gguf_architecture(self, make_gguf: MakeGguf) -> None:
        with pytest.raises(BlockError, match="the LLM family 'qwen9' is not supported"):
            lmgraft.load_block(str(make_gguf(architecture="qwen9")))

    @pytest.mark.parametrize("key", ["hidden_size", "num_attention_heads", "intermediate_size", "num_hidden_layers"])
    def test_config_without_a_key(self, folder: Path, key: str) -> None:
        edit_json(folder / "config.json", **{key: None})
        with pytest.raises(BlockError, match=f"lacks '{key}'"):
            lmgraft.load_block(str(folder))

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("hidden_size", "32"),
            ("hidden_size", 0),
            ("num_attention_heads", 0),
            ("num_attention_heads", "4"),
            ("num_key_value_heads", 3),
            ("num_key_value_heads", [2, 2]),
            ("head_dim", -8),
            ("num_hidden_layers", "3"),
            ("num_hidden_layers", 0),
            ("num_hidden_layers", 2.5),
            ("hidden_act", "xielu"),
            ("hidden_act", ["silu"]),
            ("rms_norm_eps", "tiny"),
            ("rms_norm_eps", -1.0),
            ("attention_bias", "no"),
        ],
    )
    def test_config_with_a_senseless_value(self, folder: Path, key: str, value: Any) -> None:
        edit_json(folder / "config.json", head_dim=None)
        edit_json(folder / "config.json", **{key: value})
        with pytest.raises((BlockError, CheckpointError)):
            lmgraft.load_block(str(folder))

    @pytest.mark.parametrize("layer", [3, -4, 99, (0, 3)])
    def test_layer_out_of_range(self, llama_folder: Path, layer: Any) -> None:
        with pytest.raises(BlockError, match="this model has 3 layers"):
            lmgraft.load_block(str(llama_folder), layer)

    @pytest.mark.parametrize("layer", [(0, 2), (1, 0), (1, 1), (), (2, 0)])
    def test_layers_that_are_not_consecutive(self, llama_folder: Path, layer: tuple[int, ...]) -> None:
        with pytest.raises(BlockError, match="not consecutive"):
            lmgraft.load_block(str(llama_folder), layer)

    @pytest.mark.parametrize("layer", ["last", "-1", 1.0, None, True, ("0", "1")])
    def test_layers_that_are_no_index(self, tiny_vit: nn.Module, llama_folder: Path, layer: Any) -> None:
        for call in (lmgraft.load_block, lmgraft.inspect_llm, partial(lmgraft.graft, tiny_vit)):
            with pytest.raises(BlockError, match="is no index of a layer"):
                call(str(llama_folder), layer)

    @pytest.mark.parametrize("llm", [nn.Linear(2, 2), 7, None, b"smollm2-135m"])
    def test_what_is_neither_source_nor_block(self, tiny_vit: nn.Module, llm: Any) -> None:
        for call in (lmgraft.load_block, lmgraft.inspect_llm, partial(lmgraft.graft, tiny_vit)):
            with pytest.raises(BlockError, match="neither the source of a block nor a block"):
                call(llm)

    def test_a_path_is_a_source(self, tiny_vit: nn.Module, llama_folder: Path) -> None:
        assert lmgraft.graft(tiny_vit, llama_folder).graft.config.llm == str(llama_folder)

    def test_negative_layers_make_a_stack(self, llama_folder: Path) -> None:
        assert lmgraft.load_block(str(llama_folder), (-2, -1)).provenance.layers == (1, 2)


class TestSources:
    def test_no_such_path(self) -> None:
        with pytest.raises(SourceError, match="is not there"):
            open_checkpoint("./nowhere/model.gguf")

    def test_near_miss_of_a_known_name(self) -> None:
        with pytest.raises(SourceError, match="Did you mean 'smollm2-135m'"):
            open_checkpoint("smollm-135m")

    def test_hub_id_says_how_to_get_it(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
        with pytest.raises(SourceError) as caught:
            open_checkpoint("huggyllama/llama-7b")
        assert "is no local path" in caught.value.message
        assert "hf download huggyllama/llama-7b" in caught.value.remedy

    def test_revision_of_a_folder(self, llama_folder: Path) -> None:
        with pytest.raises(SourceError, match="no Hub repository"):
            lmgraft.load_block(str(llama_folder), revision="main")

    @pytest.mark.parametrize("name", ["model.onnx", "notes.txt", "weights"])
    def test_file_of_another_kind(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(SourceError, match="not a weight file lmgraft reads"):
            open_checkpoint(str(tmp_path / name))

    def test_empty_folder(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match="is empty"):
            open_checkpoint(str(tmp_path))

    def test_folder_named_like_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "model.gguf").mkdir()
        with pytest.raises(SourceError):
            open_checkpoint(str(tmp_path / "model.gguf"))

    def test_home_is_expanded(self, llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(llama_folder.parent))
        assert open_checkpoint(f"~/{llama_folder.name}").label == str(llama_folder)


class TestDamagedGguf:
    def test_empty(self, tmp_path: Path) -> None:
        (tmp_path / "empty.gguf").touch()
        with pytest.raises(CheckpointError, match=r"empty\.gguf is empty"):
            open_checkpoint(str(tmp_path / "empty.gguf"))

    @pytest.mark.parametrize("data", [b"not found", b"GG", b"PK\x03\x04" + bytes(40)])
    def test_no_gguf(self, tmp_path: Path, data: bytes) -> None:
        (tmp_path / "x.gguf").write_bytes(data)
        with pytest.raises(CheckpointError, match="is no GGUF file: it begins with"):
            open_checkpoint(str(tmp_path / "x.gguf"))

    @pytest.mark.parametrize("version", [0, 1, 4, 3 << 24])
    def test_version(self, make_gguf: MakeGguf, version: int) -> None:
        path = make_gguf()
        data = path.read_bytes()
        path.write_bytes(data[:4] + struct.pack("<I", version) + data[8:])
        with pytest.raises(CheckpointError, match=f"has GGUF version {version}"):
            open_checkpoint(str(path))

    @pytest.mark.parametrize("keep", [4, 7, 12, 24, 30, 60, 300, 900, 1500, 0.3, 0.6, 0.99, -1])
    def test_truncated(self, make_gguf: MakeGguf, keep: float) -> None:
        path = make_gguf()
        data = path.read_bytes()
        size = int(keep * len(data)) if 0 < keep < 1 else int(keep)
        path.write_bytes(data[:size])
        with pytest.raises(CheckpointError, match="cut short"):
            open_checkpoint(str(path))

    def test_cut_short_after_opening(self, make_gguf: MakeGguf) -> None:
        path = make_gguf()
        checkpoint = open_checkpoint(str(path))
        path.write_bytes(path.read_bytes()[:4096])
        with pytest.raises(CheckpointError, match="is cut short at byte 4096"):
            checkpoint.read("output.weight")

    def test_a_type_that_cannot_be_dequantised(self, make_gguf: MakeGguf) -> None:
        _, size = gguf.GGML_QUANT_SIZES[GGMLQuantizationType.Q8_K]

        def change(writer: gguf.GGUFWriter) -> None:
            writer.add_tensor("odd", np.zeros((2, size), np.uint8), raw_dtype=GGMLQuantizationType.Q8_K)

        checkpoint = open_checkpoint(str(make_gguf(change=change)))
        with pytest.raises(CheckpointError, match="quantised as Q8_K, which cannot be read"):
            checkpoint.read("odd")

    @pytest.mark.parametrize("quantization", ["Q8_0", "Q4_1"])
    def test_a_damaged_scale(self, make_gguf: MakeGguf, quantization: str) -> None:
        """An infinite scale of a quantised block is found without a warning from numpy."""
        path = make_gguf(quantization=quantization)
        checkpoint = open_checkpoint(str(path))
        assert isinstance(checkpoint, GgufCheckpoint)
        data = bytearray(path.read_bytes())
        at = checkpoint._tensors["blk.2.ffn_up.weight"].offset
        data[at : at + 2] = np.float16(np.inf).tobytes()
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=r"blk\.2\.ffn_up\.weight in .* NaN or infinite"):
            lmgraft.load_block(str(path))

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("llama.attention.head_count", 0),
            ("llama.block_count", 0),
            ("llama.embedding_length", 33),
            ("general.alignment", 0),
            ("general.alignment", 24),
        ],
    )
    def test_senseless_number(self, make_gguf: MakeGguf, key: str, value: int) -> None:
        def change(writer: gguf.GGUFWriter) -> None:
            writer.kv_data[0].pop(key, None)
            writer.add_uint32(key, value)

        with pytest.raises(LmgraftError):
            lmgraft.load_block(str(make_gguf(change=change)))

    @pytest.mark.parametrize(
        "key",
        [
            "general.architecture",
            "general.alignment",
            "general.license",
            "llama.block_count",
            "llama.attention.head_count",
            "llama.attention.head_count_kv",
            "llama.attention.layer_norm_rms_epsilon",
            "llama.attention.key_length",
        ],
    )
    @pytest.mark.parametrize("kind", ["string", "array", "strings", "bool", "nan"])
    def test_metadata_of_another_type(self, make_gguf: MakeGguf, key: str, kind: str) -> None:
        """Whatever type a key has, the answer is a block or an error with a name."""

        def change(writer: gguf.GGUFWriter) -> None:
            writer.kv_data[0].pop(key, None)
            if kind == "string":
                writer.add_string(key, "text")
            elif kind == "array":
                writer.add_array(key, [4, 4, 4])
            elif kind == "strings":
                writer.add_array(key, ["a", "b"])
            elif kind == "bool":
                writer.add_bool(key, True)
            else:
                writer.add_float32(key, float("nan"))

        only_own_errors(make_gguf(change=change))


def only_own_errors(path: Path) -> bool:
    """Load everything; True if it loads, False on an `LmgraftError`, any other error escapes."""
    try:
        lmgraft.inspect_llm(str(path))
        lmgraft.load_block(str(path), (0, 1, 2), final_norm="pretrained")
        checkpoint = open_checkpoint(str(path))
        for name in list(checkpoint.names()):
            checkpoint.read(name)
    except LmgraftError:
        return False
    return True


FUZZ = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
EDITS = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]) | st.integers(0, 255)),
    min_size=1,
    max_size=6,
)
CUT = st.none() | st.floats(0, 1)


class TestFuzz:
    """Random bytes in a header are met by errors with a name, never by another exception."""

    @FUZZ
    @given(edits=EDITS, cut=CUT)
    def test_gguf_header(self, make_gguf: MakeGguf, edits: list[tuple[float, int]], cut: float | None) -> None:
        path = make_gguf("whole.gguf", quantization={"ffn_up.weight": "Q8_0", "attn_q.weight": "F16"})
        data = bytearray(path.read_bytes())
        names_end = data.rfind(b"output_norm.weight") + 64
        header = min(names_end, len(data))
        for where, value in edits:
            data[4 + int(where * (header - 4))] = value
        spoilt = path.with_name("spoilt.gguf")
        spoilt.write_bytes(data if cut is None else data[: int(cut * header)])
        only_own_errors(spoilt)

    @FUZZ
    @given(
        where=st.floats(0, 1, exclude_max=True),
        number=st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1]),
    )
    def test_gguf_lengths(self, make_gguf: MakeGguf, where: float, number: int) -> None:
        """Eight bytes at a time: lengths, counts and offsets that overflow."""
        path = make_gguf("whole.gguf")
        data = bytearray(path.read_bytes())
        header = data.rfind(b"output_norm.weight") + 64
        at = int(where * header)
        data[at : at + 8] = struct.pack("<Q", number)
        spoilt = path.with_name("spoilt.gguf")
        spoilt.write_bytes(data)
        only_own_errors(spoilt)

    @FUZZ
    @given(edits=EDITS, cut=CUT)
    def test_safetensors_header(
        self, llama_folder: Path, tmp_path: Path, edits: list[tuple[float, int]], cut: float | None
    ) -> None:
        data = bytearray((llama_folder / "model.safetensors").read_bytes())
        header = 8 + int.from_bytes(data[:8], "little")
        for where, value in edits:
            data[int(where * header)] = value
        spoilt = tmp_path / "spoilt"
        spoilt.mkdir(exist_ok=True)
        shutil.copy(llama_folder / "config.json", spoilt)
        (spoilt / "model.safetensors").write_bytes(data if cut is None else data[: int(cut * len(data))])
        only_own_errors(spoilt)

    @FUZZ
    @given(
        key=st.sampled_from([*sorted(TINY_LLAMA), "head_dim", "hidden_act", "attention_bias", "model_type"]),
        value=st.one_of(
            st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just([]), st.just({})
        ),
    )
    def test_config_values(self, llama_folder: Path, tmp_path: Path, key: str, value: Any) -> None:
        spoilt = tmp_path / "spoilt"
        if not spoilt.exists():
            shutil.copytree(llama_folder, spoilt)
        config = json.loads((llama_folder / "config.json").read_text())
        (spoilt / "config.json").write_text(json.dumps(config | {key: value}))
        only_own_errors(spoilt)


class TestDigest:
    def test_by_value_not_by_storage(self) -> None:
        x = torch.randn(6, 5).bfloat16()
        assert tensor_digest(x) == tensor_digest(x.float()) == tensor_digest(x.t().contiguous().t())

    def test_shape_and_every_value_count(self) -> None:
        x = torch.randn(6, 5)
        other = x.clone()
        other[-1, -1] += 1e-6
        assert len({tensor_digest(t) for t in (x, x.reshape(5, 6), other)}) == 3

    def test_long_tensors(self, monkeypatch: pytest.MonkeyPatch) -> None:
        x = torch.randn(1000)
        whole = tensor_digest(x)
        monkeypatch.setattr("lmgraft.checkpoint.digest._CHUNK", 7)
        assert tensor_digest(x) == whole
