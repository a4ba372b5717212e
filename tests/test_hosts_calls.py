"""Hosts in less usual calls: masks, maps that cannot be read in part, heads changed later, any timm model."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.models.convnext import ConvNeXt
from timm.models.eva import Eva
from timm.models.resnet import ResNet
from torch import Tensor, nn
from torchvision.models import VisionTransformer

import lmgraft
from lmgraft.contracts import Entry, GraftPoint, Host, MeanOf, from_tokens, map_axes, to_tokens, unseen_keys
from lmgraft.errors import HostError
from lmgraft.graft.hosts import find_host
from lmgraft.registry import HOSTS
from test_hosts import call, flat, grafted, mapped, replaced, unflat
from tiny import calls_of, random_block, randomise_, relative_error
from tiny_hosts import ROWS, hf, make_host, pictures, tower


class TestPoints:
    def test_widths_follow_the_stage(self) -> None:
        host = Host(embed_dim=8, layers=("a", "b.1", "c"), first="a.0", widths=(2, 3, 5, 8))
        assert host.point("head") == GraftPoint(module="a.0", when="before", width=2)
        assert host.point("middle") == host.point(0) == GraftPoint(module="a", width=3)
        assert host.point(1) == GraftPoint(module="b.1", width=5)
        assert host.point("tail") == host.point(2) == host.point(-1) == GraftPoint(module="c", last=True, width=8)

    def test_unknown_before_the_first(self) -> None:
        assert Host(embed_dim=8, layers=("a",), widths=(None, 8)).point("head") is None

    @pytest.mark.parametrize("axes", ["tokens", "NHWC", "NCHW"])
    def test_there_and_back(self, axes: Any) -> None:
        x = torch.arange(2 * 3 * 4 * 5).view(2, 12, 5) if axes == "tokens" else torch.arange(120).view(2, 3, 4, 5)
        tokens = to_tokens(x, axes)
        assert torch.equal(tokens, flat(x, axes))
        assert torch.equal(from_tokens(tokens, x, axes), x)
        assert torch.equal(unflat(tokens, x, axes), x)
        assert from_tokens(tokens.contiguous(), x, axes).is_contiguous()

    @pytest.mark.parametrize(
        ("shape", "axes", "expected"),
        [
            ((2, 9, 5), "tokens", "tokens"),
            ((2, 5, 9), "tokens", None),
            ((2, 5, 3, 3), "tokens", None),
            ((2, 5, 3, 3), "NCHW", "NCHW"),
            ((2, 5, 3, 3), "NHWC", None),
            ((2, 3, 3, 5), "NHWC", "NHWC"),
            ((2, 9, 5), "NHWC", None),
            ((2, 9, 5), "any", "tokens"),
            ((2, 5, 3, 3), "any", "NCHW"),
            ((2, 3, 3, 5), "any", "NHWC"),
            ((2, 5, 3, 5), "any", None),
            ((2, 5), "any", None),
        ],
    )
    def test_how_it_lies(self, shape: tuple[int, ...], axes: Any, expected: Any) -> None:
        assert map_axes(torch.empty(shape), axes, 5) == expected

    def test_who_sees_nobody(self) -> None:
        seen = torch.tensor([[True, False, False], [True, False, True], [False, False, False]])
        expected = torch.tensor([[False, True, False]])
        scores = torch.zeros(3, 3).masked_fill(~seen, float("-inf"))
        lowest = torch.zeros(3, 3).masked_fill(~seen, torch.finfo(torch.float32).min)
        for mask in (seen, scores, lowest, seen[None], seen[None, None], torch.stack([seen, seen & False])[None]):
            assert torch.equal(unseen_keys(mask), expected)
        per_sample = unseen_keys(torch.stack([seen, seen | True])[:, None])
        assert torch.equal(per_sample, torch.tensor([[False, True, False], [False, False, False]]))
        assert unseen_keys(None) is None


class TestMasks:
    """Tokens that nobody may see in the encoder's attention are not seen by the block either."""

    @pytest.mark.parametrize("name", ["vit", "eva_avg", "dinov3_token"])
    @pytest.mark.parametrize("kind", ["bool", "added"])
    def test_timm(self, name: str, kind: str) -> None:
        tokens, model = ROWS[name].tokens, grafted(name, torch.float64)
        mask = torch.ones(tokens, tokens, dtype=torch.bool)
        mask[:, -3:] = False
        if kind == "added":
            mask = torch.zeros(tokens, tokens, dtype=torch.float64).masked_fill(~mask, float("-inf"))
        padded = (torch.arange(tokens) >= tokens - 3)[None]
        reference = replaced(
            name,
            torch.float64,
            lambda x: model.graft.block(x @ model.graft.mapper_in.weight.T, padded) @ model.graft.mapper_out.weight.T,
        )
        found = call(model, name, attn_mask=mask)[0]
        assert relative_error(found, call(reference, name, attn_mask=mask)[0]) <= 1e-10
        assert relative_error(found, call(model, name)[0]) > 1e-6

    @pytest.mark.parametrize("attention", ["sdpa", "eager"])
    def test_transformers(self, attention: str) -> None:
        model = randomise_(hf("ViTModel", False, attn_implementation=attention), seed=5).eval()
        lmgraft.graft(model, random_block())
        mask = torch.ones(2, 17, dtype=torch.long)
        mask[1, -3:] = 0
        inputs, x = calls_of(model.graft), pictures("hf_vit")
        out = model(x, attention_mask=mask).last_hidden_state
        tokens = inputs[0][0].clone()
        expected = model.graft(tokens, mask == 0)
        assert relative_error(out, model.layernorm(expected)) <= 1e-6
        tokens[1, -3:] += 1  # nobody who is there notices
        assert relative_error(model.graft(tokens, mask == 0)[1, :-3], expected[1, :-3]) <= 1e-6
        assert relative_error(out, model(x).last_hidden_state) > 1e-6

    def test_a_mask_that_is_no_tensor(self) -> None:
        model = grafted("hf_vit")
        layer = model.get_submodule(model.graft.host.layers[-1])
        with pytest.raises(HostError, match="an attention mask of type str"):
            model.graft.host.padding_mask(layer, (torch.zeros(1, 2, 48), "mask"), {})
        flash = model.graft.host.padding_mask(layer, (), {"attention_mask": torch.tensor([[1, 0]])})
        assert torch.equal(flash, torch.tensor([[False, True]]))


class TestMaps:
    @pytest.mark.parametrize("name", ["swin", "resnet"])
    def test_rows_of_a_map_cannot_be_read(self, name: str) -> None:
        with pytest.raises(HostError, match="reads=0 of a map"):
            lmgraft.graft(make_host(name), random_block(), reads=0)
        model = grafted(name)
        with pytest.raises(HostError, match="a map is read whole"), lmgraft.reading(model, (0, 1)):
            model(pictures(name))

    def test_a_mean_stated_by_the_user(self) -> None:
        model = grafted("swin", reads=MeanOf())
        model.norm = nn.Identity()
        dense = grafted("swin", form="dense")
        dense.norm = nn.Identity()
        assert relative_error(call(model, "swin")[0], call(dense, "swin")[0]) <= 1e-5

    @pytest.mark.parametrize("name", ["swin", "resnet", "convnext_norm_first"])
    def test_read_token(self, name: str) -> None:
        model = grafted(name, read_token=True)
        seen = calls_of(model.graft.block.layers[0].mlp)
        out = call(model, name)[0]
        assert [x.shape[1] for x, _ in seen] == [1]
        dense = grafted(name, read_token=True, form="dense")
        dense.load_state_dict(model.state_dict())
        assert relative_error(call(dense, name)[0], out) <= 1e-5

    def test_channels_last(self) -> None:
        model = grafted("resnet", at=1)
        expected = call(model, "resnet")[0]
        model = model.to(memory_format=torch.channels_last)
        out = model(pictures("resnet").to(memory_format=torch.channels_last))
        assert relative_error(out, expected) <= 1e-5

    @pytest.mark.parametrize("axes", ["NCHW", "any"])
    def test_an_unknown_convnet_by_path(self, axes: str) -> None:
        resnet = randomise_(torchvision.models.resnet18(num_classes=7), seed=3).eval().double()
        x = pictures("resnet", dtype=torch.float64)
        maps = calls_of(resnet.layer4)
        resnet(x)
        ((_, before),) = maps
        lmgraft.graft(resnet, random_block(), at="layer4", host_spec={"embed_dim": 512, "axes": axes})
        after = calls_of(resnet.avgpool)
        resnet(x)
        assert relative_error(after[0][0], unflat(mapped(resnet.graft, flat(before, "NCHW")), before, "NCHW")) <= 1e-10

    def test_unknown_axes(self) -> None:
        with pytest.raises(HostError, match="axes='HWC' is not known"):
            lmgraft.graft(torchvision.models.resnet18(), random_block(), at="layer4", host_spec={"axes": "HWC"})

    def test_a_stage_that_checkpointing_passes_by(self) -> None:
        """timm's ResNet then calls the blocks of its stages, not the stages: no silent call without a graft."""
        model = grafted("resnet", at="layer4").train()
        model(pictures("resnet"))
        model.set_grad_checkpointing()
        with pytest.raises(HostError, match="this call of ResNet passed the graft by"):
            model(pictures("resnet"))
        model.set_grad_checkpointing(False)
        model(pictures("resnet"))

    def test_a_head_that_does_not_pool(self) -> None:
        model = grafted("resnet")
        model.reset_classifier(0, "")
        assert model(pictures("resnet")).shape == (2, 48, 2, 3)
        with pytest.raises(HostError, match="without pooling"):
            model.graft.host.head_from_tokens(model, torch.zeros(2, 6, 48))


class OwnEva(Eva):
    def pool(self, x: Tensor, pool_type: str | None = None) -> Tensor:
        return x[:, -1]


class OwnResNet(ResNet):
    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return self.fc(x.amax((2, 3)))


class OwnConvNeXt(ConvNeXt):
    def forward_features(self, x: Tensor) -> Tensor:
        return super().forward_features(x).relu()


class OwnTorchvision(VisionTransformer):
    def forward(self, x: Tensor) -> Tensor:
        return self.heads(self.encoder(self._process_input(x)).mean(1))


class TestHeadsOfOnesOwn:
    """What an adapter has not read in the library's code may read every token."""

    @pytest.mark.parametrize(
        ("name", "cls"),
        [
            ("eva_avg", OwnEva),
            ("eva_token", OwnEva),
            ("resnet", OwnResNet),
            ("convnext", OwnConvNeXt),
            ("torchvision", OwnTorchvision),
        ],
    )
    def test_subclasses(self, name: str, cls: type[nn.Module]) -> None:
        model = grafted(name)
        model.__class__ = cls
        assert model.graft.host.reads(model, (), {}) is None
        assert find_host(model).layers == model.graft.host.layers

    @pytest.mark.parametrize("name", [n for n, row in ROWS.items() if row.reads is not None])
    def test_a_forward_of_the_instance(self, name: str) -> None:
        model = grafted(name)
        model.forward = type(model).forward.__get__(model)
        assert model.graft.host.reads(model, (), {}) is None
        assert find_host(model).head_from_tokens is None

    @pytest.mark.parametrize("name", ["hf_vit_classifier", "hf_clip_classifier"])
    def test_an_encoder_of_the_instance(self, name: str) -> None:
        model = grafted(name)
        encoder = model.vit if "vit_c" in name else model.vision_model
        encoder.forward = type(encoder).forward.__get__(encoder)
        assert model.graft.host.reads(model, (), {}) is None

    def test_pooling_changed_afterwards(self) -> None:
        model = grafted("eva_avg")
        for pool, reads in [("token", 0), ("max", None), ("avg", MeanOf(slice(1, None))), ("", None)]:
            model.reset_classifier(7, pool)
            assert model.graft.host.reads(model, (), {}) == reads
        resnet = grafted("resnet")
        for pool, expected in [("max", None), ("avg", MeanOf()), ("avgmax", None), ("fast", MeanOf()), ("", None)]:
            resnet.reset_classifier(7, pool)
            assert resnet.graft.host.reads(resnet, (), {}) == expected
        convnext = grafted("convnext")
        for pool, expected in [("max", None), ("avg", MeanOf())]:
            convnext.reset_classifier(7, pool)
            assert convnext.graft.host.reads(convnext, (), {}) == expected
        convnext.norm_pre = nn.ReLU()
        assert convnext.graft.host.reads(convnext, (), {}) is None
        beit = grafted("beit_avg")
        for pool, reads in [("token", 0), ("", None)]:
            beit.reset_classifier(7, pool)
            assert beit.graft.host.reads(beit, (), {}) == reads

    def test_a_pooling_module_of_ones_own(self) -> None:
        model = grafted("resnet")
        model.global_pool = nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten())
        assert model.graft.host.reads(model, (), {}) is None
        for size, pool, expected in [
            (1, "avg", MeanOf()),
            (2, "avg", None),
            (1, "fastmax", None),
            (1, "fast", MeanOf()),
        ]:
            model.global_pool = timm.layers.SelectAdaptivePool2d(size, pool, flatten=True)
            assert model.graft.host.reads(model, (), {}) == expected
        model.global_pool.pool = nn.AdaptiveMaxPool2d(1)
        assert model.graft.host.reads(model, (), {}) is None


SMALL = {
    # Any timm model with stages: how its last one lies.
    "regnetx_002": "NCHW",
    "test_nfnet": "NCHW",
    "test_byobnet": "NCHW",
    "test_mambaout": "NHWC",
    "test_coatnet": "NCHW",
    "test_vit_relpos": "tokens",
}


def test_every_row_is_documented() -> None:
    text = (Path(__file__).parent.parent / "docs" / "hosts.md").read_text()
    classes = [
        name.rpartition(".")[2]
        for name in HOSTS.names()
        if name.split(".")[0] in ("timm", "torchvision", "transformers") and name[-1] != "*"
    ]
    assert [cls for cls in classes if f"`{cls}`" not in text] == []


class TestAnyTimmModel:
    @pytest.mark.parametrize("name", SMALL)
    def test_tail(self, name: str) -> None:
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=7).eval().double()
        host = find_host(model)
        x = torch.randn(2, *model.default_cfg["input_size"], dtype=torch.float64)
        last = calls_of(model.get_submodule(host.layers[-1]))
        before = model(x)
        ((_, plain),) = last
        axes = map_axes(plain, host.axes, host.embed_dim)
        assert axes == SMALL[name]
        assert host.reads(model, (), {}) is None
        lmgraft.graft(model, random_block())
        outputs = calls_of(model.get_submodule(host.layers[-1]))
        model(x)
        assert relative_error(outputs[0][1], unflat(mapped(model.graft, flat(plain, axes)), plain, axes)) <= 1e-10
        assert torch.equal(lmgraft.ungraft(model)(x), before)

    def test_padding_of_packed_images(self) -> None:
        """NaFlexVit: images of several sizes in one batch, as patches of which some are padding."""
        shape = {"embed_dim": 48, "depth": 2, "num_heads": 3, "patch_size": 4, "num_classes": 7}
        model = randomise_(timm.create_model("naflexvit_base_patch16_gap", **shape), seed=3).eval()
        lmgraft.graft(model, random_block())
        assert model.graft.host.layout.num_prefix_tokens == model.num_prefix_tokens == 4
        generator = torch.Generator().manual_seed(1)
        patches = torch.randn(2, 9, 48, generator=generator)
        places = torch.cartesian_prod(torch.arange(3), torch.arange(3)).expand(2, -1, -1)
        valid = torch.ones(2, 9, dtype=torch.bool)
        valid[1, 6:] = False
        out = model({"patches": patches, "patch_coord": places, "patch_valid": valid})
        changed = patches.clone()
        changed[1, 6:] += 1
        assert torch.equal(model({"patches": changed, "patch_coord": places, "patch_valid": valid}), out)
        changed[1, 5] += 1
        assert not torch.equal(model({"patches": changed, "patch_coord": places, "patch_valid": valid})[1], out[1])

    def test_no_place_before_the_first_stage(self) -> None:
        model = timm.create_model("test_byobnet", num_classes=7)
        with pytest.raises(HostError, match="at='head' is no place"):
            lmgraft.graft(model, random_block(), at="head")

    def test_tokens_and_something_else(self) -> None:
        """What a stage of an unknown model gives beside its map would pass the graft by."""
        model = timm.create_model("test_byobnet", num_classes=7)
        model.stages[-1].register_forward_hook(lambda *call: (call[-1], call[-1]))
        lmgraft.graft(model, random_block(), at="stages.3")
        with pytest.raises(HostError, match="gives more than tokens"):
            model(torch.zeros(1, 3, 64, 64))

    @pytest.mark.parametrize(
        ("name", "options"), [("cait_xxs24_224", {"depth": 1}), ("xcit_nano_12_p16_224", {"depth": 1})]
    )
    def test_class_tokens_that_come_later(self, name: str, options: dict[str, Any]) -> None:
        with torch.device("meta"):
            model = timm.create_model(name, **options)
        assert model.num_prefix_tokens == 1
        host = find_host(model)
        outputs = calls_of(model.get_submodule(host.layers[-1]))
        model(torch.zeros(1, 3, 224, 224, device="meta"))
        assert host.layout.num_prefix_tokens == 0
        assert outputs[0][1].shape[1] == 14 * 14


class TestBranches:
    def test_another_branch_by_name(self, tmp_path: Path) -> None:
        model = make_host("crossvit").double()
        x = pictures("crossvit", dtype=torch.float64)
        outputs = calls_of(model.blocks[-1])
        model(x)
        small, large = outputs[0][1]
        lmgraft.graft(model, random_block(), at="blocks.1", host_spec={"embed_dim": 24, "part": 0})
        after = calls_of(model.blocks[-1])
        found = model(x)
        assert relative_error(after[0][1][0], mapped(model.graft, small)) <= 1e-10
        assert torch.equal(after[0][1][1], large)
        lmgraft.save_pretrained(model, tmp_path)
        again = lmgraft.load_pretrained(tmp_path, model=make_host("crossvit").double(), llm=random_block())
        assert torch.equal(again(x), found)

    @pytest.mark.parametrize("spec", [{"part": 2}, {}])
    def test_no_such_branch(self, spec: dict[str, Any]) -> None:
        model = make_host("crossvit")
        lmgraft.graft(model, random_block(), at="blocks.1", host_spec={"embed_dim": 24} | spec)
        with pytest.raises(HostError, match="gave list"):
            model(pictures("crossvit"))

    def test_a_branch_that_is_no_index(self) -> None:
        with pytest.raises(HostError, match="part='small' is no index"):
            lmgraft.graft(make_host("crossvit"), random_block(), at="blocks.1", host_spec={"part": "small"})

    @pytest.mark.parametrize(
        ("output", "index", "tokens", "changed"),
        [
            ("a", None, "a", "new"),
            (("a", "b"), None, "a", ("new", "b")),
            (["a", "b"], None, ["a", "b"], ["new", "b"]),
            (("a", "b"), -1, "b", ("a", "new")),
            (["a", "b"], 1, "b", ["a", "new"]),
        ],
    )
    def test_entries(self, output: Any, index: int | None, tokens: Any, changed: Any) -> None:
        entry = Entry(index)
        assert entry.take(output) == tokens
        assert entry.put(output, "new") == changed

    def test_heads_that_change(self) -> None:
        """A class token is read of each scale, until a mean behind a norm is asked for; unless maps are wanted."""
        for name in ("coat", "coat_lite", "crossvit", "tnt"):
            model = grafted(name)
            assert model.graft.host.reads(model, (), {}) == 0
            model.reset_classifier(7, "avg")
            assert model.graft.host.reads(model, (), {}) is None
            call(model, name)
        coat = grafted("coat_lite")
        coat.return_interm_layers, coat.out_features = True, ["x4_nocls"]
        assert coat.graft.host.reads(coat, (), {}) is None
        assert coat(pictures("coat_lite"))["x4_nocls"].shape == (2, 48, 2, 3)

    def test_hrnet_without_its_head(self) -> None:
        model = make_host("hrnet")
        model.prune_intermediate_layers([2], prune_head=True)
        host = find_host(model)
        assert (host.layers[-1], host.embed_dim, host.head_from_tokens, host.reads(model, (), {})) == (
            "stage4",
            20,
            None,
            None,
        )


class TestTowers:
    """Vision towers of multimodal LLMs: encoders, classifiers around them, and patches of which some are padding."""

    @pytest.mark.parametrize("kind", ["deepseek", "qwen3", "gemma4"])
    @pytest.mark.parametrize("pool", ["avg", ""])
    def test_encoders(self, kind: str, pool: str) -> None:
        options = {} if kind == "gemma4" else {"out_features": 40}
        encoder = randomise_(tower(kind, "Encoder", global_pool=pool, **options), seed=5).eval()
        x = pictures(kind)
        lmgraft.graft(encoder, random_block())
        means = pool == "avg" and kind != "deepseek"
        assert encoder.graft.host.reads(encoder, (), {}) == (MeanOf() if means else None)
        dense = copy.deepcopy(encoder)
        dense.graft.config = replace(dense.graft.config, form="dense")
        assert relative_error(encoder(x), dense(x)) <= 1e-5
        encoder.forward = type(encoder).forward.__get__(encoder)
        assert encoder.graft.host.reads(encoder, (), {}) is None

    @pytest.mark.parametrize("kind", ["deepseek", "qwen3", "gemma4"])
    def test_an_encoder_of_ones_own(self, kind: str) -> None:
        model = grafted(kind)
        model.encoder.forward_features = type(model.encoder).forward_features.__get__(model.encoder)
        assert model.graft.host.reads(model, (), {}) is None
        assert find_host(model).head_from_tokens is None

    @pytest.mark.parametrize("checkpointing", [False, True])
    def test_padded_patches(self, checkpointing: bool) -> None:
        model = grafted("gemma4").double().train()
        model.encoder.set_grad_checkpointing(checkpointing)
        generator = torch.Generator().manual_seed(1)
        patches = torch.rand(2, 6, 192, generator=generator, dtype=torch.float64)
        places = torch.cartesian_prod(torch.arange(2), torch.arange(3)).repeat(2, 1, 1)
        places[1, 4:] = -1
        whole = model({"patches": patches, "patch_coord": places})
        few = model({"patches": patches[1:, :4], "patch_coord": places[1:, :4]})
        assert relative_error(whole[1:], few) <= 1e-10
        assert relative_error(model(patches[1:, :4], places[1:, :4]), few) <= 1e-10
        (gradient,) = torch.autograd.grad(whole.sum(), model.graft.mapper_in.weight)
        assert gradient.any()
