"""Half a block: attention or MLP alone, equal to the whole block with the other branch's output set to zero."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import TRAITS, by_plans, counted, draw, make_mapper, problem, results
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import lmgraft
from lmgraft.block import FrozenBlock
from lmgraft.block.trained import trainable
from lmgraft.contracts import MeanOf, Reads, take_tokens
from lmgraft.errors import BlockError
from lmgraft.graft.controls import attention_only, mlp, mlp_only
from lmgraft.graft.export import export_program
from lmgraft.graft.forms.cost import operations
from lmgraft.graft.forms.plan import exact_plans
from lmgraft.graft.forms.problem import LayerPlan
from lmgraft.graft.forms.run import dense
from tiny import calls_of, images, make_vit, random_block, randomise_, relative_error

HALVES = {"attention": attention_only, "mlp": mlp_only}
FORMS = ["auto", "dense", "reads", "folded", "absorbed"]
READS: tuple[Reads, ...] = (0, (1, 3), MeanOf(slice(1, None)), None)
MASK = torch.tensor([[False] * 4 + [True], [False] * 5, [True] * 5])


def silenced(block: FrozenBlock, kept: str) -> FrozenBlock:
    """The whole block; the branch that is not `kept` runs, and adds zero."""
    twin = copy.deepcopy(block)
    other = "mlp" if kept == "attention" else "attention"
    # A norm behind a branch belongs to it, and has a shift; one behind the sum does not.
    of_branch = block.config.norm_place in ("post_branch", "sandwich")
    for layer in twin.layers:
        layer.get_submodule(f"{other}_post_norm" if of_branch else other).register_forward_hook(_zero)
    return twin


def _zero(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    return torch.zeros_like(output)


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor], what: Any) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        if float(tensor.detach().norm()) > 1e-9:
            assert relative_error(found[name], tensor) < 1e-10, (name, what)
        else:
            assert float(found[name].detach().norm()) < 1e-9, (name, what)


class TestEqualTheBlockWithoutABranch:
    @pytest.mark.parametrize("kept", HALVES)
    @pytest.mark.parametrize("trait", TRAITS)
    def test_dense(self, trait: str, kept: str) -> None:
        traits: dict[str, Any] = {"layers": 2} | TRAITS[trait]
        traits |= {"attention_scales": (0.11, 0.2)} if "attention_scales" in traits else {}
        block = random_block(dtype=torch.float64, final_norm="pretrained", **traits)
        half, whole = HALVES[kept](block), silenced(block, kept)
        x = draw(3, 5, 32)
        assert relative_error(half(x, MASK), whole(x, MASK)) < 1e-12
        assert relative_error(half(x, MASK, reads=(1, 3)), whole(x, MASK)[:, [1, 3]]) < 1e-12
        assert relative_error(half(x, MASK), block(x, MASK)) > 1e-3

    @pytest.mark.parametrize("trait", TRAITS)
    def test_attention_by_every_plan(self, trait: str) -> None:
        block = random_block(dtype=torch.float64, **TRAITS[trait])
        half, whole = attention_only(block), silenced(block, "attention")
        mapper, x = make_mapper(12, 32, torch.float64), draw(3, 5, 12)
        expected = results(dense, mapper, whole, x, MASK, (0, 4))
        plans = list(exact_plans(problem(half, mapper, x)))
        assert plans == list(exact_plans(problem(block, mapper, x)))
        for plan in plans:
            assert_equal(results(by_plans, mapper, half, x, MASK, (0, 4), [plan]), expected, plan)

    @pytest.mark.parametrize("kept", HALVES)
    @pytest.mark.parametrize("trait", ["llama", "gemma2", "olmo2", "opt 350", "neox", "phi", "bloom", "granite"])
    def test_grafted(self, trait: str, kept: str) -> None:
        """By every form and read, outputs and gradients."""
        block = random_block(dtype=torch.float64, final_norm="none", **TRAITS[trait])
        torch.manual_seed(3)
        whole = lmgraft.graft(make_vit(), silenced(block, kept), form="dense", residual="in").double().graft
        for form in FORMS:
            half = lmgraft.graft(make_vit(), HALVES[kept](block), form=form, residual="in").double().graft
            half.load_state_dict(dict(whole.state_dict()))
            for reads in READS:
                assert_equal(grafted(half, reads), grafted(whole, reads), (form, reads))

    @pytest.mark.parametrize("kept", HALVES)
    def test_stacked(self, kept: str) -> None:
        block = random_block(dtype=torch.float64, layers=3, bias=True, dim=160)
        torch.manual_seed(3)
        whole = lmgraft.graft(make_vit(), silenced(block, kept), form="dense").double().graft
        for form in FORMS:
            half = lmgraft.graft(make_vit(), HALVES[kept](block), form=form).double().graft
            half.load_state_dict(dict(whole.state_dict()))
            for reads in READS:
                assert_equal(grafted(half, reads), grafted(whole, reads), (form, reads))


def grafted(layer: nn.Module, reads: Reads) -> dict[str, Tensor]:
    x = draw(3, 5, 48).requires_grad_()
    out = layer(x, MASK, reads=reads)
    if isinstance(reads, MeanOf):  # in every token, or from all tokens in the dense form
        out = take_tokens(out, reads.tokens).mean(1)
    leaves = {"x": x, **{n: p for n, p in layer.named_parameters() if p.requires_grad}}
    assert set(leaves) == {"x", "mapper_in.weight", "mapper_out.weight"}
    grads = torch.autograd.grad((out * draw(*out.shape, seed=1)).sum(), list(leaves.values()))
    return {"out": out.detach(), **dict(zip(leaves, grads, strict=True))}


class TestCost:
    @pytest.mark.parametrize("trait", TRAITS)
    def test_nothing_of_the_other_branch_is_kept(self, trait: str) -> None:
        block = random_block(layers=2 if "attention_scales" not in TRAITS[trait] else 1, **TRAITS[trait])
        halves = {kept: make(block) for kept, make in HALVES.items()}
        own = {kept: {n for n, _ in half.named_parameters()} for kept, half in halves.items()}
        assert not [n for n in own["attention"] if ".mlp." in n]
        assert not [n for n in own["mlp"] if ".attention." in n]
        assert own["attention"] | own["mlp"] == {n for n, _ in block.named_parameters()}
        for half in halves.values():
            assert half.config.num_params() * len(half.layers) == sum(p.numel() for p in half.layers.parameters())

    def test_norms_that_both_need_lie_on_the_stream(self) -> None:
        def shared(**traits: Any) -> set[str]:
            block = random_block(**traits)
            names = [{n for n, _ in make(block).layers[0].named_parameters()} for make in HALVES.values()]
            return names[0] & names[1]

        assert shared() == shared(**TRAITS["gemma2"]) == shared(**TRAITS["olmo2"]) == shared(**TRAITS["neox"]) == set()
        assert {n.partition(".")[0] for n in shared(**TRAITS["opt 350"])} == {"attention_post_norm", "mlp_post_norm"}
        assert {n.partition(".")[0] for n in shared(**TRAITS["phi"])} == {"attention_norm"}
        assert {n.partition(".")[0] for n in shared(**TRAITS["bloom"])} == {"attention_norm", "mlp_norm"}

    @pytest.mark.parametrize("trait", ["llama", "gemma2", "phi", "opt 350"])
    def test_counts_of_attention_are_those_of_a_real_run(self, trait: str) -> None:
        half = attention_only(random_block(**TRAITS[trait]))
        mapper, flags = make_mapper(12, 32, torch.float32), {"x_grad": True, "mapper_grad": True}
        for reads in ((1, 2, 5), None):
            x = draw(3, 7, 12, dtype=torch.float32).requires_grad_()
            posed = problem(half, mapper, x, reads, **flags)
            for plan in exact_plans(posed):
                assert counted(half, mapper, x, reads, plan) == sum(
                    op.multiply_adds for op in operations(plan, posed)
                ), (reads, plan)

    @pytest.mark.parametrize("reads", [0, (1, 3), None])
    def test_counts_of_the_mlp_are_those_of_a_real_run(self, reads: Reads) -> None:
        """Of three layers too, tokens that are not read are mapped by none."""
        for layers in (1, 3):
            graft = lmgraft.graft(make_vit(), mlp_only(random_block(layers=layers))).graft
            x = torch.randn(2, 5, 48).requires_grad_()
            posed = graft.problems(x, reads)
            assert len(posed) == layers
            assert graft.plan(x, reads) == (LayerPlan(),) * layers
            with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
                out = graft(x, reads=reads)
                out.backward(torch.ones_like(out))
            rows = posed[0].batch * posed[0].reads
            mapper_out = 3 * rows * 32 * 48
            expected = sum(op.multiply_adds for p in posed for op in operations(LayerPlan(), p)) + mapper_out
            assert counter.get_total_flops() == 2 * expected
            assert expected == rows * (3 * 48 * 32 + 2 * layers * 3 * 32 * 40) + mapper_out

    @pytest.mark.parametrize("form", FORMS)
    def test_tokens_that_are_not_read_never_reach_the_mlp(self, form: str) -> None:
        model = lmgraft.graft(make_vit(), mlp_only(random_block(layers=2)), form=form)
        seen = calls_of(model.graft.mapper_in)
        assert relative_error(model(images()), model.forward_head(model.forward_features(images()))) < 1e-6
        assert [tokens.shape[1] for tokens, _ in seen] == [17 if form == "dense" else 1, 17]

    def test_attention_keeps_its_fast_forms(self) -> None:
        shape = {"dim": 160, "mlp_dim": 72}
        whole = random_block(**shape)  # type: ignore[arg-type]
        with torch.no_grad():
            plans = [
                lmgraft.graft(make_vit(), block).eval().graft.plan(torch.randn(2, 17, 48), 0)
                for block in (whole, attention_only(whole))
            ]
        assert plans[0] == plans[1]
        assert plans[0][0].space == "narrow"


class TestIdentity:
    def test_digests(self) -> None:
        block = random_block()
        halves = [make(block) for make in HALVES.values()]
        assert len({b.provenance.digest for b in (block, *halves)}) == 3
        for half in halves:
            for name, digest in half.provenance.tensors.items():
                assert block.provenance.tensors[name] == digest

    def test_storage_is_shared_and_the_source_left_alone(self) -> None:
        block = random_block()
        pointers = {n: p.data_ptr() for n, p in block.named_parameters()}
        for make in HALVES.values():
            assert all(p.data_ptr() == pointers[n] for n, p in make(block).named_parameters())
        assert block.config.branches == "both"

    @pytest.mark.parametrize("kept", HALVES)
    def test_what_has_no_two_branches_is_refused(self, kept: str) -> None:
        for block in (attention_only(random_block()), mlp_only(random_block()), mlp(random_block())):
            with pytest.raises(BlockError):
                HALVES[kept](block)
        with pytest.raises(BlockError, match="trained on"):
            HALVES[kept](trainable(random_block(), "norms"))

    def test_an_unknown_branch_is_named(self) -> None:
        with pytest.raises(BlockError, match="branches='half'"):
            replace(random_block().config, branches="half")  # type: ignore[arg-type]


@pytest.mark.parametrize("kept", HALVES)
class TestElsewhere:
    def test_exported(self, kept: str) -> None:
        model = lmgraft.graft(make_vit(), HALVES[kept](random_block(dim=160, mlp_dim=72))).eval()
        program = export_program(model, images())
        assert relative_error(program.module()(images(3, seed=2)), model(images(3, seed=2))) < 1e-5

    @pytest.mark.parametrize("kind", ["all", "lora", "norms"])
    def test_trained(self, kept: str, kind: str, llama_folder: Path, tmp_path: Path) -> None:
        block = HALVES[kept](lmgraft.load_block(str(llama_folder)))
        model = lmgraft.graft(make_vit(), block, train_block=kind)
        model(images()).square().sum().backward()
        trained = {n: p for n, p in model.graft.block.named_parameters() if p.requires_grad}
        assert trained
        assert all(p.grad is not None for p in trained.values())
        if kind == "lora":
            assert model.graft.block.provenance.trained["targets"] == (
                ["q", "k", "v", "o"] if kept == "attention" else ["gate", "up", "down"]
            )
        for parameter in trained.values():
            parameter.data += 0.1
        folder = lmgraft.save_pretrained(model.eval(), tmp_path)
        loaded = lmgraft.load_pretrained(folder, randomise_(make_vit(), seed=7))
        assert torch.equal(loaded(images()), model(images()))

    def test_approximated(self, kept: str) -> None:
        model = lmgraft.graft(make_vit(global_pool="avg"), HALVES[kept](random_block())).eval()
        report = lmgraft.approximate(model, images(), "16bit", repeats=1)
        assert 0 < report.graft_error < 0.05

    def test_copied_and_moved(self, kept: str) -> None:
        model = lmgraft.graft(make_vit(), HALVES[kept](random_block())).eval()
        with torch.no_grad():
            assert torch.equal(copy.deepcopy(model)(images()), model(images()))
            expected = model(images()).double()
            assert relative_error(model.double()(images(dtype=torch.float64)), expected) < 1e-5
