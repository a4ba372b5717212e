"""lmgraft.compare: a training loop of one's own, in several arms and seeds."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F

import lmgraft
from lmgraft.analysis.verdict import CHANGES
from lmgraft.contracts import Metric
from lmgraft.errors import LmgraftError, RecipeError, RunError
from lmgraft.records import only_one
from lmgraft.registry import METRICS

SHAPE = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 3}


def kinds(result):
    return [finding.kind for finding in result.findings]


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
    assert "few seeds planned" in kinds(result)


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
    assert kinds(result)[0] == "helps"
    assert result.verdict


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


def test_trials_of_another_metric_are_not_mixed_in(compare, tmp_path):
    compare(Loop(), out=tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*.*")}
    loop = Loop()
    with pytest.raises(RunError, match=r"holds a comparison by accuracy .*, not by nll"):
        compare(loop, out=tmp_path, metric="nll", seeds=3)
    lower = replace(METRICS.find("accuracy"), higher_is_better=False)
    with pytest.raises(RunError, match="less is better"):
        compare(loop, out=tmp_path, metric=lower, seeds=3)
    assert not loop.calls
    assert before == {file: file.read_bytes() for file in tmp_path.rglob("*.*")}
    edit(tmp_path / "trials" / "llm" / "seed1.json", lambda r: r["metric"].update(scale=1.0))
    with pytest.raises(RunError, match=r"llm/seed1\.json holds accuracy \(times 1, more"):
        compare(Loop(), out=tmp_path)


def edit(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_a_plan_that_is_changed_after_the_results_is_noted(compare, tmp_path):
    assert not CHANGES & set(kinds(compare(Loop(), out=tmp_path)))
    more = compare(Loop(), out=tmp_path, seeds=3, margin=0.02)
    changed = {f.key: (f.before, f.now) for f in more.findings if f.kind in CHANGES}
    assert changed == {"margin": (0.005, 0.02), "seeds": (2, 3)}
    assert compare(Loop(), out=tmp_path, seeds=3, margin=0.02).notes == more.notes


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r["block"].update(digest="00"), "the LLM's block of arm llm differs"),
        (lambda r: r["environment"]["versions"].update(torch="1.0"), "the version of torch differs"),
    ],
)
def test_trials_that_do_not_belong_together_are_refused_before_the_loop_is_called(compare, tmp_path, change, said):
    compare(Loop(), out=tmp_path)
    edit(tmp_path / "trials" / "llm" / "seed1.json", change)
    loop = Loop()
    with pytest.raises(RunError, match=said):
        compare(loop, out=tmp_path, seeds=3)
    assert not loop.calls
    if "version" in said:
        assert compare(loop, out=tmp_path, seeds=3, allow_difference=True).contrasts


def test_two_comparisons_at_once_in_one_folder(compare, tmp_path):
    loop = Loop()
    with (
        only_one(tmp_path / ".study.lock", "it"),
        pytest.raises(RunError, match="another process is at the comparison"),
    ):
        compare(loop, out=tmp_path)
    assert not loop.calls


def test_a_trial_that_does_not_fit_is_not_kept(compare, tmp_path):
    drawn = iter(range(100))

    def loop(trial):
        torch.manual_seed(next(drawn))
        trial.graft(timm.create_model("vit_tiny_patch16_224", **SHAPE))
        return 0.5

    with pytest.raises(RunError, match="plain and llm started from different weights"):
        compare(loop, out=tmp_path)
    assert [file.parent.name for file in (tmp_path / "trials").rglob("*.json")] == ["plain"]


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


@pytest.mark.parametrize("value", ["0.5", None, [1], True])
def test_a_kept_value_that_is_no_number_is_said(compare, tmp_path, value):
    compare(Loop(), out=tmp_path)
    file = tmp_path / "trials" / "llm" / "seed0.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"value": value}))
    with pytest.raises(RunError, match=r"llm/seed0\.json is damaged \(.* is no number"):
        compare(Loop(), out=tmp_path)


def test_a_study_and_a_comparison_do_not_share_a_folder(compare, tmp_path):
    run = tmp_path / "runs" / "plain" / "seed0" / "config.yaml"
    run.parent.mkdir(parents=True)
    run.write_text("seed: 0")
    loop = Loop()
    with pytest.raises(RunError, match="holds a study by lmgraft study"):
        compare(loop, out=tmp_path)
    assert not loop.calls
    assert [file.name for file in tmp_path.iterdir() if not file.name.startswith(".")] == ["runs"]


def test_items_of_another_number_are_refused_at_once_and_not_kept(compare, tmp_path):
    def loop(trial):
        return Loop(lambda t: {"items": [1.0] * (5 if t.label == "llm" else 4)})(trial)

    with pytest.raises(RunError, match=r"different numbers of test items \(plain, seed 0: 4, llm, seed 0: 5\)"):
        compare(loop, out=tmp_path)
    assert [file.parent.name for file in (tmp_path / "trials").rglob("*.json")] == ["plain"]


def test_items_in_some_arms_only_are_noted(compare):
    result = compare(Loop(lambda t: 0.5 if t.label == "llm" else {"items": [1.0, 0.0]}), notes="beware")
    assert result.notes[0] == "beware"
    assert "items of some runs" in kinds(result)


def test_items_may_be_a_tensor_of_any_kind_and_seeds_numbers_of_any_kind(compare):
    def loop(trial):
        items = torch.tensor([1.0, 0.0, 1.0, 1.0], requires_grad=True)
        return Loop(lambda _: {"items": items})(trial)

    result = compare(loop, seeds=np.array([3, 5]))
    assert result.arms[0].values == {3: 0.75, 5: 0.75}
    assert compare(Loop(), seeds=np.int64(2)).seeds == [0, 1]


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (float("nan"), "returned nan for plain, seed 0"),
        ("0.5 or so", "returned '0.5 or so'"),
        ({"accuracy": 1}, "accuracy"),
        ({"items": [[1.0]]}, "no finite numbers in one row"),
        ({"items": "abc"}, "no finite numbers in one row"),
        (83.2, "returned 83.2 for plain, seed 0, which is no test accuracy"),
        (-0.1, "which is no test accuracy"),
        ({"items": [0.0, 100.0]}, "which is no test accuracy"),
        ({"items": ["a", "b"]}, "no finite numbers in one row"),
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
        ({"seeds": [0.5, 1.5]}, "neither how many nor a list of whole numbers"),
        ({"seeds": "01"}, "neither how many nor a list of whole numbers"),
        ({"metric": 3}, "metric=3 is none"),
        ({"margin": "0.1"}, "margin='0.1' is no number"),
        ({"arms": {"plain": None, "a" * 81: {"arm": "llm"}}}, "up to 80 letters"),
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
