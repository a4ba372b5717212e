"""Hosts on the meta device: they are grafted, get their values later, and give equal outputs."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import lmgraft
from lmgraft.errors import CheckpointError, HostError
from lmgraft.graft.layer import GraftLayer
from tiny import images, make_vit, random_block

SHAPE = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 7}


def empty_vit() -> nn.Module:
    with torch.device("meta"):
        return timm.create_model("vit_tiny_patch16_224", **SHAPE).eval()


@pytest.fixture
def whole() -> nn.Module:
    return lmgraft.graft(make_vit(), random_block(layers=2), residual="out")


def grafted() -> nn.Module:
    return lmgraft.graft(empty_vit(), random_block(layers=2), residual="out")


@pytest.mark.parametrize("way", ["to_empty", "assign", "one file"])
def test_values_come_later(whole: nn.Module, way: str, tmp_path: Path) -> None:
    if way == "one file":
        lmgraft.save_pretrained(whole, tmp_path)
        model = lmgraft.load_pretrained(tmp_path, model=empty_vit(), llm=random_block(layers=2))
    else:
        model = grafted()
        if way == "to_empty":
            model.to_empty(device="cpu")
        model.load_state_dict(whole.state_dict(), assign=way == "assign")
    assert torch.equal(model(images()), whole(images()))
    assert not any(parameter.is_meta for parameter in model.parameters())
    assert [n for n, p in model.named_parameters() if p.requires_grad] == [
        n for n, p in whole.named_parameters() if p.requires_grad
    ]


def test_the_graft_keeps_its_values(whole: nn.Module) -> None:
    """The block's are in no state dict, and the mappers' first ones not in the host's own weights."""
    torch.manual_seed(0)
    before = grafted().graft.state_dict()
    torch.manual_seed(0)
    model = grafted()
    model.to_empty(device="cpu").to("meta")
    assert model.head.weight.is_meta
    model.to_empty(device="cpu")
    host = {name: tensor for name, tensor in whole.state_dict().items() if not name.startswith("graft.")}
    model.load_state_dict(host, strict=False)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.graft.state_dict().items())
    whole.graft.load_state_dict(before)
    assert torch.equal(model(images()), whole(images()))


def test_it_follows_where_its_host_goes(whole: nn.Module) -> None:
    graft = whole.double().graft
    assert isinstance(graft, GraftLayer)
    assert {p.dtype for p in graft.parameters()} == {torch.float64}
    whole.share_memory()
    assert all(p.is_shared() for p in graft.parameters())


def test_shapes_without_values() -> None:
    model = lmgraft.graft(empty_vit(), random_block(), at="middle")
    assert model(images().to("meta")).shape == (2, 7)
    assert lmgraft.graft(lmgraft.ungraft(model), random_block())(images().to("meta")).shape == (2, 7)


def test_a_graft_made_inside_the_meta_device(llama_folder: Path) -> None:
    with torch.device("meta"):
        model = lmgraft.graft(timm.create_model("vit_tiny_patch16_224", **SHAPE), str(llama_folder))
    same = lmgraft.graft(make_vit(), str(llama_folder))
    assert model.graft.block.provenance.digest == same.graft.block.provenance.digest
    assert torch.equal(model.graft.block.layers[0].mlp.up.weight, same.graft.block.layers[0].mlp.up.weight)


def test_what_would_lose_the_block_is_refused(tmp_path: Path) -> None:
    block = random_block()
    with pytest.raises(HostError, match="would lie on the meta device"):
        lmgraft.graft(make_vit(), block, device="meta")
    assert not any(parameter.is_meta for parameter in block.parameters())
    with pytest.raises(CheckpointError, match=r"tensors, first cls_token, lie on the meta device"):
        lmgraft.save_pretrained(grafted(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_that_leaves_tensors_without_values(whole: nn.Module, tmp_path: Path) -> None:
    """Buffers that no state dict holds, as EVA's rotary table."""
    lmgraft.save_pretrained(whole, tmp_path)
    model = empty_vit()
    model.register_buffer("table", torch.empty(3, device="meta"), persistent=False)
    with pytest.raises(CheckpointError, match="table lies on the meta device, and is in no file"):
        lmgraft.load_pretrained(tmp_path, model=model, llm=random_block(layers=2))
    assert not hasattr(model, "graft")
