"""Hosts as they are trained: rates by layer, weight decay, and a gradient for all that is trained."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models.metaformer import MetaFormer
from torch import nn

import lmgraft
from lmgraft.errors import RecipeError
from lmgraft.registry import FACTORIES
from lmgraft.training.optim import OptimConfig, make_optimizer, param_groups_layer_decay, param_groups_weight_decay
from tiny import random_block
from tiny_hosts import ROWS, make_host, pictures, tensors_of

OTHERS = [name for name, row in ROWS.items() if not row.timm]
TIMM = [name for name, row in ROWS.items() if row.timm and row.groups]
CLASSIFIERS = [name for name in ROWS if not name.startswith("hf_") or name.endswith("_classifier")]
STEM = re.compile(
    r"(^|\.)(embeddings\.|pre_layrnorm\.|conv_proj\.|patch_embed\.|class_token$|cls_token$|pos_embed(ding)?$)"
)
LAYER = re.compile(r"(?:^|\.)(?:layers?\.|blocks\.|encoder_layer_)(\d+)\.")
TOKENS = re.compile(
    r"(^|\.)(cls_token|class_token|class_embedding|distillation_token|register_tokens|mask_token|pos_embed|pos_embedding"
    r"|position_embeddings|position_embedding\.weight)$"
)


def classifier(name: str, folder: Path) -> nn.Module:
    """A row in training mode; transformers' by its factory, from a config."""
    torch.manual_seed(0)
    if name.startswith("hf_"):
        made: Any = ROWS[name].make()
        made.config.architectures = [type(made).__name__]  # of DeiT's two classifiers, this one
        made.config.save_pretrained(folder)
        model: nn.Module = FACTORIES.load("transformers")(str(folder), {})
    else:
        model = make_host(name)
    return model.train()


def settings_of(model: nn.Module, **options: Any) -> dict[str, tuple[float, float]]:
    """Rate and weight decay of every parameter that is in a group."""
    names = {id(p): n for n, p in model.named_parameters()}
    groups = make_optimizer(model, OptimConfig(lr=1.0, weight_decay=0.05, **options)).param_groups
    found = [(names[id(p)], (group["lr"], group["weight_decay"])) for group in groups for p in group["params"]]
    assert len(dict(found)) == len(found)
    return dict(found)


def place_of(name: str) -> int:
    """0 before the first layer, i + 1 in layer i, 4 behind the third and last."""
    layer = LAYER.search(name)
    return 0 if STEM.search(name) else int(layer[1]) + 1 if layer else 4


@pytest.mark.parametrize("graft", [False, True], ids=["plain", "grafted"])
@pytest.mark.parametrize("name", OTHERS)
class TestLayerDecay:
    def test_each_layer_has_its_rate(self, name: str, graft: bool) -> None:
        model = make_host(name)
        if graft:
            lmgraft.graft(model, random_block())
        found = settings_of(model, layer_decay=0.5)
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        assert found.keys() == trained.keys()
        assert {n: rate for n, (rate, _) in found.items()} == {n: 0.5 ** (4 - place_of(n)) for n in trained}
        assert {rate for rate, _ in found.values()} == {1.0, 0.5, 0.25, 0.125, 0.0625}
        if graft:
            assert found["graft.mapper_in.weight"] == found["graft.mapper_out.weight"] == (1.0, 0.05)

    @pytest.mark.parametrize("layer_decay", [None, 0.5])
    def test_tokens_and_positions_do_not_decay(self, name: str, graft: bool, layer_decay: float | None) -> None:
        model = make_host(name)
        if graft:
            lmgraft.graft(model, random_block())
        found = settings_of(model, layer_decay=layer_decay)
        exempt = {n for n, p in model.named_parameters() if n in found and (p.ndim <= 1 or TOKENS.search(n))}
        assert {n for n, (_, decay) in found.items() if decay == 0} == exempt
        # VideoMAE's positions are computed, and it has no class token.
        assert name == "videomae" or any(p.ndim > 1 for n, p in model.named_parameters() if n in exempt)

    def test_what_is_frozen_is_in_no_group_and_still_a_layer(self, name: str, graft: bool) -> None:
        model = make_host(name)
        if graft:
            lmgraft.graft(model, random_block())
        before = settings_of(model, layer_decay=0.5)
        frozen = [n for n in before if place_of(n) in (0, 2)]
        for n in frozen:
            model.get_parameter(n).requires_grad = False
        after = settings_of(model, layer_decay=0.5)
        assert after == {n: value for n, value in before.items() if n not in frozen}


@pytest.mark.parametrize("name", ["hf_vit_classifier", "torchvision"])
def test_rates_are_those_of_timm_s_vit(name: str) -> None:
    """Stem, layers and classifier; timm gives the norm behind them the last layer's rate, BEiT's rule the head's."""
    vit: Any = timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=24, depth=3, num_heads=2)
    names = {id(p): n for n, p in vit.named_parameters()}
    groups = param_groups_layer_decay(vit, layer_decay=0.7)
    oracle = {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
    found = {n: rate for n, (rate, _) in settings_of(make_host(name), layer_decay=0.7).items()}
    same = {0: "patch_embed.proj.weight", 1: "blocks.0.attn.qkv.weight", 3: "blocks.2.mlp.fc1.weight", 4: "head.weight"}
    for place, timms in same.items():
        assert {rate for n, rate in found.items() if place_of(n) == place} == {oracle[timms]}


@pytest.mark.parametrize("name", TIMM)
def test_timm_s_hosts_keep_timm_s_groups(name: str) -> None:
    model: Any = lmgraft.graft(make_host(name), random_block())
    exempt = getattr(model, "no_weight_decay", set)()
    for decay in (None, 0.7):
        groups = (
            param_groups_weight_decay(model, 0.05, no_weight_decay_list=exempt)
            if decay is None
            else param_groups_layer_decay(model, 0.05, no_weight_decay_list=exempt, layer_decay=decay)
        )
        found = make_optimizer(model, OptimConfig(layer_decay=decay)).param_groups
        assert [[id(p) for p in g["params"]] for g in found] == [[id(p) for p in g["params"]] for g in groups]
        assert [g["weight_decay"] for g in found] == [g["weight_decay"] for g in groups]
        assert [g.get("lr_scale") for g in found] == [g.get("lr_scale") for g in groups]


@pytest.mark.parametrize("name", ["pit", "poolformer", "qwen3", "deepseek", "gemma4"])
def test_the_graft_is_no_layer_of_timm_s(name: str) -> None:
    """PiT's stages are known. Of PoolFormer timm cuts the trunk into pieces, and of towers it names the head alone."""
    plain: Any = MetaFormer(depths=(1, 1), dims=(8, 16), num_classes=7) if name == "poolformer" else make_host(name)
    plain.pretrained_cfg = {"classifier": "head"}
    before = settings_of(plain, layer_decay=0.5)
    after = settings_of(lmgraft.graft(plain, random_block()), layer_decay=0.5)
    assert {n: value for n, value in after.items() if not n.startswith("graft.")} == before
    assert after["graft.mapper_in.weight"] == after["graft.mapper_out.weight"] == (1.0, 0.05)
    if name == "pit":
        assert before["pos_embed"] == before["cls_token"] == (0.5**4, 0.0)
        rates = [before[f"transformers.{i}.blocks.0.mlp.fc1.weight"][0] for i in range(3)]
        assert (*rates, before["norm.weight"][0], before["head.weight"][0]) == (0.125, 0.25, 0.5, 1.0, 1.0)


class _Unknown(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])


def test_layers_that_are_not_known() -> None:
    model = _Unknown()
    assert len(settings_of(model)) == 4
    for _ in range(2):
        with pytest.raises(RecipeError, match=r"optim\.layer_decay=0\.5: the layers of _Unknown are not known"):
            settings_of(model, layer_decay=0.5)
        if not hasattr(model, "graft"):
            lmgraft.graft(model, random_block(), at="layers.1", host_spec={"embed_dim": 8})


@pytest.mark.parametrize("graft", [False, True], ids=["plain", "grafted"])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_all_that_is_trained_gets_a_gradient(name: str, graft: bool, tmp_path: Path) -> None:
    """Plain DDP waits for each of them, and raises at the second step where one never comes."""
    model = classifier(name, tmp_path)
    if graft:
        lmgraft.graft(model, random_block())
    torch.stack([t.square().sum() for t in tensors_of(model(pictures(name)))]).sum().backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


@pytest.mark.parametrize(
    ("name", "frozen"),
    [
        ("hf_vit_classifier", set()),
        ("hf_dinov2_classifier", {"dinov2.embeddings.mask_token"}),
        ("hf_clip_classifier", {"post_layernorm.weight", "post_layernorm.bias"}),
    ],
)
def test_no_more_is_frozen_than_is_never_used(name: str, frozen: set[str], tmp_path: Path) -> None:
    """And it stays in what is saved: only its gradient is not waited for."""
    model = classifier(name, tmp_path)
    found = {n.removeprefix("vision_model.") for n, p in model.named_parameters() if not p.requires_grad}
    assert found == frozen
    assert model.state_dict().keys() == ROWS[name].make().state_dict().keys()
