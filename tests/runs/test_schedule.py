"""Learning rates step by step against those of torch, timm and transformers; old recipes have what they had."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.scheduler import CosineLRScheduler
from torch import nn
from torch.optim.lr_scheduler import MultiStepLR

from lmgraft.errors import RecipeError
from lmgraft.training.optim import OptimConfig
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


@pytest.mark.parametrize(
    ("epochs", "warmup", "steps", "decay"),
    [(300, 20, 3, None), (100, 20, 2, None), (300, 5, 1, None), (10, 0, 4, None), (301, 10, 1, 300), (12, 2, 2, 9)],
)
def test_deit_s_schedule_epoch_by_epoch(epochs, warmup, steps, decay):
    """timm's scheduler driven as DeiT's loop does: stepped behind epoch e with e, from its initial state.

    Point-BERT's loop has one epoch more than its cosine.
    """
    options = {"warmup_epochs": warmup, "warmup_lr": 1e-6, "min_lr": 1e-5, "decay_epochs": decay}
    config = OptimConfig(lr=1e-3, schedule="epoch", **options)
    optimizer = one_weight(config.lr)
    oracle = CosineLRScheduler(
        optimizer, t_initial=decay or epochs, lr_min=1e-5, warmup_t=warmup, warmup_lr_init=1e-6, t_in_epochs=True
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


def as_before(config, total, epochs, step):
    """The factors of both schedules as runs before the others had them, letter by letter."""
    if config.schedule == "step":
        share = config.warmup if config.warmup_epochs is None else config.warmup_epochs / epochs
        warmup = max(1, round(share * total))
        if step < warmup:
            return (step + 1) / warmup
        done, floor = min(1.0, (step - warmup) / max(1, total - warmup)), config.min_lr / config.lr
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))
    warmup = round(config.warmup * epochs) if config.warmup_epochs is None else config.warmup_epochs
    epoch = max(step // max(1, total // epochs) - 1, 0)
    if epoch < warmup:
        rate = config.warmup_lr + epoch * (config.lr - config.warmup_lr) / warmup
    else:
        rate = config.min_lr + 0.5 * (config.lr - config.min_lr) * (1 + math.cos(math.pi * epoch / epochs))
    return rate / config.lr


@pytest.mark.parametrize("schedule", ["step", "epoch"])
@pytest.mark.parametrize("warmup", [{}, {"warmup": 0.0}, {"warmup": 0.3}, {"warmup_epochs": 0}, {"warmup_epochs": 2}])
@pytest.mark.parametrize(("total", "epochs"), [(200, 4), (21, 7), (5, 5), (3001, 30)])
def test_the_rates_of_old_recipes_are_bit_equal(schedule, warmup, total, epochs):
    config = OptimConfig(lr=2e-3, schedule=schedule, **warmup)
    factor = make_schedule(one_weight(config.lr), total, config, epochs=epochs).lr_lambdas[0]
    for step in range(total + 2):
        assert factor(step) == as_before(config, total, epochs, step)


def driven(make, steps, every=1):
    """The rates of a scheduler of another library that is stepped after every so many steps."""
    optimizer = one_weight(1e-3)
    schedule, seen = make(optimizer), []
    for step in range(1, steps + 1):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step % every == 0:
            schedule.step()
    return seen


ZERO = {"lr": 1e-3, "min_lr": 0.0, "warmup_rise": "from_zero"}


@pytest.mark.parametrize("warmup", [{"warmup": 0.1}, {"warmup_steps": 4}, {"warmup_epochs": 1}, {"warmup": 0.0}])
@pytest.mark.parametrize("end", [0.0, 1e-4])
def test_a_line_from_zero_to_the_end_is_meter_s(warmup, end):
    config = OptimConfig(schedule="linear", **{**ZERO, "min_lr": end}, **warmup)
    steps = {"warmup": 40 * warmup.get("warmup", 0), "warmup_steps": 4, "warmup_epochs": 10}[next(iter(warmup))]
    oracle = pytest.importorskip("transformers").get_polynomial_decay_schedule_with_warmup
    expected = driven(lambda o: oracle(o, int(steps), 40, lr_end=end), 40)
    assert rates(config, 40, 4) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("drops", "milestones", "every"),
    [
        ({"drop_epochs": [20, 24, 28], "drop_factor": 0.25}, [20, 24, 28], 3),  # mmTransformer
        ({"drop_epochs": [10, 15, 20]}, [10, 15, 20], 3),  # SQA3D
        ({"drop_epochs": [100, 200], "drop_factor": 0.2}, [100, 200], 3),  # later than the run, as published
        ({"drop_steps": [7, 8, 90], "drop_factor": 0.3}, [7, 8, 90], 1),
    ],
)
def test_drops_are_torch_s(drops, milestones, every):
    config = OptimConfig(lr=1e-3, schedule="drops", warmup=0, **drops)
    gamma = drops.get("drop_factor", 0.1)
    expected = driven(lambda o: MultiStepLR(o, milestones, gamma), 96, every)
    assert rates(config, 96, 32) == pytest.approx(expected, rel=1e-12)


def test_a_constant_rate_behind_its_warm_up():
    expected = driven(lambda o: pytest.importorskip("transformers").get_constant_schedule_with_warmup(o, 5), 20)
    assert rates(OptimConfig(schedule="constant", warmup_steps=5, **ZERO), 20, 2) == pytest.approx(expected, rel=1e-12)
    assert rates(OptimConfig(lr=1e-3, schedule="constant", warmup=0), 9, 3) == [1e-3] * 9


def test_the_cosine_from_zero_is_video_mae_s():
    """Its cosine_scheduler: numpy's linspace to the peak, then the cosine over the steps that are left."""
    base, final, warmup, total = 1e-3, 1e-6, 10, 40
    left = np.arange(total - warmup)
    cosine = final + 0.5 * (base - final) * (1 + np.cos(np.pi * left / len(left)))
    expected = [*np.linspace(0, base, warmup), *cosine]
    config = OptimConfig(lr=base, min_lr=final, warmup_epochs=5, warmup_rise="zero_to_peak")
    assert rates(config, total, 20) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("schedule", ["step", "linear"])
def test_a_rate_that_has_fallen_before_the_end_stays(schedule):
    config = OptimConfig(lr=1e-3, schedule=schedule, warmup_epochs=1, decay_epochs=6)
    short, whole = rates(config, 12, 6), rates(config, 20, 10)
    assert whole == [*short, *[pytest.approx(1e-5, rel=1e-12)] * 8]


def test_lr_per_scales_the_other_rates_where_asked():
    config = OptimConfig(lr=1e-3, min_lr=1e-6, warmup_lr=1e-7, lr_per=256).for_batch(24)
    assert (config.lr, config.min_lr, config.warmup_lr) == (pytest.approx(9.375e-5), 1e-6, 1e-7)
    config = OptimConfig(lr=1e-3, min_lr=1e-6, warmup_lr=1e-7, lr_per=256, lr_per_scales_all=True).for_batch(24)
    assert (config.lr, config.min_lr, config.warmup_lr) == pytest.approx((9.375e-5, 9.375e-8, 9.375e-9))
    assert config.for_batch(24) == config


def test_warm_up_in_epochs_by_step():
    by_epochs = OptimConfig(lr=1e-3, warmup_epochs=2)
    assert rates(by_epochs, 100, 10) == rates(OptimConfig(lr=1e-3, warmup=0.2), 100, 10)
    with pytest.raises(RecipeError, match=r"optim\.warmup_epochs=20 .* train\.epochs=3"):
        rates(OptimConfig(schedule="epoch", warmup_epochs=20), 30, 3)
    with pytest.raises(RecipeError, match=r"optim\.warmup_epochs=2 .* optim\.decay_epochs=2"):
        rates(OptimConfig(warmup_epochs=2, decay_epochs=2), 30, 3)
    with pytest.raises(RecipeError, match=r"optim\.warmup_steps=30"):
        rates(OptimConfig(warmup_steps=30), 30, 3)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 29), max_size=4), st.sampled_from(["step", "epoch", "linear", "constant"]))
def test_cuts_hold_from_their_step_on(cuts, schedule):
    config = OptimConfig(lr=1e-3, schedule=schedule, warmup_epochs=1)
    uncut, cut = rates(config, 30, 6), rates(config, 30, 6, cuts)
    for step, (whole, less) in enumerate(zip(uncut, cut, strict=True)):
        assert less == pytest.approx(whole * CUT ** sum(c <= step for c in cuts), rel=1e-12)
