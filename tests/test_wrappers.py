"""Models in wrappers: the one inside is grafted, ungrafted and saved, or one sentence says how."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.models import _features
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

import lmgraft
from lmgraft.errors import HostError
from lmgraft.graft.layer import find_grafts
from tiny import images, long_but, make_vit, random_block, relative_error
from tiny_hosts import make_host, pictures

X = images()


class LowRank(nn.Module):
    """As PEFT puts it around a linear layer."""

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer, self.lora = base_layer, nn.Linear(base_layer.in_features, base_layer.out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora(x)


class Tuner(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any) -> Any:
        return self.model(*args)


class Peft(nn.Module):
    """The shape of PEFT's PeftModel with LoRA: base_model.model is the model, whose layers were replaced."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        torch.manual_seed(2)
        for block in model.requires_grad_(False).blocks:
            block.attn.proj = LowRank(block.attn.proj)
        self.base_model = Tuner(model)

    def get_base_model(self) -> nn.Module:
        return self.base_model.model

    def forward(self, *args: Any) -> Any:
        return self.base_model(*args)


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")  # type: ignore[return-value]


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compiled": compiled,
    "data parallel": DataParallel,
    "averaged": AveragedModel,
    "peft": Peft,
    "two": lambda model: DataParallel(Peft(model)),
}


@pytest.mark.parametrize("name", long_but(WRAPPERS, *(name for name in WRAPPERS if name != "compiled")))
def test_the_model_within_is_grafted_saved_and_ungrafted(name: str, tmp_path: Path) -> None:
    wrapper = WRAPPERS[name](make_vit()).eval()
    with torch.no_grad():
        plain = wrapper(X)
        assert lmgraft.graft(wrapper, random_block()) is wrapper
        ((path, graft),) = find_grafts(wrapper).items()
        inner = wrapper.get_submodule(path.rpartition(".")[0])
        assert type(inner).__name__ == "VisionTransformer"
        assert relative_error(wrapper(X), plain) > 1e-3  # also where the model was compiled before
        assert torch.equal(wrapper(X), inner(X))
        assert graft.mapper_in.weight.requires_grad
        lmgraft.save_pretrained(wrapper, tmp_path)
        assert set(load_file(tmp_path / "model.safetensors")) == set(inner.state_dict())
        empty = WRAPPERS[name](make_vit())
        again = lmgraft.load_pretrained(tmp_path, model=empty, llm=random_block())
        assert again is empty
        assert torch.equal(again(X), wrapper(X))
        assert lmgraft.ungraft(wrapper) is wrapper
        assert torch.equal(wrapper(X), plain)
    assert not find_grafts(wrapper)


def test_a_place_by_its_path_in_the_wrapper() -> None:
    model = make_vit()
    wrapper = DataParallel(model)
    lmgraft.graft(wrapper, random_block(), at="module.blocks.1")
    lmgraft.graft(wrapper, random_block(), at="blocks.0")
    assert [graft.config.at for graft in find_grafts(model).values()] == ["blocks.1", "blocks.0"]
    lmgraft.ungraft(wrapper, at="module.blocks.1")
    assert list(find_grafts(model)) == ["graft_2"]


def test_ddp_says_why_not() -> None:
    wrapper: Any = DistributedDataParallel.__new__(DistributedDataParallel)  # made without other processes
    nn.Module.__init__(wrapper)
    wrapper.module = make_vit()
    for change in (lambda: lmgraft.graft(wrapper, random_block()), lambda: lmgraft.ungraft(wrapper)):
        with pytest.raises(HostError, match="parameters alone that it was made with") as caught:
            change()
        assert "before you wrap it" in caught.value.remedy


def features(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model(name, features_only=True, **options).eval()


@pytest.mark.skipif(not hasattr(_features, "FeatureGetterNet"), reason="timm before 1.0 has no feature getters")
class TestFeatures:
    @pytest.mark.parametrize("name", ["vit", "convnext"])
    def test_a_getter_has_its_model_grafted(self, name: str) -> None:
        """The last feature is what lies behind the graft, as in the model's own intermediates."""
        getter = _features.FeatureGetterNet(make_host(name), out_indices=[0, 1])
        x = pictures(name)
        plain = getter(x)
        lmgraft.graft(getter, random_block(), residual="out")
        first, last = getter(x)
        assert torch.equal(first, plain[0])
        tokens = plain[1].flatten(2).transpose(1, 2)
        if name == "vit":  # the class token lies before these, and is attended to
            assert last.shape == plain[1].shape
            assert relative_error(last, plain[1]) > 1e-3
        else:
            assert relative_error(last.flatten(2).transpose(1, 2), getter.model.graft(tokens)) < 1e-5
        lmgraft.ungraft(getter)
        assert torch.equal(getter(x)[1], plain[1])

    @pytest.mark.parametrize("options", [{}, {"feature_cls": "hook"}])
    def test_nets_of_modules_say_how(self, options: dict[str, Any]) -> None:
        model = features("test_resnet", **options)
        with pytest.raises(HostError, match="would run the graft as one more layer") as caught:
            lmgraft.graft(model, random_block())
        assert "feature_cls='getter'" in caught.value.remedy
        assert isinstance(model, nn.ModuleDict)
        assert find_grafts(lmgraft.graft(features("test_resnet", feature_cls="getter"), random_block()))


class TestPassedBy:
    """Each reason why a call ran no graft has its own words."""

    def reason(self, model: nn.Module, x: Tensor = X) -> tuple[str, str]:
        with pytest.raises(HostError, match="passed the graft by: ") as caught:
            model(x)
        return caught.value.message, caught.value.remedy

    def test_checkpointing(self) -> None:
        model: Any = lmgraft.graft(make_host("resnet"), random_block(), at="layer4").train()
        model.set_grad_checkpointing()
        what, remedy = self.reason(model, pictures("resnet"))
        assert "gradient checkpointing calls the children of 'layer4'" in what
        assert "at='layer4.1'" in remedy

    def test_pruned_layers(self) -> None:
        model: Any = lmgraft.graft(make_vit(), random_block())
        model.prune_intermediate_layers([0])
        what, remedy = self.reason(model)
        assert "no longer in the model" in what
        assert "ungraft the model" in remedy
        lmgraft.graft(lmgraft.ungraft(model), random_block())
        assert model(X).shape[0] == len(X)

    def test_lists_are_not_called(self) -> None:
        model = lmgraft.graft(make_host("coat"), random_block(), at="serial_blocks4")
        what, remedy = self.reason(model, pictures("coat"))
        assert "'serial_blocks4' is a ModuleList" in what
        assert "checkpointing" not in what + remedy
        assert "at='serial_blocks4.1'" in remedy

    def test_layers_that_this_call_does_not_run(self) -> None:
        model: Any = make_vit()
        model.extra = copy.deepcopy(model.blocks[0])
        lmgraft.graft(model, random_block(), at="extra")
        what, _ = self.reason(model)
        assert "it did not run 'extra'" in what


def low_rank(model: nn.Module, **options: Any) -> Any:
    """`model` in PEFT's own wrapper, with the same draws each time."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(2)
    targets = {"target_modules": ["qkv", "attn.proj"], "modules_to_save": ["head"]} | options
    return peft.get_peft_model(model, peft.LoraConfig(r=2, **targets))


def train_a_step(model: nn.Module) -> set[str]:
    """Names of what was trained."""
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    model.train()(X).square().mean().backward()
    optimizer.step()
    model.eval()
    return {name for name, tensor in model.named_parameters() if not torch.equal(tensor, before[name])}


@pytest.mark.slow
def test_lora_of_the_encoder_around_a_graft(tmp_path: Path) -> None:
    model = low_rank(make_vit())
    lmgraft.graft(model, random_block())
    trained = train_a_step(model)
    assert {f"base_model.model.graft.mapper_{side}.weight" for side in ("in", "out")} <= trained
    assert any("lora_B" in name for name in trained)
    assert not any("graft.block" in name for name in trained)
    lmgraft.save_pretrained(model, tmp_path / "parts")
    again = lmgraft.load_pretrained(tmp_path / "parts", model=low_rank(make_vit()), llm=random_block()).eval()
    expected = model(X)
    assert torch.equal(again(X), expected)
    merged = model.merge_and_unload()
    lmgraft.save_pretrained(merged, tmp_path / "merged")
    plain = lmgraft.load_pretrained(tmp_path / "merged", model=make_vit(), llm=random_block()).eval()
    assert relative_error(plain(X), expected) <= 1e-5


@pytest.mark.slow
def test_lora_put_around_a_grafted_model(tmp_path: Path) -> None:
    """PEFT freezes what it is not told to train, mappers too; what it wraps of the graft has to be merged."""
    assert not any("mapper" in name for name in train_a_step(low_rank(lmgraft.graft(make_vit(), random_block()))))
    mappers = ["graft.mapper_in", "graft.mapper_out"]
    for options in ({"modules_to_save": ["head", *mappers]}, {"target_modules": "all-linear", "modules_to_save": None}):
        model = low_rank(lmgraft.graft(make_vit(), random_block()), **options)
        trained = train_a_step(model)
        assert all(any(mapper in name for name in trained) for mapper in mappers)
        with pytest.raises(HostError, match="changed the graft itself") as caught:
            lmgraft.save_pretrained(model, tmp_path)
        assert "merge_and_unload" in caught.value.remedy
        assert not list(tmp_path.iterdir())
        expected = model(X)
        lmgraft.save_pretrained(model.merge_and_unload(), tmp_path / "merged")
        plain = lmgraft.load_pretrained(tmp_path / "merged", model=make_vit(), llm=random_block()).eval()
        assert relative_error(plain(X), expected) <= 1e-5
        shutil.rmtree(tmp_path / "merged")
