"""A saved graft: trained tensors, a reference to the block, and no way to load another block."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lmgraft
from lmgraft.block import FrozenBlock
from lmgraft.errors import BlockError, CheckpointError, HostError, LmgraftError, RunError
from lmgraft.graft import find_graft, save
from lmgraft.graft.controls import random_frozen
from lmgraft.graft.layer import ThawedBlockWarning
from tiny import images, make_vit, random_block, randomise_, relative_error
from tiny_hosts import hf

KWARGS = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 7}
SPEC = {"factory": "timm", "name": "vit_tiny_patch16_224", "kwargs": KWARGS}
X = images()


@pytest.fixture
def model(llama_folder: Path) -> nn.Module:
    return lmgraft.graft(make_vit(), str(llama_folder), layer=1)


@pytest.fixture
def saved(model: nn.Module, tmp_path: Path) -> Path:
    return lmgraft.save_pretrained(model, tmp_path / "out")


def other_vit(**kwargs: Any) -> nn.Module:
    """The same shape with other weights."""
    return randomise_(make_vit(**kwargs), seed=77)


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def edit_record(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    file = folder / "lmgraft.json"
    record = json.loads(file.read_text())
    change(record)
    file.write_text(json.dumps(record))


FORMAT_1 = Path(__file__).parent / "saved_format_1"
"""Written by lmgraft before several grafts in a model, with its LLM, an input and the output for it."""


class TestFormat1:
    @pytest.mark.parametrize("host", ["recorded", "given", "grafted"])
    def test_it_loads(self, host: str) -> None:
        kwargs = json.loads((FORMAT_1 / "lmgraft.json").read_text())["host"]["spec"]["kwargs"]
        given = None if host == "recorded" else make_vit(**kwargs)
        if host == "grafted":
            lmgraft.graft(given, str(FORMAT_1 / "llm"), residual="gated", train_block="norms")
        expected = load_file(FORMAT_1 / "expected.safetensors")
        loaded = lmgraft.load_pretrained(FORMAT_1, given, FORMAT_1.joinpath("llm").as_posix())
        assert relative_error(loaded(expected["x"]), expected["out"]) <= 1e-5

    def test_one_graft_is_still_written_so(self, tmp_path: Path) -> None:
        loaded = lmgraft.load_pretrained(FORMAT_1, llm=str(FORMAT_1 / "llm"))
        folder = lmgraft.save_pretrained(loaded, tmp_path)
        old, new = (load_file(f / "model.safetensors") for f in (FORMAT_1, folder))
        assert old.keys() == new.keys()
        assert all(torch.equal(old[name], new[name]) for name in old)
        edit_record(folder, lambda record: record["graft"].update(llm="llm"))
        edit_record(folder, lambda record: record["block"].update(source="llm"))
        old, new = (json.loads((f / "lmgraft.json").read_text()) for f in (FORMAT_1, folder))
        assert old == new


class TwoLinears(nn.Module):
    """A host that lmgraft does not know."""

    def __init__(self, out: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


class TestRoundTrip:
    def test_with_the_model_given(self, model: nn.Module, saved: Path) -> None:
        host = other_vit().train()
        loaded = lmgraft.load_pretrained(saved, model=host)
        assert loaded is host
        assert not loaded.training
        assert torch.equal(loaded(X), model(X))
        assert torch.equal(loaded.forward_features(X), model.forward_features(X))
        assert loaded.graft.config == model.graft.config
        assert loaded.graft.block.provenance == model.graft.block.provenance

    def test_path_as_text(self, model: nn.Module, tmp_path: Path) -> None:
        folder = lmgraft.save_pretrained(model, str(tmp_path / "deep" / "er"))
        assert torch.equal(lmgraft.load_pretrained(str(folder), make_vit())(X), model(X))

    def test_into_a_grafted_model(self, model: nn.Module, saved: Path, llama_folder: Path) -> None:
        grafted = lmgraft.graft(other_vit(), str(llama_folder), layer=1)
        loaded = lmgraft.load_pretrained(saved, model=grafted)
        assert torch.equal(loaded(X), model(X))
        assert hooks_of(loaded) == hooks_of(model)

    def test_without_the_model(self, llama_folder: Path, tmp_path: Path) -> None:
        model = lmgraft.graft(make_vit(), str(llama_folder), host_spec=SPEC)
        folder = lmgraft.save_pretrained(model, tmp_path / "out")
        loaded = lmgraft.load_pretrained(folder)
        assert type(loaded) is type(model)
        assert torch.equal(loaded(X), model(X))
        # What was loaded can be saved and loaded again.
        again = lmgraft.load_pretrained(lmgraft.save_pretrained(loaded, tmp_path / "again"))
        assert torch.equal(again(X), model(X))

    def test_a_timm_name_is_enough(self, llama_folder: Path, tmp_path: Path) -> None:
        spec = {"name": SPEC["name"], "kwargs": KWARGS}
        model = lmgraft.graft(make_vit(), str(llama_folder), host_spec=spec)
        assert torch.equal(lmgraft.load_pretrained(lmgraft.save_pretrained(model, tmp_path / "out"))(X), model(X))

    @pytest.mark.parametrize(
        "options",
        [
            {"at": "middle", "residual": "out"},
            {"at": 0, "residual": "in"},
            {"residual": "gated", "layer": (0, 1)},
            {"reads": (0, 2), "final_norm": "pretrained"},
            {"form": "dense", "final_norm": "none", "layer": -2},
            {"at": "norm", "mapper_init": "default"},
            {"dtype": "bfloat16"},
        ],
    )
    def test_every_choice_comes_back(self, llama_folder: Path, tmp_path: Path, options: dict[str, Any]) -> None:
        model = lmgraft.graft(make_vit(), str(llama_folder), **options)
        if model.graft.gate is not None:
            nn.init.constant_(model.graft.gate, 0.3)
        loaded = lmgraft.load_pretrained(lmgraft.save_pretrained(model, tmp_path), other_vit())
        assert loaded.graft.config == model.graft.config
        assert torch.equal(loaded(X), model(X))

    def test_a_given_block_keeps_its_storage(self, llama_folder: Path, tmp_path: Path) -> None:
        block = lmgraft.load_block(str(llama_folder), dtype="bfloat16")
        model = lmgraft.graft(make_vit(), block)
        loaded = lmgraft.load_pretrained(lmgraft.save_pretrained(model, tmp_path), other_vit())
        assert {p.dtype for p in loaded.graft.block.parameters()} == {torch.bfloat16}
        assert torch.equal(loaded(X), model(X))

    def test_an_unknown_host_by_its_width(self, tiny_block: FrozenBlock, tmp_path: Path) -> None:
        def make() -> nn.Module:
            return TwoLinears(3)

        model = lmgraft.graft(make(), tiny_block, at="first", host_spec={"embed_dim": 16})
        x = torch.randn(2, 5, 16)
        loaded = lmgraft.load_pretrained(lmgraft.save_pretrained(model, tmp_path), make())
        assert torch.equal(loaded(x), model(x))

    def test_tied_weights(self, tiny_block: FrozenBlock, tmp_path: Path) -> None:
        def make(seed: int) -> nn.Module:
            model = TwoLinears(16)
            randomise_(model, seed)
            model.second.weight = model.first.weight
            return model

        model = lmgraft.graft(make(1), tiny_block, at="first", host_spec={"embed_dim": 16})
        x = torch.randn(2, 5, 16)
        folder = lmgraft.save_pretrained(model, tmp_path)
        assert len(load_file(folder / "model.safetensors")) == 5
        loaded = lmgraft.load_pretrained(folder, make(2))
        assert torch.equal(loaded(x), model(x))
        assert loaded.second.weight is loaded.first.weight

    def test_a_trained_block_is_saved(self, model: nn.Module, tmp_path: Path, llama_folder: Path) -> None:
        model.graft.block.requires_grad_(True)
        with torch.no_grad():
            model.graft.block.layers[0].mlp.up.weight.mul_(3.0)
        folder = lmgraft.save_pretrained(model, tmp_path)
        target = lmgraft.graft(other_vit(), str(llama_folder), layer=1)
        target.graft.block.requires_grad_(True)
        assert torch.equal(lmgraft.load_pretrained(folder, target)(X), model(X))

    @pytest.mark.parametrize(
        ("name", "kwargs"),
        [
            ("vit_tiny_patch16_224", {"num_classes": 7, "img_size": 32, "in_chans": 1, "global_pool": "avg"}),
            ("resnet18", {"num_classes": 3, "in_chans": 1}),
        ],
    )
    def test_what_timm_made_needs_no_host_spec(
        self, tiny_block: FrozenBlock, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, kwargs: dict
    ) -> None:
        made = timm.create_model(name, **kwargs, drop_path_rate=0.1)
        model = lmgraft.graft(made, tiny_block).eval()
        folder = lmgraft.save_pretrained(model, tmp_path)
        spec = json.loads((folder / "lmgraft.json").read_text())["host"]["spec"]
        assert (spec["factory"], spec["name"]) == ("timm", name)
        assert capsys.readouterr().err == ""
        x = torch.randn(2, 1, 32, 32)
        assert torch.equal(lmgraft.load_pretrained(folder, llm=tiny_block)(x), model(x))

    def test_a_model_that_cannot_be_made_again_is_said_when_it_is_saved(
        self, tiny_block: FrozenBlock, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        lmgraft.save_pretrained(lmgraft.graft(make_vit(), tiny_block), tmp_path)
        assert "does not say how to build VisionTransformer: load it with load_pretrained" in capsys.readouterr().err

    def test_a_block_thawed_with_its_model_is_said_saved_and_loaded(
        self, model: nn.Module, tmp_path: Path, llama_folder: Path
    ) -> None:
        """As fine-tuning scripts do it: `model.requires_grad_(True)`."""
        model.train()(X)  # no warning: frozen
        model.requires_grad_(True)
        with pytest.warns(ThawedBlockWarning, match="unfroze it"):
            model(X).sum().backward()
        model.eval()
        torch.optim.SGD(model.parameters(), lr=0.1).step()
        folder = lmgraft.save_pretrained(model, tmp_path)
        block = lmgraft.load_block(str(llama_folder), 1)
        before = [parameter.clone() for parameter in block.parameters()]
        loaded = lmgraft.load_pretrained(folder, other_vit())
        assert torch.equal(loaded(X), model(X))
        assert set(loaded.state_dict()) == set(model.state_dict())
        grafted = lmgraft.graft(other_vit(), block)
        assert torch.equal(lmgraft.load_pretrained(folder, grafted)(X), model(X))
        again = lmgraft.load_block(str(llama_folder), 1)
        assert all(torch.equal(a, b) for a, b in zip(again.parameters(), before, strict=True))
        model.graft.block.requires_grad_(False)
        model.train()(X)
        model.graft.block.requires_grad_(True)  # asked for: nothing is said
        model(X)

    def test_weights_trained_around_another_block_are_refused_by_load_state_dict(
        self, model: nn.Module, tmp_path: Path, llama_folder: Path
    ) -> None:
        other = lmgraft.graft(other_vit(), str(llama_folder), layer=0)
        with pytest.raises(RuntimeError, match="were trained around another block"):
            other.load_state_dict(model.state_dict())
        torch.save(model.state_dict(), tmp_path / "state.pt")
        with pytest.raises(RuntimeError, match="were trained around another block"):
            other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True), strict=False)
        same = lmgraft.graft(other_vit(), str(llama_folder), layer=1)
        same.load_state_dict(model.state_dict())
        assert torch.equal(same.eval()(X), model.eval()(X))

    @pytest.mark.parametrize("wrap", [torch.compile, torch.nn.DataParallel])
    def test_a_wrapped_model_is_saved_under_its_own_names(
        self, model: nn.Module, tmp_path: Path, wrap: Callable[[nn.Module], nn.Module]
    ) -> None:
        folder = lmgraft.save_pretrained(wrap(model), tmp_path)
        assert set(load_file(folder / "model.safetensors")) == set(model.state_dict())
        assert torch.equal(lmgraft.load_pretrained(folder, other_vit())(X), model(X))

    def test_a_plain_model_is_refused(self, tiny_vit: nn.Module, tmp_path: Path) -> None:
        with pytest.raises(HostError, match="it is not grafted"):
            lmgraft.save_pretrained(tiny_vit, tmp_path / "out")
        assert not (tmp_path / "out").exists()


class TestTransformers:
    """Its `from_pretrained` of a saved graft says what is missing; it does not load the host without the graft."""

    @pytest.fixture
    def graft(self) -> nn.Module:
        return lmgraft.graft(hf("ViTForImageClassification"), random_block()).eval()

    def test_from_pretrained_refuses(self, graft: Any, tmp_path: Path) -> None:
        import transformers

        lmgraft.save_pretrained(graft, tmp_path)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["graft.safetensors", "lmgraft.json"]
        with pytest.raises(OSError, match=r"no file named model\.safetensors"):
            type(graft).from_pretrained(tmp_path, config=graft.config)
        with pytest.raises(OSError, match=r"no file named model\.safetensors"):
            type(graft).from_pretrained(tmp_path)
        with pytest.raises(ValueError, match="Unrecognized model"):
            transformers.AutoModelForImageClassification.from_pretrained(tmp_path)

    def test_lmgraft_loads_it(self, graft: Any, tmp_path: Path) -> None:
        lmgraft.save_pretrained(graft, tmp_path)
        (tmp_path / "model.safetensors").write_bytes(b"of transformers' own save_pretrained")
        again = lmgraft.load_pretrained(tmp_path, model=hf("ViTForImageClassification"), llm=random_block())
        assert torch.equal(again(X).logits, graft(X).logits)


class TestWhatLiesInTheFolder:
    def test_no_block_tensors(self, model: nn.Module, saved: Path) -> None:
        names = set(load_file(saved / "model.safetensors"))
        assert names == set(model.state_dict())
        assert not any(n.startswith("graft.block.") for n in names)
        assert sorted(p.name for p in saved.iterdir()) == ["lmgraft.json", "model.safetensors"]

    def test_small(self, model: nn.Module, saved: Path) -> None:
        trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
        frozen = sum(p.numel() * p.element_size() for p in model.parameters() if not p.requires_grad)
        size = (saved / "model.safetensors").stat().st_size
        assert trained <= size < trained + 6000 < trained + frozen

    def test_the_record(self, model: nn.Module, saved: Path, llama_folder: Path) -> None:
        record = json.loads((saved / "lmgraft.json").read_text())
        assert record["block"]["digest"] == model.graft.block.provenance.digest
        assert record["block"]["source"] == str(llama_folder)
        assert record["block"]["layers"] == [1]
        assert len(record["block"]["tensors"]) == 9
        assert record["graft"]["layer"] == 1
        assert record["host"] == {"class": "timm.models.vision_transformer.VisionTransformer", "spec": None}


class TestMovedAndOtherBlocks:
    def test_moved_copy(self, model: nn.Module, saved: Path, llama_folder: Path, tmp_path: Path) -> None:
        moved = shutil.copytree(llama_folder, tmp_path / "moved")
        edit_record(saved, lambda r: r["block"].update(source="/gone/llama"))
        with pytest.raises(LmgraftError, match="is not there"):
            lmgraft.load_pretrained(saved, make_vit())
        loaded = lmgraft.load_pretrained(saved, make_vit(), llm=str(moved))
        assert torch.equal(loaded(X), model(X))
        assert loaded.graft.config.llm == str(moved)

    def test_a_copy_in_another_format(self, model: nn.Module, saved: Path, make_gguf: Callable[..., Path]) -> None:
        loaded = lmgraft.load_pretrained(saved, make_vit(), llm=str(make_gguf()))
        assert torch.equal(loaded(X), model(X))

    def test_a_block_given(self, model: nn.Module, saved: Path, llama_folder: Path) -> None:
        block = lmgraft.load_block(str(llama_folder), 1)
        loaded = lmgraft.load_pretrained(saved, make_vit(), llm=block)
        assert loaded.graft.block is block
        assert torch.equal(loaded(X), model(X))

    def test_another_layer_is_refused(self, saved: Path, llama_folder: Path) -> None:
        host = other_vit()
        keys, hooked, before = set(host.state_dict()), hooks_of(host), host(X)
        with pytest.raises(BlockError) as caught:
            lmgraft.load_pretrained(saved, host, llm=lmgraft.load_block(str(llama_folder), 0))
        assert "another block than the one it was trained with" in str(caught.value)
        assert "9 of 9 tensors differ, first 0.attention.k.weight" in str(caught.value)
        assert str(llama_folder) in caught.value.remedy
        assert find_graft(host) is None
        assert (set(host.state_dict()), hooks_of(host)) == (keys, hooked)
        assert torch.equal(host(X), before)

    def test_a_single_changed_value_is_refused(self, saved: Path, llama_folder: Path, tmp_path: Path) -> None:
        moved = shutil.copytree(llama_folder, tmp_path / "moved")
        state = load_file(moved / "model.safetensors")
        state["model.layers.1.mlp.up_proj.weight"][0, 0] += 1e-6
        save_file(state, moved / "model.safetensors")
        with pytest.raises(BlockError, match=r"1 of 9 tensors differ, first 0\.mlp\.up\.weight"):
            lmgraft.load_pretrained(saved, make_vit(), llm=str(moved))

    def test_another_config_is_refused(self, saved: Path, llama_folder: Path, tmp_path: Path) -> None:
        moved = shutil.copytree(llama_folder, tmp_path / "moved")
        config = json.loads((moved / "config.json").read_text())
        (moved / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
        with pytest.raises(BlockError, match="config differs"):
            lmgraft.load_pretrained(saved, make_vit(), llm=str(moved))

    def test_another_final_norm_is_refused(self, saved: Path, llama_folder: Path) -> None:
        block = lmgraft.load_block(str(llama_folder), 1, final_norm="pretrained")
        with pytest.raises(BlockError, match=r"differ, first final_norm\.weight"):
            lmgraft.load_pretrained(saved, make_vit(), llm=block)

    def test_a_grafted_model_of_another_block(self, saved: Path, llama_folder: Path) -> None:
        grafted = lmgraft.graft(other_vit(), str(llama_folder), layer=2)
        before = grafted(X)
        with pytest.raises(BlockError, match="tensors differ"):
            lmgraft.load_pretrained(saved, grafted)
        assert torch.equal(grafted(X), before)

    @pytest.mark.parametrize("options", [{"residual": "out"}, {"residual": "in"}, {"at": "middle"}, {"reads": -1}])
    def test_a_grafted_model_of_another_wiring(self, saved: Path, llama_folder: Path, options: dict[str, Any]) -> None:
        """The names and shapes fit, and yet it would compute something else."""
        grafted = lmgraft.graft(other_vit(), str(llama_folder), layer=1, **options)
        before = grafted(X)
        with pytest.raises(LmgraftError, match=next(iter(options))):
            lmgraft.load_pretrained(saved, grafted)
        assert torch.equal(grafted(X), before)


class TestControls:
    def test_round_trip(self, tiny_block: FrozenBlock, tmp_path: Path) -> None:
        model = lmgraft.graft(make_vit(), random_frozen(tiny_block, seed=6))
        folder = lmgraft.save_pretrained(model, tmp_path)
        loaded = lmgraft.load_pretrained(folder, other_vit())
        assert torch.equal(loaded(X), model(X))
        assert loaded.graft.block.provenance.control["seed"] == 6
        with pytest.raises(BlockError, match="another block"):
            lmgraft.load_pretrained(folder, other_vit(), llm=tiny_block)

    def test_another_seed_is_refused(self, tiny_block: FrozenBlock, tmp_path: Path) -> None:
        model = lmgraft.graft(make_vit(), random_frozen(tiny_block, seed=6))
        folder = lmgraft.save_pretrained(model, tmp_path)
        edit_record(folder, lambda r: r["block"]["control"].update(seed=7))
        with pytest.raises(BlockError, match="tensors differ"):
            lmgraft.load_pretrained(folder, other_vit())

    def test_made_from_another_block(self, tiny_block: FrozenBlock, llama_folder: Path, tmp_path: Path) -> None:
        model = lmgraft.graft(make_vit(), random_frozen(tiny_block, seed=6))
        folder = lmgraft.save_pretrained(model, tmp_path)
        edit_record(folder, lambda r: r["block"].update(layers=[0]))
        with pytest.raises(BlockError, match="the control was made from block"):
            lmgraft.load_pretrained(folder, other_vit())

    @pytest.mark.parametrize("when", ["before", "after"])
    def test_of_a_block_in_16_bits(self, llama_folder: Path, tmp_path: Path, when: str) -> None:
        block = lmgraft.load_block(str(llama_folder), dtype="bfloat16" if when == "before" else None)
        control = random_frozen(block, seed=6)
        model = lmgraft.graft(make_vit(), control, dtype="bfloat16" if when == "after" else None)
        assert {p.dtype for p in model.graft.block.parameters()} == {torch.bfloat16}
        loaded = lmgraft.load_pretrained(lmgraft.save_pretrained(model, tmp_path), other_vit())
        assert torch.equal(loaded(X), model(X))


class TestDoesNotFit:
    def test_other_shapes(self, saved: Path) -> None:
        host = other_vit(num_classes=9, img_size=16)
        before = host(images()[:, :, :16, :16])
        with pytest.raises(CheckpointError) as caught:
            lmgraft.load_pretrained(saved, host)
        for name, theirs, mine in (
            ("head.weight", (7, 48), (9, 48)),
            ("head.bias", (7,), (9,)),
            ("pos_embed", (1, 17, 48), (1, 5, 48)),
        ):
            assert f"{name} has shape {theirs}, the model {mine}" in str(caught.value)
        assert find_graft(host) is None
        assert torch.equal(host(images()[:, :, :16, :16]), before)

    def test_missing_and_unknown(self, saved: Path) -> None:
        state = load_file(saved / "model.safetensors")
        del state["head.bias"], state["graft.mapper_in.weight"]
        state["extra.weight"] = torch.ones(2)
        save_file(state, saved / "model.safetensors")
        host = other_vit()
        with pytest.raises(CheckpointError) as caught:
            lmgraft.load_pretrained(saved, host)
        for part in ("missing head.bias", "missing graft.mapper_in.weight", "unknown extra.weight"):
            assert part in str(caught.value)
        assert find_graft(host) is None

    def test_a_long_list_is_cut(self, saved: Path) -> None:
        with pytest.raises(CheckpointError, match=r"and \d+ more"):
            lmgraft.load_pretrained(saved, other_vit(depth=6))

    def test_a_grafted_model_stays_grafted(self, saved: Path, llama_folder: Path) -> None:
        grafted = lmgraft.graft(other_vit(num_classes=9), str(llama_folder), layer=1)
        before = grafted(X)
        with pytest.raises(CheckpointError, match=r"head\.weight has shape"):
            lmgraft.load_pretrained(saved, grafted)
        assert torch.equal(grafted(X), before)


class TestDamage:
    @pytest.mark.parametrize("keep", [0, 5, 100, 0.5, 0.999])
    def test_truncated_tensors(self, saved: Path, keep: float) -> None:
        file = saved / "model.safetensors"
        data = file.read_bytes()
        file.write_bytes(data[: int(keep if keep >= 1 else keep * len(data))])
        host = other_vit()
        with pytest.raises(CheckpointError, match="cut short or damaged"):
            lmgraft.load_pretrained(saved, host)
        assert find_graft(host) is None

    def test_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(RunError, match=r"lmgraft\.json is missing"):
            lmgraft.load_pretrained(tmp_path / "none", make_vit())

    def test_missing_tensors(self, saved: Path) -> None:
        (saved / "model.safetensors").unlink()
        with pytest.raises(CheckpointError, match=r"model\.safetensors is missing"):
            lmgraft.load_pretrained(saved, make_vit())

    @pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "{}", '{"format": 1}', '{"format": 2}'])
    def test_record_that_is_none(self, saved: Path, text: str) -> None:
        (saved / "lmgraft.json").write_text(text)
        with pytest.raises(LmgraftError, match=r"lmgraft\.json"):
            lmgraft.load_pretrained(saved, make_vit())

    @pytest.mark.parametrize(
        "change",
        [
            lambda r: r["graft"].update(new_option=True),
            lambda r: r["graft"].update(residual="sideways"),
            lambda r: r.pop("host"),
            lambda r: r.pop("block"),
            lambda r: r["block"].pop("digest"),
            lambda r: r["block"].pop("layers"),
            lambda r: r["block"].update(control={"kind": "shuffled"}),
            lambda r: r["block"].update(control={"kind": "random_frozen"}),
            lambda r: r.update(graft=[]),
        ],
    )
    def test_record_with_a_hole(self, saved: Path, change: Callable[[dict[str, Any]], None]) -> None:
        edit_record(saved, change)
        host = other_vit()
        with pytest.raises(LmgraftError):
            lmgraft.load_pretrained(saved, host)
        assert find_graft(host) is None


class TestFactories:
    @pytest.fixture
    def folder(self, llama_folder: Path, tmp_path: Path) -> Path:
        return lmgraft.save_pretrained(lmgraft.graft(make_vit(), str(llama_folder), host_spec=SPEC), tmp_path / "out")

    def test_none_recorded(self, saved: Path) -> None:
        with pytest.raises(HostError, match="does not say how to build its host") as caught:
            lmgraft.load_pretrained(saved)
        assert "model=" in caught.value.remedy

    @pytest.mark.parametrize("factory", ["os:system", "subprocess", "timmm", "lmgraft.backbones.timm_vit:create"])
    def test_unknown_factory_is_refused(self, folder: Path, factory: str) -> None:
        """Only names in the table are ever called; a record cannot name code."""
        edit_record(folder, lambda r: r["host"]["spec"].update(factory=factory))
        with pytest.raises(HostError, match="names the factory"):
            lmgraft.load_pretrained(folder)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"name": "vit_tinny_patch16_224"}, "timm has no model 'vit_tinny_patch16_224'"),
            ({"name": "resnet10t", "kwargs": {}}, "built a timm.models.resnet.ResNet, recorded is"),
            ({"kwargs": {"wings": 2}}, "refused its arguments"),
            ({"name": None}, ""),
            ({"kwargs": None}, ""),
        ],
    )
    def test_senseless_spec(self, folder: Path, change: dict[str, Any], message: str) -> None:
        edit_record(folder, lambda r: r["host"]["spec"].update(change))
        with pytest.raises(LmgraftError) as caught:
            lmgraft.load_pretrained(folder)
        assert message in str(caught.value)

    def test_spec_of_another_shape(self, folder: Path) -> None:
        edit_record(folder, lambda r: r["host"]["spec"]["kwargs"].update(num_classes=9))
        with pytest.raises(CheckpointError, match=r"head\.weight has shape \(7, 48\), the model \(9, 48\)"):
            lmgraft.load_pretrained(folder)


class TestAtomicity:
    def test_a_failing_save_leaves_the_older_one(
        self, model: nn.Module, saved: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = {p.name: p.read_bytes() for p in saved.iterdir()}
        expected = copy.deepcopy(model)(X)
        randomise_(model.head, seed=1)

        def half(state: dict[str, Tensor], path: str, **_: object) -> None:
            Path(path).write_bytes(b"half")
            raise OSError("No space left on device")

        monkeypatch.setattr(save, "save_file", half)
        with pytest.raises(OSError, match="No space left"):
            lmgraft.save_pretrained(model, saved)
        assert {p.name: p.read_bytes() for p in saved.iterdir()} == before
        assert torch.equal(lmgraft.load_pretrained(saved, make_vit())(X), expected)

    def test_a_failing_first_save_leaves_nothing(
        self, model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object, **__: object) -> None:
            raise OSError("No space left on device")

        monkeypatch.setattr(save, "save_file", fail)
        with pytest.raises(OSError, match="No space left"):
            lmgraft.save_pretrained(model, tmp_path / "out")
        assert list((tmp_path / "out").iterdir()) == []

    def test_saving_again_replaces(self, model: nn.Module, saved: Path) -> None:
        randomise_(model.head, seed=1)
        lmgraft.save_pretrained(model, saved)
        assert torch.equal(lmgraft.load_pretrained(saved, make_vit())(X), model(X))
        assert relative_error(model(X), lmgraft.graft(make_vit(), model.graft.block)(X)) > 0
