"""lmgraft.compare: a training loop of one's own, in several arms and seeds."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F

import lmgraft
from lmgraft.analysis.metrics import Metric
from lmgraft.errors import LmgraftError, RecipeError, RunError

SHAPE = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 3}


class Loop:
    """A tiny real loop: two steps on random images; remembers what it was given."""

    def __init__(self, result=None):
        self.result, self.calls, self.starts, self.batches = result, [], {}, {}

    def __call__(self, trial):
        self.calls.append((trial.label, trial.seed))
        model = trial.graft(timm.create_model("vit_tiny_patch16_224", **SHAPE))
        self.starts[trial.label, trial.seed] = {n: t.clone() for n, t in model.state_dict().items()}
        images, labels = torch.randn(6, 3, 16, 16), torch.randint(3, (6,))
        self.batches[trial.label, trial.seed] = images
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        for _ in range(2):
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
        right = (model(images).argmax(1) == labels).numpy()
        return {"items": right} if self.result is None else self.result(trial)


@pytest.fixture
def compare(llama_folder):
    def call(loop, **options):
        options = {
            "llm": str(llama_folder),
            "arms": ("plain", "llm", "random_frozen"),
            "seeds": 2,
            "say": None,
        } | options
        return lmgraft.compare(loop, **options)

    return call


def test_all_arms_start_and_draw_alike(compare):
    loop = Loop()
    result = compare(loop, arms=("plain", "llm", "random_frozen", "mlp", "linear"), seeds=(4, 9))
    assert loop.calls == [(arm, seed) for seed in (4, 9) for arm in ("plain", "llm", "random_frozen", "mlp", "linear")]
    for seed in (4, 9):
        starts = [loop.starts[arm, seed] for arm in ("llm", "random_frozen", "mlp", "linear")]
        mappers = [name for name in starts[0] if name not in loop.starts["plain", seed] and name in starts[3]]
        assert len(mappers) == 2
        for start in starts:
            assert all(torch.equal(start[name], tensor) for name, tensor in loop.starts["plain", seed].items())
            assert all(torch.equal(start[name], starts[0][name]) for name in mappers)
            assert torch.equal(loop.batches["plain", seed], loop.batches["llm", seed])
    assert not torch.equal(loop.batches["plain", 4], loop.batches["plain", 9])
    assert [(c.arm, c.reference) for c in result.contrasts] == [
        ("llm", "plain"),
        ("llm", "random_frozen"),
        ("llm", "mlp"),
    ]
    assert result.seeds == [4, 9]
    assert result.contrasts[0].bootstrap is not None
    assert any("fewer" in note for note in result.notes)


def test_values_become_differences_by_seed(compare):
    values = {("plain", 0): 0.50, ("plain", 1): 0.60, ("llm", 0): 0.53, ("llm", 1): 0.65}
    result = compare(Loop(lambda trial: values[trial.label, trial.seed]), arms=("plain", "llm"))
    (contrast,) = result.contrasts
    assert contrast.differences == pytest.approx((0.03, 0.05))
    assert contrast.bootstrap is None
    assert [arm.values for arm in result.arms] == [{0: 0.50, 1: 0.60}, {0: 0.53, 1: 0.65}]
    llm = result.arms[1]
    assert llm.block["layers"] == [2] or llm.block["layers"] == (2,)
    assert llm.cost.frozen_params > 0 == result.arms[0].cost.frozen_params


def test_a_metric_of_ones_own_where_less_is_better(compare):
    error = Metric(name="ade", title="ADE", higher_is_better=False, scale=1, unit="m", difference_unit="m", margin=0.01)
    lower = Loop(lambda trial: 2.0 + 0.001 * trial.seed - (0.5 + 0.0001 * trial.seed if trial.arm == "llm" else 0))
    result = compare(lower, arms=("plain", "llm"), metric=error, seeds=5)
    assert result.contrasts[0].outcome == "better"
    assert result.verdict[0].startswith("Helps")


def test_finished_trials_are_kept(compare, tmp_path):
    first, again = Loop(), Loop()

    class Stops(Loop):
        def __call__(self, trial):
            if len(self.calls) == 3:
                raise KeyboardInterrupt
            return super().__call__(trial)

    whole = compare(first)
    stops = Stops()
    with pytest.raises(KeyboardInterrupt):
        compare(stops, out=tmp_path)
    after = compare(again, out=tmp_path)
    assert stops.calls + again.calls == first.calls
    assert after.contrasts == whole.contrasts
    assert json.loads((tmp_path / "results.json").read_text())["contrasts"][0]["mean"] == whole.contrasts[0].mean
    more = Loop()
    compare(more, out=tmp_path, seeds=3)
    assert {seed for _, seed in more.calls} == {2}


def test_another_comparison_in_the_folder_is_refused(compare, tmp_path):
    compare(Loop(), out=tmp_path)
    with pytest.raises(RunError, match="arm llm was made otherwise"):
        compare(Loop(), out=tmp_path, layer=0)


@pytest.mark.parametrize("name", ["seed0.json", "seed0.npz"])
def test_a_file_cut_short_is_said(compare, tmp_path, name):
    compare(Loop(), out=tmp_path)
    file = tmp_path / "trials" / "llm" / name
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(RunError, match=r"llm/seed0\.json"):
        compare(Loop(), out=tmp_path)


def test_items_of_another_trial_are_not_taken(compare, tmp_path):
    compare(Loop(), out=tmp_path)
    np.savez_compressed(tmp_path / "trials" / "llm" / "seed0.npz", items=np.zeros(6))
    with pytest.raises(RunError, match="damaged"):
        compare(Loop(), out=tmp_path)


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (float("nan"), "returned nan for plain, seed 0"),
        ("0.5 or so", "returned '0.5 or so'"),
        ({"accuracy": 1}, "accuracy"),
        ({"items": [[1.0]]}, "no finite numbers in one row"),
        ({"value": 0.9, "items": [0.0, 1.0]}, "its items' mean 0.5"),
    ],
)
def test_what_is_no_result_is_said(compare, result, said):
    with pytest.raises(RunError, match=said):
        compare(Loop(lambda _: result))


def test_a_loop_that_does_not_graft_is_said(compare):
    with pytest.raises(RunError, match=r"did not call trial\.graft"):
        compare(lambda _: 0.5)


def test_models_that_start_differently_are_refused(compare):
    drawn = iter(range(100))

    def loop(trial):
        torch.manual_seed(next(drawn))
        trial.graft(timm.create_model("vit_tiny_patch16_224", **SHAPE))
        return 0.5

    with pytest.raises(RunError, match="plain and llm started from different weights for seed 0"):
        compare(loop)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"seeds": 1}, "1 seed cannot tell"),
        ({"metric": "acuracy"}, "accuracy"),
        ({"arms": ("plain", "llmm")}, "llmm"),
        ({"arms": ("plain", "plain_equal_flops")}, "cannot enlarge"),
        ({"contrasts": [("llm", "mlp")]}, "no pair of arms"),
        ({"resdual": "out"}, "resdual"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_before_anything_runs(compare, options, said):
    loop = Loop()
    with pytest.raises(LmgraftError, match=said):
        compare(loop, **options)
    assert not loop.calls


def test_a_recipe_is_no_loop():
    with pytest.raises(RecipeError, match="training loop"):
        lmgraft.compare("image/fashion_vit")


def test_importing_lmgraft_does_not_import_it():
    code = "import sys, lmgraft; assert 'lmgraft.studies' not in sys.modules and 'jsonargparse' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
