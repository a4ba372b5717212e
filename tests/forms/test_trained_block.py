"""A block that is trained itself: all of it, its norms, or low-rank additions; and controls that are trained."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm.optim
import torch
from oracle import SOME_TRAITS, TRAITS, assert_same, counted, draw, exact, make_mapper, problem, results
from torch import Tensor, nn

import lmgraft
from lmgraft.block import FrozenBlock
from lmgraft.block.lora import LoraProjection, merge_lora
from lmgraft.block.parts import Norm, Projection
from lmgraft.block.trained import LORA_TARGETS, trainable
from lmgraft.contracts import MeanOf
from lmgraft.errors import ApproximationError, BlockError, CheckpointError, LmgraftError
from lmgraft.graft import GraftConfig
from lmgraft.graft.controls import apply_control, linear, mlp, random_frozen, random_trained
from lmgraft.graft.export import export_program
from lmgraft.graft.forms.compute import trained_parts
from lmgraft.graft.forms.cost import operations
from lmgraft.graft.forms.plan import exact_plans
from lmgraft.graft.forms.problem import LayerPlan
from lmgraft.graft.forms.run import dense
from lmgraft.recipes.recipe import load_recipe
from lmgraft.training.callbacks import check_block
from lmgraft.training.optim import OptimConfig, make_optimizer
from tiny import calls_of, images, long_but, make_vit, of_timm, random_block, randomise_, relative_error

KINDS = ["all", "norms", "lora"]
FORMS = ["auto", "dense", "reads", "folded", "absorbed"]
X = images()


def trained(kind: str, *, dtype: torch.dtype = torch.float64, rank: int = 3, **traits: Any) -> FrozenBlock:
    """A block with part of it trained; LoRA's B is not zero, which would hide it."""
    block = trainable(random_block(dtype=dtype, **traits), kind, lora_rank=rank, lora_alpha=2.0)  # type: ignore[arg-type]
    wake(block)
    return block


def wake(module: nn.Module, seed: int = 17) -> None:
    """Low-rank parts as they are after some training."""
    generator = torch.Generator().manual_seed(seed)
    for child in module.modules():
        if isinstance(child, LoraProjection):
            noise = torch.randn(child.lora_b.shape, generator=generator)
            child.lora_b.data.copy_(0.3 * noise.to(child.lora_b.dtype))


def grafted(kind: str = "lora", form: str = "auto", block: dict[str, Any] | None = None, **options: Any) -> nn.Module:
    """Wide enough that folding pays."""
    torch.manual_seed(3)
    shape = {"dim": 160, "mlp_dim": 72}
    model = make_vit()
    return lmgraft.graft(model, random_block(**(shape | (block or {}))), train_block=kind, form=form, **options).eval()


def dense_twin(model: nn.Module) -> nn.Module:
    twin = copy.deepcopy(model)
    twin.graft.config = type(twin.graft.config)(**(vars(twin.graft.config) | {"form": "dense"}))
    return twin


def step(model: nn.Module, lr: float = 1e-2) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    for _ in range(2):  # LoRA's A moves once B has
        optimizer.zero_grad()
        model(images(4)).square().sum().backward()
        optimizer.step()


def of_block(model: nn.Module) -> set[str]:
    """The block's tensors in the state dict, by their names in the block."""
    return {n.removeprefix("graft.block.") for n in model.state_dict() if n.startswith("graft.block.")}


def tensors(kind: str, block: FrozenBlock) -> set[str]:
    """What `kind` trains of `block`, by name, said in another way than the code says it."""
    names = {n for n, _ in block.named_parameters()}
    if kind == "norms":
        return {n for n in names if "norm" in n}
    if kind == "lora":
        weights = [n.removesuffix(".weight") for n in names if "norm" not in n and n.endswith("weight")]
        return {f"{n}.{part}" for n in weights for part in ("lora_a", "lora_b")}
    return names if kind == "all" else set()


class TestForms:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("trait", SOME_TRAITS)
    def test_equal_the_reference(self, trait: str, kind: str) -> None:
        """Outputs and gradients of x, of W1 and of all that is trained in the block."""
        block = trained(kind, **TRAITS[trait])
        mapper, x = make_mapper(12, 32, torch.float64), draw(2, 5, 12)
        mask = torch.tensor([[False] * 4 + [True], [False] * 5])
        for plan in exact(block, mapper, x):
            assert_same(block, mapper, x, [plan], mask, reads=(0, 3))

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("trait", ["llama", "gemma2", "olmo2", "phi"])
    def test_in_float32(self, trait: str, kind: str) -> None:
        block = trained(kind, dtype=torch.float32, **TRAITS[trait])
        mapper, x = make_mapper(12, 32, torch.float32), draw(2, 5, 12, dtype=torch.float32)
        for plan in exact(block, mapper, x):
            assert_same(block, mapper, x, [plan])

    @pytest.mark.parametrize("kind", KINDS)
    def test_stacks(self, kind: str) -> None:
        block = trained(kind, layers=2, final_norm="pretrained", bias=True)
        mapper, x = make_mapper(12, 32, torch.float64), draw(2, 5, 12)
        for plan in exact(block, mapper, x):
            for last in (LayerPlan(), LayerPlan("wide", "projected", "absorbed", "absorbed")):
                assert_same(block, mapper, x, [plan, last])

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("form", FORMS)
    def test_every_trained_tensor_gets_a_gradient(self, form: str, kind: str) -> None:
        """DDP waits for each, for those that softmax ignores as well."""
        model = grafted(kind, form, {"norm": "layer", "norm_bias": True, "bias": True}).train()
        model(X).square().sum().backward()
        assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("form", FORMS[2:])
    def test_whole_models(self, form: str, kind: str) -> None:
        model = grafted(kind, form, {"dtype": torch.float64}).double()
        wake(model)
        twin, x = dense_twin(model), images(dtype=torch.float64)
        for each in (model, twin):
            each(x).square().sum().backward()
        for (name, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
            if ours.requires_grad:
                assert relative_error(ours.grad, theirs.grad) < 1e-10, name

    @pytest.mark.parametrize("kind", ["norms", "lora"])
    @pytest.mark.parametrize("gradients", [{}, {"x_grad": True, "mapper_grad": True}], ids=["alone", "all"])
    @pytest.mark.parametrize("trait", long_but(["opt", "gemma2", "qwen3", "opt 350", "neox"], "opt", "gemma2"))
    def test_counts_are_those_of_a_real_run(self, trait: str, gradients: dict[str, bool], kind: str) -> None:
        block = trained(kind, dtype=torch.float32, **TRAITS[trait])
        mapper = make_mapper(12, 32, torch.float32).requires_grad_("mapper_grad" in gradients)
        x = draw(3, 7, 12, dtype=torch.float32).requires_grad_("x_grad" in gradients)
        posed = problem(block, mapper, x, 0, **gradients, **trained_parts(block).now())
        for plan in exact_plans(posed):
            expected = sum(op.multiply_adds for op in operations(plan, posed))
            assert counted(block, mapper, x, 0, plan) == expected, plan


class TestLora:
    @pytest.mark.parametrize("trait", ["llama", "biases", "olmo2", "phi"])
    def test_is_the_published_formula(self, trait: str) -> None:
        """W + (alpha / r) B A in a plain block: the same outputs, and the gradients by the chain rule."""
        block = trained("lora", rank=3, **TRAITS[trait])
        plain = random_block(dtype=torch.float64, **TRAITS[trait])
        parts = [(n, m) for n, m in block.named_modules() if isinstance(m, LoraProjection)]
        assert len(parts) == (6 if trait == "phi" else 7)
        for name, part in parts:
            weight = plain.get_parameter(f"{name}.weight")
            weight.data += 2.0 / 3 * part.lora_b.detach() @ part.lora_a.detach()
            weight.requires_grad_(True)
        mapper, x = make_mapper(12, 32, torch.float64), draw(2, 5, 12)
        found, expected = results(dense, mapper, block, x, None, 0), results(dense, mapper, plain, x, None, 0)
        for name in ("out", "h", "grad x", "grad W1 weight"):
            assert relative_error(found[name], expected[name]) < 1e-10, name
        for name, part in parts:
            whole = 2.0 / 3 * expected[f"grad {name}.weight"]
            assert relative_error(found[f"grad {name}.lora_a"], part.lora_b.T @ whole) < 1e-10, name
            assert relative_error(found[f"grad {name}.lora_b"], whole @ part.lora_a.T) < 1e-10, name

    @pytest.mark.parametrize("form", FORMS)
    def test_starts_as_the_frozen_block(self, form: str) -> None:
        model, frozen = grafted("lora", form), grafted("none", form)
        with torch.no_grad():
            assert torch.equal(model(X), frozen(X))
            step_free = model(X)
        with torch.enable_grad():
            step(model)
        with torch.no_grad():
            assert relative_error(model(X), step_free) > 1e-4

    def test_draws_leave_the_mappers_alone(self) -> None:
        models = {kind: grafted(kind) for kind in ("none", *KINDS)}
        for kind in KINDS:
            for name in ("mapper_in", "mapper_out"):
                ours, theirs = (getattr(models[k].graft, name).weight for k in (kind, "none"))
                assert torch.equal(ours, theirs), (kind, name)

    def test_seeded_by_torch(self) -> None:
        parts = [grafted().graft.block.layers[0].mlp.up.lora_a for _ in range(2)]
        torch.manual_seed(4)
        other = trainable(random_block(dim=160, mlp_dim=72), "lora").layers[0].mlp.up.lora_a
        assert torch.equal(*parts)
        assert not torch.equal(parts[0], other)
        assert parts[0].std() > 0.01

    def test_targets_and_rank(self) -> None:
        model = grafted(lora_targets=("q", "v"), lora_rank=2, lora_alpha=6.0)
        found = {n: m for n, m in model.named_modules() if isinstance(m, LoraProjection)}
        assert set(found) == {f"graft.block.layers.0.attention.{n}" for n in "qv"}
        assert all(m.lora_a.shape == (2, 160) and m.scale == 3.0 for m in found.values())
        assert model.graft.block.provenance.trained == {"kind": "lora", "rank": 2, "alpha": 6.0, "targets": ["q", "v"]}

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    def test_beside_narrow_weights(self, dtype: str) -> None:
        """The block stays in 16 bits; what is trained is as wide as the host."""
        model = grafted(dtype=dtype)
        wake(model)
        block = model.graft.block
        assert {str(p.dtype) for n, p in block.named_parameters() if "lora" not in n} == {f"torch.{dtype}"}
        assert {p.dtype for p in block.parameters() if p.requires_grad} == {torch.float32}
        wide = copy.deepcopy(model).float()
        for each in (model, wide):
            each(X).square().sum().backward()
        for (name, ours), theirs in zip(model.named_parameters(), wide.parameters(), strict=True):
            if ours.requires_grad:
                assert relative_error(ours.grad, theirs.grad) < 1e-5, name
        before = {n: p.clone() for n, p in model.named_parameters()}
        step(model)
        for name, p in model.named_parameters():
            assert torch.equal(p, before[name]) is not p.requires_grad, name

    @pytest.mark.parametrize("form", FORMS)
    def test_under_autocast(self, form: str) -> None:
        model = grafted("lora", form)
        wake(model)
        with torch.no_grad():
            expected = model(X)
            with torch.autocast("cpu", torch.bfloat16):
                assert relative_error(model(X), expected) < 0.05

    def test_merged(self) -> None:
        block, x = trained("lora", bias=True), draw(2, 5, 32)
        merged = copy.deepcopy(block)
        merge_lora(merged)
        assert not any(isinstance(m, LoraProjection) for m in merged.modules())
        assert relative_error(merged(x), block(x)) < 1e-12
        narrow = trainable(random_block().to(torch.bfloat16), "lora")
        merge_lora(narrow)
        assert any(isinstance(m, LoraProjection) for m in narrow.modules())


class TestKeptFolds:
    @pytest.mark.parametrize("kind", ["norms", "lora"])
    def test_in_evaluation_and_never_stale(self, kind: str) -> None:
        model = grafted(kind)
        wake(model)
        names = [n for n, p in model.graft.named_parameters() if p.requires_grad and ("attention" in n)]
        assert names
        for name in names:
            if ".o." in name:
                continue
            with torch.no_grad():
                before = model(X)
                assert model.graft.compute.fold_cache._kept is not None
                model.graft.get_parameter(name).data[1] += 0.7  # no version is counted up
                assert relative_error(model(X), dense_twin(model)(X)) < 1e-5, name
                assert relative_error(model(X), before) > 1e-6, name
        step(model)
        with torch.no_grad():
            assert relative_error(model(X), dense_twin(model)(X)) < 1e-5

    @pytest.mark.parametrize("kind", KINDS)
    def test_not_in_training(self, kind: str) -> None:
        model = grafted(kind).train()
        model.graft.mapper_in.requires_grad_(False)
        with torch.no_grad():
            model(X)
        assert model.graft.compute.fold_cache._kept is None


class TestWhatIsTrained:
    @pytest.mark.parametrize("kind", ["none", *KINDS])
    @pytest.mark.parametrize("final_norm", ["unit", "pretrained", "none"])
    def test_state_dict(self, kind: str, final_norm: str) -> None:
        block = random_block(layers=2, final_norm=final_norm, bias=True, qk_norm="per_head")
        model = lmgraft.graft(make_vit(), block, train_block=kind)
        expected = tensors(kind, block)
        assert of_block(model) == expected
        assert {n for n, p in model.graft.block.named_parameters() if p.requires_grad} == expected
        assert ("final_norm.weight" in expected) is (final_norm == "pretrained" and kind in ("all", "norms"))

    @pytest.mark.parametrize("kind", KINDS)
    def test_what_was_given_is_left_alone(self, kind: str) -> None:
        block = random_block()
        before = {n: p.clone() for n, p in block.named_parameters()}
        model = lmgraft.graft(make_vit(), block, train_block=kind)
        step(model)
        assert block.provenance.trained is None
        assert {n for n, _ in block.named_parameters()} == set(before)
        assert all(torch.equal(p, before[n]) and not p.requires_grad for n, p in block.named_parameters())
        shared = {p.data_ptr() for p in block.parameters()}
        for name, p in model.graft.block.named_parameters():
            assert (p.data_ptr() in shared) is not p.requires_grad, name

    @pytest.mark.parametrize("kind", KINDS)
    def test_optimisers(self, kind: str) -> None:
        model = grafted(kind)
        expected = {f"graft.block.{n}" for n in tensors(kind, random_block(dim=160, mlp_dim=72))}
        for decay in (None, 0.7):
            optimizer = make_optimizer(model, OptimConfig(lr=1e-2, layer_decay=decay))
            by_id = {id(p): n for n, p in model.named_parameters()}
            groups = {by_id[id(p)]: g for g in optimizer.param_groups for p in g["params"]}
            assert {n for n in groups if n.startswith("graft.block.")} == expected
            assert all(groups[n]["weight_decay"] == 0 for n in expected if n.endswith("norm.weight"))
            assert all(groups[n]["lr"] == 1e-2 for n in expected)
        before = {n: p.clone() for n, p in model.named_parameters()}
        for _ in range(2):
            optimizer.zero_grad()
            model(images(4)).square().sum().backward()
            optimizer.step()
        for name, p in model.graft.block.named_parameters():
            assert torch.equal(p, before[f"graft.block.{name}"]) is (f"graft.block.{name}" not in expected), name

    @pytest.mark.parametrize("kind", KINDS)
    def test_created_by_timm(self, kind: str) -> None:
        model = grafted(kind)
        optimizer = timm.optim.create_optimizer_v2(model, opt="adamw", lr=1e-2, weight_decay=0.05)
        held = {id(p) for g in optimizer.param_groups for p in g["params"]}
        assert held == {id(p) for p in model.parameters() if p.requires_grad}

    @pytest.mark.parametrize("kind", KINDS)
    def test_strict_loading(self, kind: str) -> None:
        source, target = grafted(kind), grafted(kind)
        step(source)
        target.load_state_dict(source.state_dict(), strict=True)
        assert torch.equal(target(X), source(X))
        with pytest.raises(RuntimeError, match="Unexpected key"):
            grafted("none").load_state_dict(source.state_dict())
        with pytest.raises(RuntimeError, match="Missing key"):
            source.load_state_dict(grafted("none").state_dict())

    @pytest.mark.parametrize("kind", KINDS)
    def test_frozen_for_a_while(self, kind: str) -> None:
        """What was trained is saved, also by somebody who has frozen everything before."""
        model = grafted(kind)
        step(model)
        names, other = of_block(model), grafted(kind)
        model.requires_grad_(False)
        assert of_block(model) == names
        other.load_state_dict(model.state_dict())
        with torch.no_grad():
            assert relative_error(other(X), model(X)) < 1e-6
        clone = copy.deepcopy(model)
        for name in names:
            assert clone.graft.block.get_parameter(name).data_ptr() != model.graft.block.get_parameter(name).data_ptr()

    @pytest.mark.parametrize("kind", KINDS)
    def test_copies(self, kind: str) -> None:
        model = grafted(kind)
        ema = of_timm("utils.ModelEmaV3")(model, decay=0.5)
        start = {n: p.detach().clone() for n, p in model.named_parameters()}
        step(model)
        ema.update(model)
        for name, p in ema.module.named_parameters():
            ours = model.get_parameter(name)
            assert (p.data_ptr() == ours.data_ptr()) is not ours.requires_grad, name
            assert torch.allclose(p, 0.5 * start[name] + 0.5 * ours, atol=1e-6), name
        for clone in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301 - our own bytes
            assert torch.equal(clone(X), model(X))
            assert clone.graft.block.provenance == model.graft.block.provenance
            assert of_block(clone) == of_block(model)

    @pytest.mark.parametrize("kind", KINDS)
    def test_identity_is_that_of_the_start(self, kind: str) -> None:
        """Checkpoints of a run carry it from the first step to the last."""
        block = random_block(dim=160, mlp_dim=72)
        model = grafted(kind)
        step(model)
        found = model.graft.block.provenance
        assert (found.digest, found.tensors) == (block.provenance.digest, block.provenance.tensors)
        assert found.trained is not None
        assert found.trained["kind"] == kind
        assert kind in repr(model.graft.block)
        check_block({"lmgraft": {"block_digest": block.provenance.digest}}, found.digest)

    @pytest.mark.parametrize("kind", KINDS)
    def test_undone(self, kind: str) -> None:
        plain = make_vit()
        before, names = plain(X), list(plain.state_dict())
        model = lmgraft.ungraft(lmgraft.graft(plain, random_block(), train_block=kind))
        assert list(model.state_dict()) == names
        assert torch.equal(model(X), before)

    @pytest.mark.parametrize("kind", KINDS)
    def test_stays_in_eval_mode_where_nothing_is_trained(self, kind: str) -> None:
        model = grafted(kind).train()
        assert model.graft.block.training
        assert not grafted("none").train().graft.block.training

    def test_narrow_weights_are_trained_wide(self) -> None:
        """Steps smaller than bfloat16's spacing would be lost."""
        model = grafted("all", dtype="bfloat16")
        assert {p.dtype for p in model.graft.block.parameters()} == {torch.float32}
        gains = grafted("norms", dtype="bfloat16").graft.block
        assert {p.dtype for m in gains.modules() if isinstance(m, Norm) for p in m.parameters()} == {torch.float32}
        assert {p.dtype for m in gains.modules() if isinstance(m, Projection) for p in m.parameters()} == {
            torch.bfloat16
        }

    def test_a_trained_block_in_another_graft(self) -> None:
        """It goes on as it was trained, and its graft's config says so."""
        first = grafted("lora", lora_rank=2)
        block = first.graft.block
        wake(block)
        lmgraft.ungraft(first)
        model = lmgraft.graft(make_vit(), block)
        assert model.graft.block is block
        assert (model.graft.config.train_block, model.graft.config.lora_rank) == ("lora", 2)
        with pytest.raises(BlockError, match="trained already"):
            lmgraft.graft(make_vit(), block, train_block="all")


class TestSaved:
    @pytest.mark.parametrize(
        "options",
        [
            {"train_block": "all"},
            {"train_block": "norms", "layer": (0, 1), "residual": "out"},
            {"train_block": "norms", "final_norm": "pretrained"},
            {"train_block": "lora"},
            {"train_block": "lora", "lora_rank": 2, "lora_alpha": 4.0, "lora_targets": ("q", "down")},
            {"train_block": "lora", "dtype": "bfloat16", "at": "middle"},
            {"train_block": "all", "dtype": "bfloat16"},
        ],
        ids=str,
    )
    def test_comes_back(self, llama_folder: Path, tmp_path: Path, options: dict[str, Any]) -> None:
        model = lmgraft.graft(make_vit(), str(llama_folder), **options)
        step(model)
        folder = lmgraft.save_pretrained(model.eval(), tmp_path)
        fresh = randomise_(make_vit(), seed=77)
        loaded = lmgraft.load_pretrained(folder, fresh)
        assert torch.equal(loaded(X), model(X))
        assert loaded.graft.config == model.graft.config
        assert loaded.graft.block.provenance == model.graft.block.provenance
        again = lmgraft.graft(randomise_(make_vit(), seed=78), str(llama_folder), **options)
        assert torch.equal(lmgraft.load_pretrained(folder, again)(X), model(X))

    def test_the_record_says_what_was_trained(self, llama_folder: Path, tmp_path: Path) -> None:
        model = lmgraft.graft(make_vit(), str(llama_folder), train_block="lora", lora_rank=2)
        record = json.loads((lmgraft.save_pretrained(model, tmp_path) / "lmgraft.json").read_text())
        assert record["graft"]["train_block"] == "lora"
        assert record["block"]["trained"]["rank"] == 2
        assert record["block"]["digest"] == lmgraft.load_block(str(llama_folder)).provenance.digest

    def test_only_what_was_trained(self, llama_folder: Path, tmp_path: Path) -> None:
        model = lmgraft.graft(make_vit(), str(llama_folder), train_block="lora", lora_targets=("q",), lora_rank=1)
        size = (lmgraft.save_pretrained(model, tmp_path) / "model.safetensors").stat().st_size
        wanted = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
        assert wanted < size < wanted + 20_000

    @pytest.mark.parametrize("kind", KINDS)
    def test_another_block_is_refused(self, llama_folder: Path, tmp_path: Path, kind: str) -> None:
        model = lmgraft.graft(make_vit(), str(llama_folder), train_block=kind)
        folder = lmgraft.save_pretrained(model, tmp_path)
        host = make_vit()
        with pytest.raises(BlockError, match="another block"):
            lmgraft.load_pretrained(folder, host, llm=lmgraft.load_block(str(llama_folder), 0))
        assert not hasattr(host, "graft")

    def test_another_way_of_training_is_refused(self, llama_folder: Path, tmp_path: Path) -> None:
        folder = lmgraft.save_pretrained(lmgraft.graft(make_vit(), str(llama_folder), train_block="lora"), tmp_path)
        for options in ({}, {"train_block": "all"}, {"train_block": "lora", "lora_alpha": 1.0}):
            other = lmgraft.graft(make_vit(), str(llama_folder), **options)
            with pytest.raises(CheckpointError, match=r"lora_alpha|train_block"):
                lmgraft.load_pretrained(folder, other)

    def test_of_versions_before(self, llama_folder: Path, tmp_path: Path) -> None:
        """A record without these fields is one of a frozen block."""
        model = lmgraft.graft(make_vit(), str(llama_folder))
        file = lmgraft.save_pretrained(model, tmp_path) / "lmgraft.json"
        record = json.loads(file.read_text())
        for name in ("train_block", "lora_rank", "lora_alpha", "lora_targets"):
            del record["graft"][name]
        del record["block"]["trained"]
        file.write_text(json.dumps(record))
        assert torch.equal(lmgraft.load_pretrained(tmp_path, randomise_(make_vit(), seed=7))(X), model(X))


@pytest.mark.long
@pytest.mark.parametrize("kind", ["all", "lora"])
def test_exported_with_what_was_trained(kind: str) -> None:
    model = grafted(kind)
    step(model)
    program = export_program(model, X)
    assert relative_error(program.module()(X), model(X)) < 1e-5
    assert not any("lora" in name for name in program.state_dict)
    assert any("lora" in name for name in model.state_dict()) is (kind == "lora")


@pytest.mark.parametrize("mode", ["16bit", "int8"])
def test_rounded_beside_what_lora_added(mode: str) -> None:
    """The frozen part is rounded, the low-rank part is not; and nothing is used that was measured for other weights."""
    model = grafted("lora")
    wake(model)
    part = model.graft.block.layers[0].mlp.down
    report = lmgraft.approximate(model, X, mode, repeats=1)
    assert 0 < report.graft_error < 0.1
    assert report.memory > 0
    twin = model.graft.compute.approximation._twin.block.layers[0].mlp.down
    zeros = torch.zeros(1, 72)
    assert torch.equal(twin(zeros), part(zeros))
    x = torch.randn(3, 72)
    frozen = Projection(part.weight.detach())
    low = part(x) - frozen(x)
    assert 0 < relative_error(twin(x) - low, frozen(x)) < 0.03
    assert torch.allclose(twin(x) - twin.rounded(x), low, atol=1e-5)
    with torch.no_grad():
        part.lora_b.data.mul_(3.0)
        model(X)
    assert model.graft.compute.approximation.mode is None


@pytest.mark.parametrize("residual", ["none", "out", "in", "gated"])
@pytest.mark.parametrize("at", ["head", "middle", "tail"])
@pytest.mark.parametrize("kind", ["none", *KINDS])
def test_positions_residuals_and_two_blocks(kind: str, at: str, residual: str) -> None:
    model = grafted(kind, block={"layers": 2}, at=at, residual=residual)
    wake(model)
    if model.graft.gate is not None:
        model.graft.gate.data.fill_(0.7)
    twin = dense_twin(model)
    for each in (model, twin):
        each.train()(X).square().sum().backward()
    for (name, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        if ours.requires_grad:
            assert float(ours.grad.norm()) > 0, name
            assert relative_error(ours.grad, theirs.grad) < 1e-5, name


class TestConfig:
    def test_as_plain_data_and_back(self) -> None:
        config = GraftConfig(train_block="lora", lora_rank=2, lora_alpha=3.0, lora_targets=("q", "up"))
        assert GraftConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config

    def test_in_a_recipe(self) -> None:
        options = ["--graft.train_block=lora", "--graft.lora_targets=[q,v]", "--graft.lora_rank=4"]
        found = load_recipe("image/fashion_vit_debug", options)
        assert found.graft == replace(
            load_recipe("image/fashion_vit_debug").graft, train_block="lora", lora_rank=4, lora_targets=("q", "v")
        )
        with pytest.raises(LmgraftError, match="lora_rank=0"):
            load_recipe("image/fashion_vit_debug", ["--graft.lora_rank=0"])


class TestWrongValues:
    @pytest.mark.parametrize(
        ("options", "named"),
        [
            ({"train_block": "some"}, "train_block='some'"),
            ({"lora_rank": 0}, "lora_rank=0"),
            ({"lora_rank": 2.5}, "lora_rank=2.5"),
            ({"lora_alpha": 0.0}, "lora_alpha=0.0"),
            ({"lora_alpha": float("nan")}, "lora_alpha=nan"),
            ({"lora_targets": ("q", "query")}, "lora_targets: 'query'"),
            ({"lora_targets": ()}, "lora_targets"),
        ],
    )
    def test_named(self, options: dict[str, Any], named: str) -> None:
        with pytest.raises(LmgraftError, match=named):
            GraftConfig(**options)
        vit = make_vit()
        with pytest.raises(LmgraftError, match=named):
            lmgraft.graft(vit, random_block(), **({"train_block": "lora"} | options))
        assert not hasattr(vit, "graft")

    def test_a_target_that_the_block_lacks(self) -> None:
        block = random_block(mlp="plain", activation="gelu")
        with pytest.raises(BlockError, match="has no 'gate'"):
            lmgraft.graft(make_vit(), block, train_block="lora", lora_targets=("q", "gate"))
        whole = trainable(block, "lora").provenance.trained
        assert whole is not None
        assert whole["targets"] == [n for n in LORA_TARGETS if n != "gate"]

    def test_trained_twice(self) -> None:
        with pytest.raises(BlockError, match="trained already"):
            trainable(trainable(random_block(), "norms"), "lora")
        with pytest.raises(BlockError, match="trained on"):
            random_frozen(trainable(random_block(), "norms"), seed=0)


class TestRandomTrained:
    def test_is_drawn_as_before_training(self) -> None:
        source = random_block(bias=True, layers=2, final_norm="pretrained", norm="layer", norm_bias=True)
        made = random_trained(source, seed=3)
        assert all(p.requires_grad for p in made.parameters())
        for name, p in made.named_parameters():
            if name.endswith("bias"):
                assert not p.any(), name
            elif "norm" in name:
                assert (p == 1).all(), name
            else:
                assert float(p.detach().std()) == pytest.approx(0.02, rel=0.15), name
                assert abs(float(p.detach().mean())) < 0.003, name

    def test_stored_gains_of_zero_are_ones(self) -> None:
        gain = random_trained(random_block(norm="rms_plus_one"), seed=3).layers[0].attention_norm
        assert torch.equal(gain.gain(torch.float32), torch.ones(32))

    def test_a_seed_is_a_block(self) -> None:
        source = random_block()
        made = [random_trained(source, seed).provenance.digest for seed in (1, 1, 2)]
        assert made[0] == made[1] != made[2]
        assert random_trained(source, 1, std=0.05).provenance.digest != made[0]
        assert source.provenance.digest not in made

    def test_trains_and_comes_back(self, llama_folder: Path, tmp_path: Path) -> None:
        block = random_trained(lmgraft.load_block(str(llama_folder)), seed=3, std=0.04)
        model = lmgraft.graft(make_vit(), block)
        assert model.graft.config.train_block == "all"
        before = {n: p.detach().clone() for n, p in model.graft.block.named_parameters()}
        step(model)
        assert all(not torch.equal(p, before[n]) for n, p in model.graft.block.named_parameters())
        loaded = lmgraft.load_pretrained(
            lmgraft.save_pretrained(model.eval(), tmp_path), randomise_(make_vit(), seed=7)
        )
        assert torch.equal(loaded(X), model(X))
        assert loaded.graft.config == model.graft.config
        assert loaded.graft.block.provenance == model.graft.block.provenance


class PlainControl(nn.Module):
    """The published wiring of the control, written down with torch's own modules."""

    def __init__(self, model: nn.Module, norm: bool) -> None:
        super().__init__()
        self.w1, self.w2 = model.graft.mapper_in.weight, model.graft.mapper_out.weight
        self.norm = nn.LayerNorm(self.w1.shape[0]) if norm else None

    def forward(self, x: Tensor) -> Tensor:
        h = x @ self.w1.T
        return (h if self.norm is None else self.norm(nn.functional.gelu(h))) @ self.w2.T


CONTROLS = {"mlp": mlp, "linear": linear}


class TestWithoutABlock:
    @pytest.mark.parametrize("kind", CONTROLS)
    def test_is_the_formula(self, kind: str) -> None:
        model = lmgraft.graft(make_vit(), CONTROLS[kind](random_block()))
        x = torch.randn(2, 5, 48)
        plain = PlainControl(model, norm=kind == "mlp")
        assert relative_error(model.graft(x), plain(x)) < 1e-6
        assert relative_error(model.graft(x, reads=(1, 3)), plain(x)[:, [1, 3]]) < 1e-6
        mean = model.graft(x, reads=MeanOf(slice(1, None)))
        assert relative_error(mean[:, 0], plain(x)[:, 1:].mean(1)) < 1e-6

    @pytest.mark.parametrize("kind", CONTROLS)
    @pytest.mark.parametrize("form", FORMS)
    def test_reads_only(self, kind: str, form: str) -> None:
        """Nothing mixes tokens, so one token is mapped; `dense` maps all, as the reference."""
        model = lmgraft.graft(make_vit(), CONTROLS[kind](random_block()), form=form)
        seen = calls_of(model.graft.mapper_in)
        assert relative_error(model(X), model.forward_head(model.forward_features(X))) < 1e-6
        assert [tokens.shape[1] for tokens, _ in seen] == [17 if form == "dense" else 1, 17]

    def test_what_is_trained(self) -> None:
        model = lmgraft.graft(make_vit(), mlp(random_block()))
        assert of_block(model) == {"norm.weight", "norm.bias"}
        step(model)
        assert all(p.requires_grad for p in model.graft.parameters())
        assert float((model.graft.block.norm.weight.detach() - 1).abs().max()) > 1e-4
        assert of_block(lmgraft.graft(make_vit(), linear(random_block()))) == set()

    @pytest.mark.parametrize("kind", CONTROLS)
    @pytest.mark.parametrize("residual", ["out", "in", "gated"])
    def test_comes_back(self, llama_folder: Path, tmp_path: Path, kind: str, residual: str) -> None:
        block = CONTROLS[kind](lmgraft.load_block(str(llama_folder)), 0)
        model = lmgraft.graft(make_vit(), block, residual=residual)
        step(model)
        folder = lmgraft.save_pretrained(model.eval(), tmp_path)
        loaded = lmgraft.load_pretrained(folder, randomise_(make_vit(), seed=7))
        assert torch.equal(loaded(X), model(X))
        assert torch.equal(copy.deepcopy(loaded)(X), model(X))
        with pytest.raises(BlockError, match="another block"):
            lmgraft.load_pretrained(folder, make_vit(), llm=lmgraft.load_block(str(llama_folder)))

    @pytest.mark.parametrize("kind", CONTROLS)
    def test_exported_and_planned(self, kind: str) -> None:
        model = lmgraft.graft(make_vit(), CONTROLS[kind](random_block()))
        assert model.graft.plan(torch.randn(2, 5, 48), 0) == ()
        assert model.graft.problems(torch.randn(2, 5, 48), MeanOf()) == []
        assert relative_error(export_program(model, X).module()(X), model(X)) < 1e-5
        with pytest.raises(ApproximationError, match="no block"):
            lmgraft.approximate(model, X)

    def test_the_two_are_not_one(self) -> None:
        source = random_block()
        digests = {CONTROLS[kind](source).provenance.digest for kind in CONTROLS}
        assert len(digests | {source.provenance.digest}) == 3
        for kind in CONTROLS:
            again = apply_control(source, CONTROLS[kind](source).provenance.control)
            assert again.provenance == CONTROLS[kind](source).provenance

    def test_a_wrong_width(self) -> None:
        with pytest.raises(BlockError, match=r"\(B, T, 32\)"):
            mlp(random_block())(torch.randn(2, 5, 31))
