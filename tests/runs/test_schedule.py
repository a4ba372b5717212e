"""Learning rates and groups: DeiT's schedule epoch by epoch against timm's, the present one unchanged."""

import math

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.optim import param_groups_layer_decay
from timm.scheduler import CosineLRScheduler
from torch import nn

import lmgraft
from lmgraft.errors import RecipeError
from lmgraft.training.optim import OptimConfig, make_optimizer
from lmgraft.training.schedule import CUT, make_schedule

DEIT = OptimConfig(lr=5e-4, lr_per=512, schedule="epoch", warmup_epochs=20, warmup_lr=1e-6, min_lr=1e-5)


def one_weight(lr=1.0, **group):
    return torch.optim.AdamW([{"params": [nn.Parameter(torch.zeros(2, 2))], **group}], lr=lr)


def rates(config, total_steps, epochs, cuts=()):
    """The rate in effect at every step."""
    optimizer = one_weight(config.lr)
    schedule = make_schedule(optimizer, total_steps, config, epochs=epochs, cuts=cuts)
    seen = []
    for _ in range(total_steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


def test_the_paper_s_batch_has_the_paper_s_rate():
    assert DEIT.for_batch(1024).lr == pytest.approx(1e-3, rel=1e-12)
    assert DEIT.for_batch(256).lr == pytest.approx(2.5e-4, rel=1e-12)
    assert DEIT.for_batch(1024).for_batch(1024).lr == DEIT.for_batch(1024).lr  # the factor is spent
    assert OptimConfig(lr=3e-3).for_batch(4096).lr == 3e-3


@pytest.mark.parametrize(("epochs", "warmup", "steps"), [(300, 20, 3), (100, 20, 2), (300, 5, 1), (10, 0, 4)])
def test_deit_s_schedule_epoch_by_epoch(epochs, warmup, steps):
    """timm's scheduler driven as DeiT's loop does: stepped behind epoch e with e, from its initial state."""
    config = OptimConfig(lr=1e-3, schedule="epoch", warmup_epochs=warmup, warmup_lr=1e-6, min_lr=1e-5)
    optimizer = one_weight(config.lr)
    oracle = CosineLRScheduler(
        optimizer, t_initial=epochs, lr_min=1e-5, warmup_t=warmup, warmup_lr_init=1e-6, t_in_epochs=True
    )
    expected = []
    for epoch in range(epochs):
        expected += [optimizer.param_groups[0]["lr"]] * steps
        oracle.step(epoch)
    assert rates(config, steps * epochs, epochs) == pytest.approx(expected, rel=1e-12)


def test_deit_s_numbers():
    """PROTOCOLS: 1024 images a step, 1e-3 at the peak; epochs 0 and 1 both at 1e-6; 1e-5 at the end."""
    seen = rates(DEIT.for_batch(1024), 300, 300)
    assert seen[0] == seen[1] == pytest.approx(1e-6)
    assert seen[2] == pytest.approx(1e-6 + (1e-3 - 1e-6) / 20)
    assert seen[21] == max(seen) == pytest.approx(1e-5 + 0.5 * (1e-3 - 1e-5) * (1 + math.cos(math.pi * 20 / 300)))
    assert seen[299] == pytest.approx(1e-5 + 0.5 * (1e-3 - 1e-5) * (1 + math.cos(math.pi * 298 / 300)))


def test_the_default_schedule_is_what_it_was():
    total, warmup, lr, floor = 200, 10, 2e-3, 1e-5 / 2e-3
    expected = [
        lr * (step + 1) / warmup
        if step < warmup
        else lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))))
        for step in range(total)
    ]
    assert rates(OptimConfig(lr=lr), total, 4) == pytest.approx(expected, rel=1e-14)


def test_warm_up_in_epochs_by_step():
    by_epochs = OptimConfig(lr=1e-3, warmup_epochs=2)
    assert rates(by_epochs, 100, 10) == rates(OptimConfig(lr=1e-3, warmup=0.2), 100, 10)
    with pytest.raises(RecipeError, match=r"optim\.warmup_epochs=20 .* train\.epochs=3"):
        rates(OptimConfig(schedule="epoch", warmup_epochs=20), 30, 3)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 29), max_size=4), st.sampled_from(["step", "epoch"]))
def test_cuts_hold_from_their_step_on(cuts, schedule):
    config = OptimConfig(lr=1e-3, schedule=schedule, warmup_epochs=1)
    uncut, cut = rates(config, 30, 6), rates(config, 30, 6, cuts)
    for step, (whole, less) in enumerate(zip(uncut, cut, strict=True)):
        assert less == pytest.approx(whole * CUT ** sum(c <= step for c in cuts), rel=1e-12)


def grafted(tiny_block):
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=24, depth=3, num_heads=2, num_classes=5)
    return lmgraft.graft(vit, tiny_block)


def rate_of_each(model, config):
    names = {id(p): n for n, p in model.named_parameters()}
    groups = make_optimizer(model, config).param_groups
    return {names[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}


@pytest.mark.parametrize("layer_decay", [None, 0.7])
def test_mappers_have_their_own_rate_and_all_else_its_own(tiny_block, layer_decay):
    model = grafted(tiny_block)
    plain = rate_of_each(model, OptimConfig(layer_decay=layer_decay))
    faster = rate_of_each(model, OptimConfig(layer_decay=layer_decay, mapper_lr=10))
    assert plain.keys() == faster.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    mappers = {n for n in plain if n.startswith("graft.mapper_")}
    assert len(mappers) == 2
    for name, (lr, decay) in plain.items():
        assert faster[name] == (pytest.approx(lr * (10 if name in mappers else 1), rel=1e-12), decay)


def test_layer_decay_is_timm_s(tiny_block):
    model = grafted(tiny_block)
    oracle = param_groups_layer_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay(), layer_decay=0.7)
    names = {id(p): n for n, p in model.named_parameters()}
    expected = {names[id(p)]: 1e-3 * group["lr_scale"] for group in oracle for p in group["params"]}
    found = {n: lr for n, (lr, _) in rate_of_each(model, OptimConfig(layer_decay=0.7)).items()}
    assert found == pytest.approx(expected)


def test_epsilon_reaches_the_optimiser(tiny_block):
    assert make_optimizer(grafted(tiny_block), OptimConfig(eps=1e-6)).defaults["eps"] == 1e-6


@pytest.mark.parametrize(
    ("key", "value"),
    [("lr_per", 0), ("eps", 0.0), ("mapper_lr", -1.0), ("warmup_lr", -1e-6), ("min_lr", -1.0), ("warmup_epochs", -1)],
)
def test_a_mistake_names_the_key(key, value):
    with pytest.raises(RecipeError, match=rf"optim\.{key}"):
        OptimConfig(**{key: value})
