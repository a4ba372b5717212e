"""One layer under whatever name it lies: wrapped, inside a composite, twice; and folders that are no model's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import lmgraft
from lmgraft.block.family import find_family, language_part
from lmgraft.errors import BlockError, CheckpointError, LmgraftError, SourceError
from tiny import needs_torch, random_block

State = dict[str, Tensor]


@pytest.fixture
def folder(llama_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama_folder, tmp_path / "model"))


@pytest.fixture
def rename(folder: Path) -> Callable[..., None]:
    """Give each tensor another name."""

    def change(new: Callable[[str], str], more: State | None = None) -> None:
        state = {new(name): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
        save_file(state | (more or {}), folder / "model.safetensors")

    return change


def configure(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def digest(folder: Path, layer: int = 1) -> str:
    return lmgraft.load_block(str(folder), layer, final_norm="pretrained").provenance.digest


@pytest.mark.parametrize(
    "new",
    [
        lambda n: f"_orig_mod.{n}",
        lambda n: f"module.{n}",
        lambda n: f"module._orig_mod.{n}",
        lambda n: f"base_model.model.{n}",
        lambda n: f"_fsdp_wrapped_module.{n}",
        lambda n: f"language_model.{n}",
        lambda n: f"any.thing.{n}",
        lambda n: n.replace("model.", "model.language_model.", 1),
        lambda n: n.replace("model.", "model.text_model.", 1),
        lambda n: n.removeprefix("model."),
        lambda n: n.replace(".self_attn.", "._orig_mod.self_attn."),
        lambda n: n.replace(".mlp.", "._fsdp_wrapped_module._checkpoint_wrapped_module.mlp."),
        lambda n: n.replace("q_proj.weight", "q_proj.base_layer.weight"),
    ],
)
def test_wrapped(folder: Path, llama_folder: Path, rename: Callable[..., None], new: Callable[[str], str]) -> None:
    rename(new)
    assert digest(folder) == digest(llama_folder)
    assert lmgraft.inspect_llm(str(folder), 1).layer_bytes == lmgraft.inspect_llm(str(llama_folder), 1).layer_bytes


def test_two_candidates_are_both_named(folder: Path, rename: Callable[..., None]) -> None:
    again = {f"teacher.{name}": tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    rename(str, again)
    with pytest.raises(CheckpointError, match=r"there 2 times: under 'model\.' and 'teacher\.model\.'"):
        digest(folder)


def test_the_same_tensor_wrapped_and_not(folder: Path, rename: Callable[..., None]) -> None:
    rename(str, {"model._orig_mod.layers.1.mlp.up_proj.weight": torch.ones(64, 32)})
    with pytest.raises(CheckpointError, match="are the same tensor but for their wrappers"):
        digest(folder)


def test_an_image_tower_and_further_predictors_do_not_count(
    folder: Path, llama_folder: Path, rename: Callable[..., None]
) -> None:
    tower = {
        f"vision_tower.vision_model.encoder.layers.1.self_attn.{part}_proj.weight": torch.ones(8, 8) for part in "qkv"
    }
    beside = {f"mtp.{n.removeprefix('model.')}": t for n, t in load_file(folder / "model.safetensors").items()}
    rename(lambda name: f"language_model.{name}", tower | beside)
    assert digest(folder) == digest(llama_folder)


@pytest.mark.parametrize(("composite", "text"), [("llava", "llama"), ("mistral3", "mistral")])
def test_composites(folder: Path, llama_folder: Path, rename: Callable[..., None], composite: str, text: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({"model_type": composite, "text_config": config | {"model_type": text}, "vision_config": {}})
    )
    rename(lambda name: f"language_model.{name}")
    assert digest(folder) == digest(llama_folder)


def test_llavas_config_leaves_out_defaults() -> None:
    """As llava-1.5-7b-hf has it."""
    text = {"model_type": "llama", "rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "vocab_size": 32064}
    config = {"model_type": "llava", "text_config": text, "vision_config": {"hidden_size": 1024}}
    name, family = find_family("hf", config)
    block = family.config_from["hf"](language_part(config), ())
    assert (name, block.dim, block.mlp_dim, block.num_heads, block.norm_eps) == ("llama", 4096, 11008, 32, 1e-5)


@pytest.mark.parametrize("flat", [True, False])
def test_qwen_vl(folder: Path, flat: bool, rename: Callable[..., None]) -> None:
    biases = {
        f"model.layers.{i}.self_attn.{p}_proj.bias": torch.ones(32 if p == "q" else 16) for i in range(3) for p in "qkv"
    }
    rename(str, biases)
    config = json.loads((folder / "config.json").read_text())
    if flat:
        configure(folder, model_type="qwen2_vl")
    else:
        text = config | {"model_type": "qwen2_5_vl_text"}
        (folder / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl", "text_config": text}))
    assert lmgraft.load_block(str(folder)).provenance.family == "qwen2"


def test_lora_in_that_word(folder: Path, rename: Callable[..., None], tmp_path: Path) -> None:
    rename(str, {"model.layers.1.self_attn.q_proj.lora_A.default.weight": torch.ones(2, 32)})
    with pytest.raises(CheckpointError, match="holds a LoRA adapter beside its weights") as caught:
        digest(folder)
    assert "merge_and_unload" in caught.value.remedy
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "meta-llama/Llama-2-7b-hf"}')
    save_file({"base_model.model.x.lora_A.weight": torch.ones(2, 2)}, adapter / "adapter_model.safetensors")
    with pytest.raises(SourceError, match=r"holds a LoRA adapter .* of 'meta-llama/Llama-2-7b-hf'"):
        digest(adapter)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9976578928\n"


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "model.gguf", "config.json"])
@pytest.mark.parametrize(
    ("content", "match"),
    [
        (POINTER, "is a git-lfs pointer"),
        (b"<!DOCTYPE html>\n<html><title>Sign in", "is an HTML page"),
        (b"\n<html lang='en'>" + b" " * 99, "is an HTML page"),
    ],
)
def test_what_is_saved_in_a_files_place(
    llama_folder: Path, tmp_path: Path, name: str, content: bytes, match: str
) -> None:
    shutil.copy(llama_folder / "config.json", tmp_path)
    (tmp_path / name).write_bytes(content)
    source = tmp_path if name != "config.json" else llama_folder
    if name == "config.json":
        shutil.copy(llama_folder / "model.safetensors", tmp_path)
        source = tmp_path
    with pytest.raises(CheckpointError, match=match) as caught:
        lmgraft.load_block(str(source / name if name.endswith("gguf") else source))
    assert name in caught.value.message


class TestHubCacheFolder:
    @pytest.fixture
    def repo(self, llama_folder: Path, tmp_path: Path) -> Path:
        repo = tmp_path / "models--owner--name"
        for commit in ("a" * 40, "b" * 40):
            shutil.copytree(llama_folder, repo / "snapshots" / commit)
        (repo / "snapshots" / ("a" * 40) / "model.safetensors").unlink()
        (repo / "refs").mkdir()
        (repo / "refs" / "main").write_text("b" * 40)
        return repo

    @pytest.mark.parametrize("inside", ["", "snapshots", "snapshots/" + "b" * 40])
    def test_main(self, repo: Path, llama_folder: Path, inside: str) -> None:
        assert digest(repo / inside) == digest(llama_folder)

    def test_without_main(self, repo: Path, llama_folder: Path) -> None:
        (repo / "refs" / "main").unlink()
        with pytest.raises(SourceError, match="holds 2 snapshots aaaaaaaaaaaa bbbbbbbbbbbb"):
            digest(repo)
        shutil.rmtree(repo / "snapshots" / ("a" * 40))
        assert digest(repo) == digest(llama_folder)
        shutil.rmtree(repo / "snapshots" / ("b" * 40))
        with pytest.raises(SourceError, match="holds 0 snapshots") as caught:
            digest(repo)
        assert "not finished" in caught.value.remedy


class TestFolders:
    def test_empty(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match="is empty"):
            lmgraft.load_block(str(tmp_path))

    @needs_torch("2.10")
    def test_only_bin_files(self, folder: Path, llama_folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        torch.save(state, folder / "weights.bin")
        torch.save({}, folder / "training_args.bin")
        assert digest(folder) == digest(llama_folder)
        torch.save(state, folder / "other.pt")
        with pytest.raises(SourceError, match=r"holds 2 torch files, none named .*: other\.pt, weights\.bin"):
            digest(folder)
        assert digest(folder / "weights.bin") == digest(llama_folder)
        (folder / "config.json").unlink()
        with pytest.raises(SourceError, match=r"has no config\.json, only other\.pt, training_args\.bin, weights\.bin"):
            digest(folder)


def test_code_of_its_own_is_refused_in_that_word(folder: Path) -> None:
    configure(folder, auto_map={"AutoModelForCausalLM": "modeling_x.XForCausalLM"})
    assert isinstance(lmgraft.load_block(str(folder)), type(random_block()))  # a known family needs none of it
    configure(folder, model_type="internlm2")
    pytest.importorskip("transformers", minversion="5.24")
    with pytest.raises(BlockError, match=r"'internlm2' comes with code of its own \(auto_map") as caught:
        lmgraft.load_block(str(folder))
    assert isinstance(caught.value, LmgraftError)
    assert "trust_remote_code" in caught.value.remedy
