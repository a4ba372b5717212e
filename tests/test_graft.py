"""Putting a block into a backbone and taking it out again: places, wiring, refusals, exact inverse."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

import lmgraft
from lmgraft.block import FrozenBlock
from lmgraft.errors import HostError
from lmgraft.graft import GraftConfig, find_graft
from lmgraft.graft.hosts import find_host
from tiny import calls_of, images, make_vit, randomise_, relative_error

PLACES = ["tail", "middle", "head", 0, 1, -1, -3, "blocks.1", "blocks.2", "norm", "blocks.0.mlp"]
TRAINED = {"graft.mapper_in.weight", "graft.mapper_out.weight"}


def hooks(model: nn.Module) -> dict[tuple[str, str], list[Any]]:
    """Every hook and flag of every module."""
    kinds = (
        "_forward_hooks",
        "_forward_pre_hooks",
        "_forward_hooks_with_kwargs",
        "_forward_hooks_always_called",
        "_forward_pre_hooks_with_kwargs",
    )
    return {(n, k): list(getattr(m, k).values()) for n, m in model.named_modules() for k in kinds}


def mapped(model: nn.Module, tokens: Tensor) -> Tensor:
    """W2 block(W1 x) for every token, written out."""
    graft = find_graft(model)
    assert graft is not None
    w1, w2 = graft.mapper_in.weight, graft.mapper_out.weight
    return graft.block(tokens @ w1.T) @ w2.T


class TestInsertAndRemove:
    def test_what_is_inserted(self, tiny_vit: nn.Module, tiny_block: FrozenBlock) -> None:
        before = set(tiny_vit.state_dict())
        grafted = lmgraft.graft(tiny_vit, tiny_block)
        assert grafted is tiny_vit
        assert set(grafted.state_dict()) - before == TRAINED
        assert before <= set(grafted.state_dict())
        new = {n: p for n, p in grafted.named_parameters() if n.startswith("graft.")}
        assert {n for n, p in new.items() if p.requires_grad} == TRAINED
        assert {n for n, p in new.items() if not p.requires_grad} == {
            f"graft.block.{n}" for n, _ in tiny_block.named_parameters()
        }
        assert new["graft.mapper_in.weight"].shape == (32, 48)
        assert new["graft.mapper_out.weight"].shape == (48, 32)

    @pytest.mark.parametrize("at", PLACES)
    def test_ungraft_is_the_exact_inverse(self, llama_folder: Path, at: str | int) -> None:
        model = make_vit()
        model.blocks[2].register_forward_hook(lambda *_: None)
        model.blocks[0].register_forward_pre_hook(lambda *_: None)
        model.register_forward_hook(lambda *_: None, always_call=True)
        x = images()
        output, features = model(x), model.forward_features(x)
        keys, names = list(model.state_dict()), [n for n, _ in model.named_modules()]
        cls, hooked, attributes = type(model), hooks(model), set(model.__dict__)
        assert lmgraft.graft(model, str(llama_folder), at=at) is model
        assert type(model) is cls
        assert relative_error(model(x), output) > 1e-3
        assert lmgraft.ungraft(model) is model
        assert torch.equal(model(x), output)
        assert torch.equal(model.forward_features(x), features)
        assert list(model.state_dict()) == keys
        assert [n for n, _ in model.named_modules()] == names
        assert type(model) is cls
        assert hooks(model) == hooked
        assert set(model.__dict__) == attributes
        assert find_graft(model) is None

    def test_again_after_ungraft(self, tiny_vit: nn.Module, tiny_block: FrozenBlock) -> None:
        torch.manual_seed(1)
        first = lmgraft.graft(tiny_vit, tiny_block)(images())
        lmgraft.ungraft(tiny_vit)
        torch.manual_seed(1)
        assert torch.equal(lmgraft.graft(tiny_vit, tiny_block)(images()), first)

    def test_twice_is_refused(self, tiny_vit: nn.Module, tiny_block: FrozenBlock) -> None:
        lmgraft.graft(tiny_vit, tiny_block)
        with pytest.raises(HostError, match="grafted already"):
            lmgraft.graft(tiny_vit, tiny_block)
        lmgraft.ungraft(tiny_vit)
        with pytest.raises(HostError, match="is not grafted"):
            lmgraft.ungraft(tiny_vit)

    def test_a_model_with_such_an_attribute(self, tiny_vit: nn.Module, tiny_block: FrozenBlock) -> None:
        tiny_vit.graft = nn.Identity()
        with pytest.raises(HostError, match="attribute 'graft' of its own"):
            lmgraft.graft(tiny_vit, tiny_block)

    def test_a_refused_graft_changes_nothing(self, tiny_vit: nn.Module, llama_folder: Path) -> None:
        before, keys = hooks(tiny_vit), list(tiny_vit.state_dict())
        for wrong in ({"at": "nowhere"}, {"at": 3}, {"residual": "sideways"}, {"layer": 9}, {"at": 0, "reads": 0}):
            with pytest.raises(lmgraft.errors.LmgraftError):
                lmgraft.graft(tiny_vit, str(llama_folder), **wrong)
            assert hooks(tiny_vit) == before
            assert list(tiny_vit.state_dict()) == keys

    def test_eval_and_train_mode(self, tiny_vit: nn.Module, tiny_block: FrozenBlock) -> None:
        lmgraft.graft(tiny_vit.train(), tiny_block)
        assert tiny_vit.graft.training
        assert not tiny_vit.graft.block.training
        tiny_vit.eval().train()
        assert not any(m.training for m in tiny_vit.graft.block.modules())


class TestCopies:
    def test_deepcopy(self, tiny_vit: nn.Module, tiny_block: FrozenBlock) -> None:
        model = lmgraft.graft(tiny_vit, tiny_block)
        x = images()
        clone = copy.deepcopy(model)
        assert torch.equal(clone(x), model(x))
        assert clone.graft is not model.graft
        assert clone.graft.block.layers[0].mlp.up.weight.data_ptr() == tiny_block.layers[0].mlp.up.weight.data_ptr()
        # The copy's hooks are the copy's: changing one model leaves the other.
        before = model(x)
        nn.init.zeros_(clone.graft.mapper_out.weight)
        assert torch.equal(model(x), before)
        assert relative_error(clone(x), before) > 1e-2
        assert clone.forward_features(x).shape == (2, 17, 48)
        lmgraft.ungraft(clone)
        assert torch.equal(model(x), before)

    def test_pickle(self, tiny_vit: nn.Module, tiny_block: FrozenBlock) -> None:
        model = lmgraft.graft(tiny_vit, tiny_block, residual="gated")
        nn.init.ones_(model.graft.gate)
        x = images()
        clone = pickle.loads(pickle.dumps(model))  # noqa: S301 - our own bytes
        assert torch.equal(clone(x), model(x))
        assert torch.equal(clone.forward_features(x), model.forward_features(x))
        assert torch.equal(lmgraft.ungraft(clone)(x), lmgraft.ungraft(model)(x))

    def test_strict_loading(self, tiny_vit: nn.Module, tiny_block: FrozenBlock) -> None:
        model = lmgraft.graft(tiny_vit, tiny_block)
        other = lmgraft.graft(make_vit(), tiny_block)
        randomise_(other.head, seed=8)
        other.load_state_dict(model.state_dict(), strict=True)
        assert torch.equal(other(images()), model(images()))

    def test_functional_call(self, tiny_vit: nn.Module, tiny_block: FrozenBlock) -> None:
        model = lmgraft.graft(tiny_vit, tiny_block)
        trained = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
        x = images()

        def loss(params: dict[str, Tensor]) -> Tensor:
            return torch.func.functional_call(model, params, (x,)).square().sum()

        found = torch.func.grad(loss)(trained)
        model(x).square().sum().backward()
        for name in TRAINED | {"patch_embed.proj.weight"}:
            assert relative_error(found[name], model.get_parameter(name).grad) <= 1e-5


class TestPlaces:
    def by_hand(self, model: nn.Module, x: Tensor, place: int) -> Tensor:
        """Features with the graft in front of encoder layer `place`."""
        plain = copy.deepcopy(model)
        lmgraft.ungraft(plain)
        tokens = plain.norm_pre(plain.patch_drop(plain._pos_embed(plain.patch_embed(x))))
        for index, layer in enumerate([*plain.blocks, nn.Identity()]):
            if index == place:
                tokens = mapped(model, tokens)
            tokens = layer(tokens)
        return plain.norm(tokens)

    @pytest.mark.parametrize(
        ("at", "place"),
        [("tail", 3), ("middle", 1), ("head", 0), (0, 1), (1, 2), (2, 3), (-1, 3), (-3, 1), ("blocks.0", 1)],
    )
    def test_where_the_block_runs(self, tiny_block: FrozenBlock, at: str | int, place: int) -> None:
        model = lmgraft.graft(make_vit().double(), tiny_block, at=at)
        x = images(dtype=torch.float64)
        expected = self.by_hand(model, x, place)
        assert relative_error(model.forward_features(x), expected) <= 1e-12
        assert relative_error(model(x), model.head(expected[:, 0])) <= 1e-12

    @pytest.mark.parametrize("at", ["tail", "middle", "head"])
    def test_encoder_of_one_layer(self, tiny_block: FrozenBlock, at: str) -> None:
        model = lmgraft.graft(make_vit(depth=1).double(), tiny_block, at=at)
        x = images(dtype=torch.float64)
        expected = self.by_hand(model, x, 0 if at == "head" else 1)
        assert relative_error(model(x), model.head(expected[:, 0])) <= 1e-12

    @pytest.mark.parametrize("at", ["tail", "middle", "head", 0])
    def test_encoder_without_layers(self, tiny_block: FrozenBlock, at: Any) -> None:
        with pytest.raises(HostError, match="VisionTransformer has no layers"):
            lmgraft.graft(make_vit(depth=0), tiny_block, at=at)

    @pytest.mark.parametrize("at", [3, -4, "tial", "blocks.3", 1.5])
    def test_no_such_place(self, tiny_vit: nn.Module, tiny_block: FrozenBlock, at: Any) -> None:
        with pytest.raises(HostError) as caught:
            lmgraft.graft(tiny_vit, tiny_block, at=at)
        assert f"at={at!r} is no place in VisionTransformer" in str(caught.value)
        assert "0 to 2" in caught.value.remedy

    def test_after_another_module(self, tiny_vit: nn.Module, tiny_block: FrozenBlock) -> None:
        model = tiny_vit.double()
        x = images(dtype=torch.float64)
        normed = model.forward_features(x)
        lmgraft.graft(model, tiny_block, at="norm")
        assert relative_error(model.forward_features(x), mapped(model, normed)) <= 1e-12

    def test_a_stack(self, llama_folder: Path, tiny_vit: nn.Module) -> None:
        model = lmgraft.graft(tiny_vit.double(), str(llama_folder), layer=(0, 1), final_norm="pretrained")
        assert model.graft.config.layer == (0, 1)
        assert len(model.graft.block.layers) == 2
        x = images(dtype=torch.float64)
        assert relative_error(model(x), model.forward_head(model.forward_features(x))) <= 1e-12


class TestResiduals:
    @pytest.mark.parametrize("at", ["tail", "middle"])
    @pytest.mark.parametrize("residual", ["none", "out", "in", "gated"])
    def test_formulas(self, tiny_block: FrozenBlock, residual: Any, at: str) -> None:
        model = make_vit().double()
        # This hook is before the graft's: it sees the tokens that go in.
        goes_in = calls_of(model.get_submodule("blocks.2" if at == "tail" else "blocks.0"))
        lmgraft.graft(model, tiny_block, at=at, residual=residual)
        comes_out = calls_of(model.graft)
        if residual == "gated":
            nn.init.constant_(model.graft.gate, 0.7)
        model.forward_features(images(dtype=torch.float64))
        ((_, x),) = goes_in
        w1, w2, block = model.graft.mapper_in.weight, model.graft.mapper_out.weight, model.graft.block
        f = block(x @ w1.T) @ w2.T
        expected = {
            "none": f,
            "out": x + f,
            "in": (block(x @ w1.T) + x @ w1.T) @ w2.T,
            "gated": x + 0.7 * f,
        }[residual]
        assert relative_error(comes_out[0][1], expected) <= 1e-12

    def test_gated_starts_as_the_identity(self, tiny_vit: nn.Module, tiny_block: FrozenBlock) -> None:
        x = images()
        before = tiny_vit(x)
        lmgraft.graft(tiny_vit, tiny_block, residual="gated")
        assert set(tiny_vit.state_dict()) >= TRAINED | {"graft.gate"}
        assert torch.equal(tiny_vit(x), before)
        tiny_vit(x).square().sum().backward()
        assert tiny_vit.graft.gate.grad.abs() > 0  # it can leave zero

    def test_only_gated_has_a_gate(self, tiny_vit: nn.Module, tiny_block: FrozenBlock) -> None:
        lmgraft.graft(tiny_vit, tiny_block, residual="out")
        assert "graft.gate" not in tiny_vit.state_dict()


class TestMappers:
    def test_the_hosts_own_convention(self, tiny_block: FrozenBlock) -> None:
        model = lmgraft.graft(make_vit(embed_dim=192), tiny_block)
        for weight in (model.graft.mapper_in.weight, model.graft.mapper_out.weight):
            assert float(weight.detach().std()) == pytest.approx(0.02, rel=0.05)
            assert abs(float(weight.detach().mean())) < 0.002

    def test_torchs_default(self, tiny_vit: nn.Module, tiny_block: FrozenBlock) -> None:
        model = lmgraft.graft(tiny_vit, tiny_block, mapper_init="default")
        for weight in (model.graft.mapper_in.weight, model.graft.mapper_out.weight):
            bound = weight.shape[1] ** -0.5
            assert 0.95 * bound < float(weight.detach().abs().max()) <= bound

    def test_no_biases(self, tiny_vit: nn.Module, tiny_block: FrozenBlock) -> None:
        model = lmgraft.graft(tiny_vit, tiny_block)
        assert model.graft.mapper_in.bias is None
        assert model.graft.mapper_out.bias is None


class TestDtypes:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
    def test_host_of_another_dtype(self, tiny_block: FrozenBlock, dtype: torch.dtype) -> None:
        model = lmgraft.graft(make_vit().to(dtype), tiny_block)
        assert {p.dtype for p in model.graft.block.parameters()} == {torch.float32}
        assert model.graft.mapper_in.weight.dtype == dtype
        seen = calls_of(model.graft)
        assert model(images(dtype=dtype)).dtype == dtype
        assert [(x.dtype, out.dtype) for x, out in seen] == [(dtype, dtype)]

    @pytest.mark.parametrize("residual", ["none", "out", "in", "gated"])
    def test_autocast_keeps_the_dtype_of_the_tokens(self, tiny_block: FrozenBlock, residual: Any) -> None:
        model = lmgraft.graft(make_vit(), tiny_block, residual=residual)
        exact = model(images())
        seen = calls_of(model.graft)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = model(images())
        assert [(x.dtype, y.dtype) for x, y in seen] == [(torch.float32, torch.float32)]  # timm's residual stream
        assert relative_error(out, exact) <= 0.1
        assert relative_error(out, exact) > 0  # it did compute in 16 bits
        out.float().square().sum().backward()
        assert torch.isfinite(model.graft.mapper_in.weight.grad).all()

    def test_block_stored_in_16_bits(self, llama_folder: Path) -> None:
        torch.manual_seed(1)
        narrow = lmgraft.graft(make_vit(), str(llama_folder), dtype="bfloat16")
        torch.manual_seed(1)
        wide = lmgraft.graft(make_vit(), str(llama_folder))
        assert {p.dtype for p in narrow.graft.block.parameters()} == {torch.bfloat16}
        assert narrow.graft.mapper_in.weight.dtype == torch.float32
        assert narrow.graft.config.dtype == "bfloat16"
        assert 0 < relative_error(narrow(images()), wide(images())) <= 0.05

    def test_torch_dtype_is_recorded_as_a_word(self, llama_folder: Path, tiny_vit: nn.Module) -> None:
        model = lmgraft.graft(tiny_vit, str(llama_folder), dtype=torch.bfloat16)
        assert model.graft.config.dtype == "bfloat16"


class TestConfig:
    def test_what_is_recorded(self, tiny_vit: nn.Module, llama_folder: Path) -> None:
        model = lmgraft.graft(tiny_vit, str(llama_folder), layer=-2, at="middle", residual="out")
        config = model.graft.config
        assert (config.llm, config.layer, config.at, config.residual) == (str(llama_folder), -2, "middle", "out")
        assert config.final_norm == "unit"
        assert GraftConfig.from_dict(config.to_dict()) == config

    def test_tuples_survive_json(self) -> None:
        config = GraftConfig(layer=(0, 1), reads=(0, 2))
        assert config.to_dict()["layer"] == [0, 1]
        assert GraftConfig.from_dict(config.to_dict()) == config

    def test_a_given_block_is_recorded_as_it_is(self, tiny_vit: nn.Module, llama_folder: Path) -> None:
        block = lmgraft.load_block(str(llama_folder), (0, 1), final_norm="pretrained")
        config = lmgraft.graft(tiny_vit, block).graft.config
        assert (config.llm, config.layer, config.final_norm) == (str(llama_folder), (0, 1), "pretrained")

    @pytest.mark.parametrize("extra", [{"layer": 0}, {"final_norm": "none"}, {"revision": "main"}, {"layer": (0, 1)}])
    def test_a_block_and_what_describes_another(
        self, tiny_vit: nn.Module, tiny_block: FrozenBlock, extra: dict[str, Any]
    ) -> None:
        with pytest.raises(HostError) as caught:
            lmgraft.graft(tiny_vit, tiny_block, **extra)
        assert f"a block was given, and {next(iter(extra))} too" in str(caught.value)
        assert find_graft(tiny_vit) is None

    @pytest.mark.parametrize(
        ("field", "value"),
        [("residual", "both"), ("form", "fast"), ("final_norm", "half"), ("mapper_init", "zeros")],
    )
    def test_unknown_choice(self, field: str, value: str) -> None:
        with pytest.raises(HostError, match=f"{field}='{value}' is not known"):
            GraftConfig(**{field: value})  # type: ignore[arg-type]


class Tokens(nn.Module):
    """A backbone that lmgraft does not know: tokens in, the mean out."""

    def __init__(self, width: int = 16, as_tuple: bool = False, **attributes: Any) -> None:
        super().__init__()
        self.body = nn.Linear(width, width)
        self.wrap = Wrap(as_tuple)
        self.head = nn.Linear(width, 3)
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        out = self.wrap(self.body(x))
        tokens = out[0] if isinstance(out, tuple) else out
        return self.head(tokens.mean(1))


class Wrap(nn.Module):
    """Gives tokens alone, or in a tuple with something else as many encoders do."""

    def __init__(self, as_tuple: bool) -> None:
        super().__init__()
        self.as_tuple = as_tuple

    def forward(self, x: Tensor) -> Any:
        return (x, "attention") if self.as_tuple else x


class Config:
    hidden_size = 16


class TestUnknownHosts:
    @pytest.mark.parametrize("as_tuple", [False, True])
    @pytest.mark.parametrize(
        ("attributes", "spec"),
        [
            ({"embed_dim": 16}, None),
            ({"num_features": 16}, None),
            ({"config": Config()}, None),
            ({}, {"embed_dim": 16}),
            ({"embed_dim": 7}, {"embed_dim": 16}),
        ],
    )
    def test_by_dotted_path(
        self, tiny_block: FrozenBlock, as_tuple: bool, attributes: dict[str, Any], spec: dict[str, Any] | None
    ) -> None:
        model = Tokens(as_tuple=as_tuple, **attributes).double()
        x = torch.randn(2, 5, 16, dtype=torch.float64)
        before, tokens = model(x), model.body(x)
        lmgraft.graft(model, tiny_block, at="wrap", host_spec=spec)
        assert relative_error(model(x), model.head(mapped(model, tokens).mean(1))) <= 1e-12
        assert torch.equal(lmgraft.ungraft(model)(x), before)

    def test_default_initialisation(self, tiny_block: FrozenBlock) -> None:
        model = lmgraft.graft(Tokens(embed_dim=16), tiny_block, at="body")
        assert float(model.graft.mapper_in.weight.detach().abs().max()) > 0.2  # uniform within 1/sqrt(16)

    def test_reads_of_an_unknown_host(self, tiny_block: FrozenBlock) -> None:
        """The user's word: only these tokens are read behind the graft."""
        model = lmgraft.graft(Tokens(embed_dim=16).double(), tiny_block, at="body", reads=(0, 2))
        x = torch.randn(2, 5, 16, dtype=torch.float64)
        expected = mapped(model, x @ model.body.weight.T + model.body.bias)[:, [0, 2]]
        assert relative_error(model(x), model.head(expected.mean(1))) <= 1e-12

    def test_unknown_width(self, tiny_block: FrozenBlock) -> None:
        with pytest.raises(HostError, match="the token width of Tokens is unknown") as caught:
            lmgraft.graft(Tokens(), tiny_block, at="body")
        assert "host_spec={'embed_dim'" in caught.value.remedy

    def test_wrong_width_is_said_at_the_first_call(self, tiny_block: FrozenBlock) -> None:
        model = lmgraft.graft(Tokens(embed_dim=24), tiny_block, at="body")
        with pytest.raises(HostError, match=r"needs tokens \(B, T, 24\), Linear gave \(2, 5, 16\)"):
            model(torch.randn(2, 5, 16))

    def test_output_that_is_no_tokens(self, tiny_block: FrozenBlock) -> None:
        model = lmgraft.graft(Tokens(embed_dim=16), tiny_block, at="head")
        with pytest.raises(HostError, match=r"Linear gave \(2, 3\)"):
            model(torch.randn(2, 5, 16))

    def test_convnet_is_refused(self, tiny_block: FrozenBlock) -> None:
        resnet = torchvision.models.resnet18(num_classes=3)
        with pytest.raises(HostError) as caught:
            lmgraft.graft(resnet, tiny_block)
        assert "ResNet is no backbone whose tokens lmgraft knows" in str(caught.value)
        assert "at='dotted.path'" in caught.value.remedy
        assert "VisionTransformer" in caught.value.remedy

    def test_convnets_feature_maps_are_no_tokens(self, tiny_block: FrozenBlock) -> None:
        resnet = torchvision.models.resnet18(num_classes=3)
        lmgraft.graft(resnet, tiny_block, at="layer4", host_spec={"embed_dim": 512})
        with pytest.raises(
            HostError, match=r"the graft needs tokens \(B, T, 512\), Sequential gave \(2, 512, 1, 1\)"
        ) as caught:
            resnet(images())
        assert "host_spec={'axes': 'NCHW'}" in caught.value.remedy

    def test_a_sequential_would_run_the_graft_itself(self, tiny_block: FrozenBlock) -> None:
        host = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 3))
        with pytest.raises(HostError, match="would run the graft as one more layer"):
            lmgraft.graft(host, tiny_block, at="0", host_spec={"embed_dim": 16})

    def test_no_parameters(self, tiny_block: FrozenBlock) -> None:
        host = Wrap(as_tuple=False)
        lmgraft.graft(host, tiny_block, at="", host_spec={"embed_dim": 16})
        x = torch.randn(1, 3, 16)
        assert torch.equal(host(x), host.graft(x))


class TestHostDescription:
    def test_vit(self) -> None:
        host = find_host(make_vit(reg_tokens=4))
        assert host is not None
        assert host.embed_dim == 48
        assert host.layers == ("blocks.0", "blocks.1", "blocks.2")
        assert host.layout.num_prefix_tokens == 5
        assert host.layout.grid == (4, 4)
        assert host.mapper_init == "trunc_normal"

    def test_unknown(self) -> None:
        assert find_host(nn.Linear(2, 2)) is None

    @pytest.mark.parametrize(
        "make",
        [
            lambda: make_vit(no_embed_class=True),
            lambda: make_vit(init_values=1e-2),
            lambda: make_vit(qk_norm=True, pre_norm=True),
            lambda: make_vit(dynamic_img_size=True),
            lambda: make_vit("deit_tiny_patch16_224"),
            lambda: make_vit("vit_tiny_patch16_224", fc_norm=True),
        ],
    )
    def test_variants_of_the_vit(self, make: Callable[[], nn.Module], tiny_block: FrozenBlock) -> None:
        model = make().double()
        x = images(dtype=torch.float64)
        before = model(x)
        lmgraft.graft(model, tiny_block)
        assert relative_error(model(x), model.forward_head(model.forward_features(x))) <= 1e-12
        assert torch.equal(lmgraft.ungraft(model)(x), before)
