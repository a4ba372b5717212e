"""Training around a frozen block: optimisers, EMA, re-initialisation, several processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm.optim
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import lmgraft
from lmgraft.block import FrozenBlock
from lmgraft.graft.controls import random_frozen
from lmgraft.training.optim import param_groups_layer_decay, param_groups_weight_decay
from tiny import images, make_vit, of_timm, random_block, relative_error

MAPPERS = ("graft.mapper_in.weight", "graft.mapper_out.weight")


@pytest.fixture
def model(tiny_vit: nn.Module, tiny_block: FrozenBlock) -> nn.Module:
    return lmgraft.graft(tiny_vit, tiny_block).train()


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in module.named_parameters()}


def names_of(model: nn.Module, groups: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Parameter name -> its group without the parameters."""
    by_id = {id(p): n for n, p in model.named_parameters()}
    return {by_id[id(p)]: {k: v for k, v in g.items() if k != "params"} for g in groups for p in g["params"]}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    for step in range(steps):
        loss = nn.functional.cross_entropy(model(images(4, seed=step)), torch.arange(4))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


class TestOptimisers:
    def test_three_steps_of_adamw(self, model: nn.Module) -> None:
        """Even an optimiser that was given every parameter leaves the frozen ones bit-equal."""
        before = snapshot(model)
        train(model, torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.5))
        for name, p in model.named_parameters():
            assert torch.equal(p, before[name]) is (not p.requires_grad), name
        assert all(p.grad is None for p in model.graft.block.parameters())

    def test_an_unfrozen_block_really_trains(self, model: nn.Module) -> None:
        model.graft.block.requires_grad_(True)
        before = snapshot(model.graft.block)
        train(model, torch.optim.AdamW(model.parameters(), lr=1e-2))
        for name, p in model.graft.block.named_parameters():
            assert not torch.equal(p, before[name]), name
        assert {n for n in model.state_dict() if n.startswith("graft.block.")} == {f"graft.block.{n}" for n in before}

    def test_weight_decay_groups(self, model: nn.Module) -> None:
        groups = param_groups_weight_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay())
        found = names_of(model, groups)
        assert set(found) == {n for n, p in model.named_parameters() if p.requires_grad}
        assert not any(n.startswith("graft.block.") for n in found)
        assert all(found[n]["weight_decay"] == 0.05 for n in MAPPERS)

    def test_created_by_timm(self, model: nn.Module) -> None:
        optimizer = timm.optim.create_optimizer_v2(model, opt="adamw", lr=1e-2, weight_decay=0.05)
        held = [p for g in optimizer.param_groups for p in g["params"]]
        assert all(p.requires_grad for p in held)
        before = snapshot(model.graft.block)
        train(model, optimizer)
        assert all(torch.equal(p, before[n]) for n, p in model.graft.block.named_parameters())

    @pytest.mark.parametrize("at", ["tail", "middle", "head"])
    def test_layer_decay_does_not_count_the_graft(self, tiny_block: FrozenBlock, at: str) -> None:
        plain = make_vit()
        options = {"layer_decay": 0.5, "no_weight_decay_list": plain.no_weight_decay()}
        before = names_of(plain, param_groups_layer_decay(plain, **options))
        model = lmgraft.graft(plain, tiny_block, at=at)
        after = names_of(model, param_groups_layer_decay(model, **options))
        assert {n: after[n] for n in before} == before
        assert {n for n in after if n not in before} == set(MAPPERS)
        assert all(after[n]["lr_scale"] == 1.0 for n in MAPPERS)
        assert before["blocks.0.attn.qkv.weight"]["lr_scale"] < before["blocks.2.attn.qkv.weight"]["lr_scale"]

    def test_no_weight_decay_names(self, tiny_vit: nn.Module, tiny_block: FrozenBlock) -> None:
        before = set(tiny_vit.no_weight_decay())
        assert set(lmgraft.graft(tiny_vit, tiny_block).no_weight_decay()) == before

    def test_loss_falls(self, model: nn.Module) -> None:
        x, y = images(4, seed=0), torch.arange(4)
        first = float(nn.functional.cross_entropy(model(x), y).detach())
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for _ in range(15):
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert float(loss.detach()) < 0.5 * first


class TestReinitialisation:
    @pytest.mark.parametrize("mode", ["", "jax", "moco", "reset"])
    def test_timms_init_does_not_touch_the_block(self, model: nn.Module, mode: str) -> None:
        before = snapshot(model)
        model.init_weights(mode)
        after = snapshot(model)
        assert all(torch.equal(after[n], before[n]) for n in before if n.startswith("graft.block."))
        assert not torch.equal(after["blocks.0.attn.qkv.weight"], before["blocks.0.attn.qkv.weight"])

    def test_reset_parameters_everywhere(self, model: nn.Module) -> None:
        before = snapshot(model.graft.block)

        def reset(module: nn.Module) -> None:
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
            if isinstance(module, (nn.Linear, nn.LayerNorm)):
                nn.init.zeros_(module.weight)

        model.apply(reset)
        assert all(torch.equal(p, before[n]) for n, p in model.graft.block.named_parameters())


class TestEma:
    @pytest.mark.parametrize("options", [{}, {"foreach": False}, {"exclude_buffers": True}])
    def test_shares_the_block_and_averages_the_rest(self, model: nn.Module, options: dict[str, Any]) -> None:
        frozen = snapshot(model.graft.block)
        ema = of_timm("utils.ModelEmaV3")(model, decay=0.75, **options)
        start = snapshot(model)
        for name, p in ema.module.graft.block.named_parameters():
            assert p.data_ptr() == model.graft.block.get_parameter(name).data_ptr()
        train(model, torch.optim.AdamW(model.parameters(), lr=1e-2), steps=1)
        ema.update(model)
        for name, p in ema.module.named_parameters():
            if name.startswith("graft.block."):
                assert torch.equal(p, frozen[name.removeprefix("graft.block.")])
            else:
                expected = 0.75 * start[name] + 0.25 * model.get_parameter(name).detach()
                assert torch.allclose(p, expected, atol=1e-6), name

    def test_classifies_and_gives_features(self, model: nn.Module) -> None:
        ema = of_timm("utils.ModelEmaV3")(model, decay=0.5)
        train(model, torch.optim.AdamW(model.parameters(), lr=1e-2), steps=1)
        ema.update(model)
        x = images()
        logits = ema(x)
        assert relative_error(logits, model.eval()(x)) > 1e-4
        assert relative_error(logits, ema.module.forward_head(ema.module.forward_features(x))) <= 1e-5

    def test_another_dtype_leaves_the_original(self, model: nn.Module) -> None:
        ema = of_timm("utils.ModelEmaV3")(model, decay=0.5, dtype=torch.float64)
        assert {p.dtype for p in ema.module.graft.block.parameters()} == {torch.float64}
        assert {p.dtype for p in model.graft.block.parameters()} == {torch.float32}
        ema.update(model)
        assert ema(images(dtype=torch.float64)).dtype == torch.float64


def test_control_in_place_of_the_block(tiny_block: FrozenBlock) -> None:
    """The two arms differ in the frozen tensors only."""
    torch.manual_seed(4)
    llm = lmgraft.graft(make_vit(), tiny_block)
    torch.manual_seed(4)
    control = lmgraft.graft(make_vit(), random_frozen(tiny_block, seed=0))
    mine, its = llm.state_dict(), control.state_dict()
    assert mine.keys() == its.keys()
    assert all(torch.equal(mine[n], its[n]) for n in mine)
    assert relative_error(control(images()), llm(images())) > 1e-2


def build(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return lmgraft.graft(make_vit(), random_block(dim=160)).train()  # wide enough to be folded


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def mean_loss(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square().mean()


def test_ddp_in_one_process(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        model = build(seed=1)
        mean_loss(model, images(4)).backward()
        expected = gradients(model)
        model.zero_grad()
        wrapped = DistributedDataParallel(model)
        frozen = snapshot(model.graft.block)
        mean_loss(wrapped, images(4)).backward()
        found = gradients(model)
        assert found.keys() == expected.keys()
        assert all(relative_error(found[n], expected[n]) <= 1e-5 for n in expected if expected[n].norm() > 0)
        assert set(wrapped.state_dict()) == {f"module.{n}" for n in model.state_dict()}
        assert not any("graft.block" in n for n in wrapped.state_dict())
        assert all(torch.equal(p, frozen[n]) for n, p in model.graft.block.named_parameters())
    finally:
        dist.destroy_process_group()


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    model = build(seed=1 + rank)  # different mappers: DDP must broadcast rank 0's
    wrapped = DistributedDataParallel(model)
    mean_loss(wrapped, images(4)[2 * rank : 2 * rank + 2]).backward()
    torch.save(gradients(model), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.long
def test_ddp_of_two_processes(tmp_path: Path) -> None:
    """Both ranks end with the gradient of the whole batch."""
    torch.multiprocessing.spawn(worker, args=(str(tmp_path),), nprocs=2)
    model = build(seed=1)
    mean_loss(model, images(4)).backward()
    expected = gradients(model)
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found.keys() == expected.keys()
        for name, grad in expected.items():
            assert grad.norm() == 0 or relative_error(found[name], grad) <= 1e-4, name
