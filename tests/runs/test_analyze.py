"""`lmgraft analyze`: finished runs looked at beside each other, with truth and without."""

from __future__ import annotations

import csv
import gc
import re
import shutil
from collections import namedtuple
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chromium import CHROMIUM, Chromium
from PIL import Image
from scipy.stats import ttest_1samp, ttest_rel
from video_trees import pictures_of

from lmgraft.analysis.activations import magnitude
from lmgraft.analysis.comparison import Comparison
from lmgraft.analysis.holm import holm
from lmgraft.analysis.masks import average_precision, iou, mask_of_tokens
from lmgraft.analysis.observe import observe
from lmgraft.analysis.similarity import linear_cka
from lmgraft.cli.main import main
from lmgraft.data.items import spread_over
from lmgraft.data.motion.scenes import Scenes
from lmgraft.data.video.motion_clips import Filming, write_motion_clips
from lmgraft.errors import RecipeError, RunError
from lmgraft.recipes import load_recipe
from lmgraft.recipes.build import build_task
from lmgraft.recipes.run import trained_task
from lmgraft.report.analyze.page import sections, write_report
from lmgraft.studies.analyze import AnalyzeConfig, analyze_runs, masking, read_analysis
from lmgraft.studies.analyze.compare import comparisons, loss_rows
from lmgraft.studies.analyze.gallery import choose
from lmgraft.studies.analyze.gradients import coherences, independent, item_products
from lmgraft.studies.analyze.look import Arrays, Opened, look, open_run
from lmgraft.studies.analyze.look import columns as look_at_all
from lmgraft.studies.analyze.masking import carried, losses
from lmgraft.studies.analyze.results import Subject
from lmgraft.studies.analyze.run import _similarity
from lmgraft.tasks.classification import ACCURACY
from lmgraft.training.checkpoints import RunWarning
from lmgraft.training.items import read_arrays
from lmgraft.words import analyze as words

ARMS = ("plain", "llm", "random_frozen")
SMALL = {"limit": 12, "causal": 6, "gallery": 1, "shares": [0.25]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, llama_folder: Path) -> dict[str, Path]:
    """A run of each arm on motion clips, which know where the object is."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        pictures_of(tmp_path_factory.mktemp("pictures"), patch)
        clips = write_motion_clips(folder / "clips", Filming(train=36, val=6, test=12))
    options = ["--data.root", str(clips), "--llm", str(llama_folder), "--train.epochs", "1"]
    for arm in ARMS:
        assert main(["train", "video/motion_clips_debug", "--arm", arm, *options, "--out", str(folder / arm)]) == 0
    return {arm: folder / arm for arm in ARMS}


@pytest.fixture(scope="module")
def looked(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only."""
    out = tmp_path_factory.mktemp("analysis")
    few = ["--limit", "12", "--causal", "6", "--gallery", "1", "--shares", "[0.25]"]
    assert main(["analyze", *map(str, runs.values()), *few, "--out", str(out)]) == 0
    return out


def run_columns(looked: Path, label: str) -> dict[str, np.ndarray]:
    (file,) = (looked / "items").glob(f"{label}-????????????.npz")
    return read_arrays(file)


def test_the_page_and_its_files(looked: Path) -> None:
    analysis = read_analysis(looked)
    assert [subject.label for subject in analysis.subjects] == list(ARMS)
    assert analysis.has_truth
    page = (looked / "report.html").read_text()
    assert "Do they lie on the object?" in page
    titles = [section.title for section in sections(analysis)]
    assert titles == [words.OBJECT, words.CAUSAL]
    assert all(section.answer and section.sentences for section in sections(analysis))
    assert all(escape(section.answer, quote=False).replace("'", "&#39;") in page for section in sections(analysis))
    assert "Does the model need what the block amplifies?" in page
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', page)
    assert "<script" not in page
    for one in analysis.gallery:
        assert set(one.predictions) == {subject.label for subject in analysis.subjects}
        label, prediction = next(iter(one.predictions.items()))
        name, value = next(iter(prediction.items()))
        assert f"<br>{label}: {name} {value:.3f}" in page
        with Image.open(looked / one.file) as picture:
            assert min(picture.size) > 50
        assert f'alt="{one.alt}"' in page
    assert {one.rule for one in analysis.gallery} == {"best", "median", "worst", "random"}
    for name in ("object_by_layer", "masking", "similarity"):
        assert {(looked / "figures" / f"{name}.{ending}").is_file() for ending in ("svg", "png")} == {True}
    rows = list(csv.DictReader((looked / "tables" / "object.csv").read_text().splitlines()))
    (row,) = [r for r in rows if (r["run"], r["stage"], r["measure"]) == ("llm", "W2", "magnitude")]
    (same,) = [
        f
        for f in analysis.found
        if (f.label, f.stage, f.measure, f.score) == ("llm", "mapper_out", "magnitude", "average_precision")
    ]
    assert float(row["average_precision"]) == same.mean
    assert same.interval is not None
    assert 0 <= same.interval[0] <= same.mean <= same.interval[1] <= 1
    arms = {(c.first, c.second) for c in analysis.comparisons if c.kind == "object"}
    assert ("llm W2 magnitude", "plain encoder magnitude") in arms
    assert ("llm W2 magnitude", "random_frozen W2 magnitude") in arms
    assert ("llm W2 magnitude", "centre") in arms
    assert ("llm W2 magnitude", "llm untrained W2 magnitude") in arms
    rules = {(c.arm, c.second, c.score) for c in analysis.comparisons if c.kind == "causal"}
    assert ("llm", "random block", "keys") in rules
    assert ("random_frozen", "random block", "keys") not in rules


@pytest.mark.long
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
@pytest.mark.parametrize("width", [400, 1200])
def test_the_page_in_a_browser(looked: Path, tmp_path: Path, width: int) -> None:
    browser = Chromium(tmp_path / "profile", width=width)
    try:
        browser("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
        browser.load("Page.navigate", url=(looked / "report.html").as_uri())
        assert browser.errors == []
        assert {address.partition(":")[0] for address in browser.asked} <= {"file", "data"}
        assert browser.value("document.documentElement.scrollWidth") <= width
        assert browser.value("[...document.images].every(one => one.naturalWidth > 0 && one.alt)")
        assert browser.value("document.querySelectorAll('svg').length") >= 3
    finally:
        browser.close()


def test_scores_are_those_of_a_plain_loop(looked: Path, runs: dict[str, Path]) -> None:
    columns = run_columns(looked, "llm")
    recipe, task = trained_task(runs["llm"])
    recipe.data.prepare_data()
    recipe.data.setup()
    items = recipe.data.still("test")
    for at, sample in enumerate(spread_over(len(items), 12)):
        batch = items.batch([sample])
        noted = observe(task.model, *task.inputs(batch))
        behind = noted.at["mapper_out"]
        assert behind.grid is not None
        expected = average_precision(magnitude(behind.tokens), mask_of_tokens(batch.truth, behind.grid))
        (found,) = np.flatnonzero(columns["index"] == batch.index.item())
        assert columns["score/mapper_out/magnitude/average_precision"][found] == pytest.approx(
            expected.item(), abs=1e-4, nan_ok=True
        )
        with torch.no_grad():
            right = task.score(task.outputs(batch), batch)["accuracy"]
        assert columns["task/accuracy"][found] == right.item()
        if at == 3:
            break


def test_coherence_is_that_of_each_items_gradient_and_changes_nothing(looked: Path, runs: dict[str, Path]) -> None:
    found = {(one.label, one.part): one for one in read_analysis(looked).coherences}
    assert set(found) == {("plain", "whole"), *((a, p) for a in ARMS[1:] for p in ("whole", "encoder", "mappers"))}
    run = open_run(runs["llm"], "llm", ())
    samples = independent(spread_over(len(run.items), 12), run_columns(looked, "llm"), AnalyzeConfig().coherence)
    groups = [int(run.items.batch([sample]).group) for sample in samples]
    assert len(set(groups)) == len(groups)
    model, gradients = run.model.train(), []
    state = [(p.grad, p.requires_grad) for p in model.parameters()], [m.training for m in model.modules()]
    made = item_products(run, samples, lambda _: None)
    assert state == ([(p.grad, p.requires_grad) for p in model.parameters()], [m.training for m in model.modules()])
    model.eval()
    for sample in samples:
        batch = run.items.batch([sample])
        model.zero_grad()
        run.task.loss(run.task.outputs(batch), batch).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    gram = torch.stack(gradients).double() @ torch.stack(gradients).double().T
    pairs = (gram.sum() - gram.trace()) / (len(gram) - 1)
    for whole in (coherences("llm", made)[0], found["llm", "whole"]):
        assert whole.value == pytest.approx(float(pairs / gram.trace()), rel=1e-3, abs=1e-5)
        assert whole.items == len(samples)


@pytest.mark.long
def test_passes_are_stated_and_nothing_is_kept_of_an_item_but_numbers(looked: Path, runs: dict[str, Path]) -> None:
    analysis = read_analysis(looked)
    efforts = {one.what: (one.items, one.forward, one.backward) for one in analysis.efforts}
    assert efforts["looked"] == (12, 2, 0)
    assert efforts["masked"] == (6, 12, 0)  # one share of tokens, two places, five rules, and looked at
    assert efforts["gradients"][1:] == (2, 2)
    assert efforts["cka"][1:] == (2, 0)
    assert "passes of the model" in (looked / "report.html").read_text()
    run, alive = open_run(runs["llm"], "llm", ()), []

    def note(_: int) -> None:
        kept = (one for one in gc.get_objects() if issubclass(type(one), torch.Tensor))
        alive.append(sum(one.numel() for one in kept))

    columns = look_at_all(run, range(12), 4, True, note)
    assert alive[-1] - alive[0] <= 8 * len(columns)  # of three batches the first is left out
    assert {values.shape for values in columns.values()} == {(12,)}


def test_what_is_not_known_counts_for_nothing(runs: dict[str, Path]) -> None:
    run = open_run(runs["llm"], "llm", ())
    batch = next(run.batches([0, 1], 2))
    kind = namedtuple("Kind", [*batch._fields, "ignored"])
    scores = {}
    for name, ignored in {"none": torch.zeros_like(batch.truth), "background": ~batch.truth}.items():
        seen = look(run, kind(*batch, ignored), layers=False)
        assert seen.unknown is not None
        scores[name] = iou(seen.maps["mapper_out", "magnitude"], seen.truth, -1.0, seen.unknown)
    assert torch.equal(scores["none"], iou(torch.ones_like(seen.truth).float(), seen.truth, 0.5))
    assert torch.equal(scores["background"], torch.ones(2))  # only the object is left


class FewScenes:
    """Six scenes, of which every second is padded."""

    def __init__(self, scenes: Scenes) -> None:
        self.scenes = scenes

    def __len__(self) -> int:
        return len(self.scenes.index)

    def batch(self, samples: list[int]) -> Scenes:
        return Scenes(*(values[list(samples)] for values in self.scenes))


@pytest.fixture
def scenes(llama_folder: Path) -> Opened:
    """An untrained VectorNet with a graft, and scenes whose tokens lie at places."""
    recipe = load_recipe("motion/vectornet_argoverse1_llama_debug", ["--llm", str(llama_folder)])
    run = Opened("llm", recipe, build_task(recipe).eval(), Path())
    vars(run)["items"] = FewScenes(recipe.data.example(6))
    return run


def test_what_masking_takes_does_not_depend_on_the_items_beside_it(scenes: Opened) -> None:
    found = {}
    for size in (1, 4, 6):
        found[size], _ = losses(scenes, range(6), [0.25, 0.5], size=size, seed=3, other={}, say=lambda _: None)
    assert found[1].keys() == found[6].keys() >= {"whole", "input/random/0.5", "keys/random/0.25"}
    for size in (1, 4):
        for name, values in found[6].items():
            assert values == pytest.approx(found[size][name], abs=1e-4), name


def test_random_tokens_of_scenes_are_of_the_scene_and_have_places(
    scenes: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = scenes.items.batch(range(6))
    there = torch.cat([batch.agent_valid[:, 1:].any(-1), batch.lane_valid.any(-1)], 1)
    asked, filled = [], []

    def elsewhere(*args, **given):
        asked.append((args[0], masking_elsewhere(*args, **given), given["places"]))
        return asked[-1][1]

    def masked_input(model, host, chosen, padded):
        filled.append(padded)
        return masking_input(model, host, chosen, padded)

    masking_elsewhere, masking_input = masking.elsewhere, masking.masked_input
    monkeypatch.setattr(masking, "elsewhere", elsewhere)
    monkeypatch.setattr(masking, "masked_input", masked_input)
    losses(scenes, range(6), [0.5], size=6, seed=0, other={}, say=lambda _: None)
    ((chosen, drawn, places),) = asked
    assert drawn.sum(1).tolist() == chosen.sum(1).tolist()
    assert not (drawn & ~there).any()
    assert places.shape == (*there.shape, 2)
    assert torch.equal(places.isfinite().all(-1), there)
    carried(scenes, scenes.items.batch([1]), scenes.task.alone, 4)
    assert all(torch.equal(padded, (~there)[[1]].expand(len(padded), -1)) for padded in filled[-2:])
    assert all(torch.equal(padded, ~there) for padded in filled[:2])


def test_similarity_of_stages_is_that_of_tokens_that_are_there(scenes: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    found = _similarity(scenes, AnalyzeConfig(batch_size=4), notes, lambda _: None)
    assert found is not None
    assert notes == []
    noted = look(scenes, scenes.items.batch(range(6)), layers=False).noted
    assert noted.padded is not None
    assert noted.padded.any()
    one, two = (noted.at[stage].tokens[~noted.padded] for stage in ("encoder", "mapper_out"))
    at = found.stages.index("encoder"), found.stages.index("mapper_out")
    assert found.cka[at[0]][at[1]] == pytest.approx(linear_cka(one, two), abs=1e-4)

    monkeypatch.setattr("lmgraft.studies.analyze.run.linear_cka", lambda x, y: linear_cka(x[:3], y[:3]))
    assert _similarity(scenes, AnalyzeConfig(), notes, lambda _: None) is None
    assert len(notes) == 1
    assert notes[0].startswith("llm: stages could not be compared (CKA needs the features")


def test_a_second_call_computes_nothing_and_finds_the_same(
    looked: Path, runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read_analysis(looked)
    monkeypatch.setattr("lmgraft.studies.analyze.run.columns", lambda *_, **__: pytest.fail("computed again"))
    monkeypatch.setattr("lmgraft.studies.analyze.run.losses", lambda *_, **__: pytest.fail("computed again"))
    monkeypatch.setattr("lmgraft.studies.analyze.run.item_products", lambda *_, **__: pytest.fail("computed again"))
    again, exhibits = analyze_runs(list(runs.values()), looked, AnalyzeConfig(**SMALL | {"gallery": 0}))
    assert asdict(again)["comparisons"] == asdict(before)["comparisons"]
    assert exhibits == []


def test_what_does_not_fit_is_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(RunError, match="given twice"):
        analyze_runs([runs["llm"], runs["llm"]], tmp_path)
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "config.yaml").write_bytes((runs["plain"] / "config.yaml").read_bytes())
    with pytest.raises(RunError, match=r"not finished: it has no best\.ckpt or no result\.json"):
        analyze_runs([unfinished], tmp_path)
    untested = shutil.copytree(runs["plain"], tmp_path / "untested")
    (untested / "result.json").unlink()
    with pytest.raises(RunError, match=r"not finished"):
        analyze_runs([untested], tmp_path)
    twin = shutil.copytree(runs["plain"], tmp_path / "twin")
    with pytest.raises(RunError, match="both runs of arm plain with seed 0"):
        analyze_runs([runs["plain"], twin], tmp_path)
    recipe = (twin / "config.yaml").read_text().replace("seed: 0", "seed: 1", 1)
    (twin / "config.yaml").write_text(recipe.replace("lr: 0.001", "lr: 0.002"))
    with pytest.raises(RunError, match=r"not one more seed of .*: optim\.lr is 0\.002, was 0\.001"):
        analyze_runs([runs["plain"], twin], tmp_path)
    with pytest.raises(RecipeError, match="--limit 0 must be at least 1"):
        AnalyzeConfig(limit=0)
    with pytest.raises(RecipeError, match="between 0 and 1"):
        AnalyzeConfig(shares=[1.5])
    with pytest.raises(RunError, match=r"no analysis\.json"):
        read_analysis(tmp_path)


def test_the_gallery_is_chosen_by_rule() -> None:
    scores = np.array([0.1, np.nan, 0.9, 0.5, 0.4, 0.7, 0.2])
    chosen = choose(scores, 1, seed=0)
    assert chosen[:3] == [("best", 2), ("worst", 0), ("median", 3)]
    assert chosen[3][0] == "random"
    assert len({place for _, place in chosen}) == 4
    assert choose(scores, 9, seed=0) == choose(scores, 9, seed=0)
    assert len(choose(scores, 9, seed=0)) == 7
    assert choose(np.array([np.nan]), 2, seed=1) == [("random", 0)]


def seeds_of(
    *arms: tuple[str, float, float], seeds: int = 3
) -> tuple[list[Subject], dict[str, Arrays], dict[str, Arrays]]:
    """Runs, what their maps find, and what masking takes, made up but for noise.

    Args:
        arms: Name, what its maps find beyond 0.2 to 0.6, and the share of items that only masking what is amplified
            makes wrong.
        seeds: Of each arm.
    """
    draw, group = np.random.default_rng(0), np.arange(40)
    looked, masked, subjects = {}, {}, []
    for seed in range(seeds):
        base = draw.uniform(0.2, 0.6, 40)
        for arm, gain, needed in arms:
            label, stage = f"{arm} seed {seed}", "encoder" if arm == "plain" else "mapper_out"
            values = base + gain + 0.01 * draw.standard_normal(40)
            names = [f"score/{stage}/magnitude/{score}" for score in words.SCORES]
            names += [f"score/centre/centre/{score}" for score in words.SCORES] if arm == "plain" else []
            looked[label] = {"index": group, "group": group, "task/accuracy": values, **dict.fromkeys(names, values)}
            wrong = draw.uniform(size=40) < needed
            of_rules = {"amplified": 1.0 - wrong, "random": np.ones(40), "magnitude": np.ones(40)}
            if arm != "plain":
                masked[label] = {"index": group, "group": group, "whole": np.ones(40)} | {
                    f"input/{rule}/{share}": values for rule, values in of_rules.items() for share in (0.1, 0.25, 0.5)
                }
            fields = {"folder": "", "metric": 0, "metric_interval": None, "items": 40, "tokens": 4}
            block = None if arm == "plain" else {"source": "x"}
            subjects.append(Subject(label=label, arm=arm, seed=seed, block=block, **fields))
    return subjects, looked, masked


def test_seeds_of_an_arm_are_compared_together() -> None:
    subjects, looked, masked = seeds_of(("plain", 0.0, 0.0), ("llm", 0.2, 0.4), ("random_frozen", 0.2, 0.1))
    rows = comparisons(subjects, looked, {}, masked, ACCURACY)
    (against_plain,) = [c for c in rows if (c.second, c.score) == ("plain encoder magnitude", "average_precision")]
    assert (against_plain.first, against_plain.seeds, against_plain.items) == ("llm W2 magnitude", 3, 40)
    assert against_plain.difference == pytest.approx(0.2, abs=0.01)
    assert against_plain.interval is not None
    assert 0.18 < against_plain.interval[0] < 0.2 < against_plain.interval[1] < 0.22
    assert (against_plain.planned, against_plain.outcome) == (True, "more")
    means = [
        looked[f"{arm} seed {s}"]["score/" + stage + "/magnitude/average_precision"].mean()
        for s in range(3)
        for arm, stage in (("llm", "mapper_out"), ("plain", "encoder"))
    ]
    expected = ttest_rel(means[::2], means[1::2])
    assert against_plain.p == pytest.approx(expected.pvalue)
    assert against_plain.interval == pytest.approx(tuple(expected.confidence_interval()))

    planned = [c for c in rows if c.planned]
    kinds = [(c.kind, c.second, c.share) for c in planned]
    assert kinds == [
        ("object", "plain encoder magnitude", None),
        ("object", "random_frozen W2 magnitude", None),
        ("causal", "random", 0.25),
        ("effect", "random_frozen", 0.25),
    ]
    assert [c.p_holm for c in planned] == holm([c.p for c in planned])
    assert [c.outcome for c in planned] == ["more", "not shown", "more", "more"]
    assert planned[1].equivalent
    assert {c.score for c in rows if c.kind == "object" and not c.planned} == {"best_iou", "iou", "pointing", "share"}
    effect = planned[3].difference
    assert effect == pytest.approx(
        planned[2].difference
        - next(c.difference for c in rows if (c.arm, c.second, c.share) == ("random_frozen", "random", 0.25))
    )


def test_one_seed_plans_nothing_and_differences_are_no_shares() -> None:
    subjects, looked, masked = seeds_of(("plain", 0.0, 0.0), ("llm", 0.2, 0.1), seeds=1)
    rows = comparisons(subjects, looked, {}, masked, ACCURACY)
    assert not any(c.planned for c in rows)
    assert all(c.p is None for c in rows)
    lost = masked["llm seed 0"]["whole"] - masked["llm seed 0"]["input/amplified/0.25"]
    (causal,) = [c for c in rows if (c.second, c.share) == ("random", 0.25)]
    expected = ttest_1samp(lost, 0).confidence_interval()
    assert causal.interval == pytest.approx(tuple(expected))
    (of_nothing,) = [row for row in loss_rows({("llm", "llm"): [masked["llm seed 0"]]}, ACCURACY)
                     if (row.rule, row.share) == ("random", 0.25)]  # fmt: skip
    assert (of_nothing.mean, of_nothing.interval) == (0, None)  # by Wilson it would be 0 to 0.09
    sentence = words.causal_sentence(causal, ACCURACY)
    assert "one seed" in sentence


def test_what_cannot_be_is_not_in_an_interval() -> None:
    subjects, looked, masked = seeds_of(("plain", -0.2, 0.0), ("llm", 0.3, 1.0), seeds=2)
    for label, columns in masked.items():
        columns["input/amplified/0.25"] = np.arange(40) % 2 * 1.0 if label.endswith("0") else np.zeros(40)
    rows = comparisons(subjects, looked, {}, masked, ACCURACY)
    ends = [end for c in rows for of in (c.interval, c.over_items) if of is not None for end in of]
    assert max(map(abs, ends)) <= 1


def test_each_seed_has_its_random_block_and_its_own_floor(
    looked: Path, runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the columns alone: what is computed is replaced."""
    seen: list[tuple[str, int]] = []

    def note(run: Any, samples: Any, shares: Any, *, other: Any, **_: Any) -> tuple[Arrays, Any]:
        seen.append((run.label, int(next(iter(other.values()), torch.tensor([-1.0]))[0])))
        index = np.array([int(i) for i in run.items.indices[list(samples)]])
        seed = float(run.recipe.seed)
        made = {"index": index, "group": index, "whole": np.ones(len(index))}
        made |= {f"keys/{rule}/0.25": np.ones(len(index)) for rule in ("amplified", "random")}
        return made, {int(i): torch.full((4,), seed) for i in index}

    monkeypatch.setattr("lmgraft.studies.analyze.run.losses", note)
    given = []
    for arm in ARMS[:2]:
        for seed in (0, 1):
            folder = shutil.copytree(runs[arm], tmp_path / f"{arm}{seed}")
            recipe = (folder / "config.yaml").read_text()
            (folder / "config.yaml").write_text(recipe.replace("seed: 0", f"seed: {seed}", 1))
            given.append(folder)
    other = tmp_path / "other"  # its block is another one, so that it is trained
    options = ["--seed", "1", "--allow-difference", "--out", str(other)]
    with pytest.warns(RunWarning, match=r"block\.digest"):
        assert main(["train", "--from-run", str(runs["random_frozen"]), *options]) == 0
    given += [runs["random_frozen"], other]
    config = AnalyzeConfig(**SMALL | {"gallery": 0, "coherence": 0, "layers": False})
    analysis, _ = analyze_runs(given, tmp_path / "out", config)
    assert [one for one in seen if one[0].startswith("llm")] == [("llm seed 0", 0), ("llm seed 1", 1)]
    assert {one[1] for one in seen if one[0].startswith("random")} == {-1}
    untrained = [f.label for f in analysis.found if f.label.endswith("untrained")]
    assert {"llm seed 0 untrained", "llm seed 1 untrained", "plain seed 0 untrained"} <= set(untrained)
    assert "plain seed 1 untrained" not in untrained
    by_arm = {(f.label, f.stage): f.seeds for f in analysis.found_by_arm if f.measure == "magnitude"}
    assert by_arm["llm untrained", "mapper_out"] == by_arm["llm", "mapper_out"] == 2
    write_report(analysis, [], tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "The runs by themselves" in page
    assert "Every stage in numbers, run by run" in page


def test_maps_and_answers_in_words() -> None:
    common = {"kind": "object", "score": "average_precision", "seeds": 1, "items": 9}
    pairs = [("plain encoder magnitude", (0.1, 0.3)), ("centre", (-0.1, 0.3)), ("llm encoder attention", None)]
    rows = [
        Comparison(**common, first="llm W2 magnitude", second=name, difference=0.2, interval=ends, missing=missing)
        for (name, ends), missing in zip(pairs, (None, None, "one group"), strict=True)
    ]
    sentences = [words.object_sentence(row) for row in rows]
    assert sentences[0].startswith("What stands out behind W2 of llm lies on the object more than what stands out")
    assert "no interval: all test items belong together" in sentences[2]
    assert "no interval" not in sentences[1]
    assert words.object_answer(rows) == (
        "What stands out behind W2 of llm lies on the object more than what stands out behind the encoder of plain; "
        "not measurably more or less than a blob at the centre with the object's area and what the last layer of llm's "
        "encoder attends to."
    )
    assert words.map_in_words("a untrained W2 magnitude") == "what stands out behind W2 of a before training"


def test_an_interval_over_zero_shows_nothing() -> None:
    common = {"kind": "object", "first": "a", "second": "b", "score": "iou", "seeds": 1, "items": 9}
    assert Comparison(**common, difference=0.1, interval=(-0.1, 0.3)).outcome == "not shown"
    assert Comparison(**common, difference=0.1, interval=None).outcome == "not shown"
    assert Comparison(**common, difference=-0.1, interval=(-0.2, -0.01)).outcome == "less"
    planned = {**common, "planned": True, "interval": (0.01, 0.2), "difference": 0.1}
    assert Comparison(**planned, p=0.04, p_holm=0.12).outcome == "not shown"
    assert Comparison(**planned, p=0.004, p_holm=0.012).outcome == "more"
