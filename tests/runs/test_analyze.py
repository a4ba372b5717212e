"""`lmgraft analyze`: finished runs looked at beside each other, with truth and without."""

from __future__ import annotations

import csv
import gc
import re
from collections import namedtuple
from dataclasses import asdict
from html import escape
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from video_trees import pictures_of

from lmgraft.analysis.activations import magnitude
from lmgraft.analysis.comparison import Comparison
from lmgraft.analysis.masks import average_precision, iou, mask_of_tokens
from lmgraft.analysis.observe import observe
from lmgraft.analysis.similarity import linear_cka
from lmgraft.cli.main import main
from lmgraft.data.base import spread_over
from lmgraft.data.motion.scenes import Scenes
from lmgraft.data.video.motion_clips import Filming, write_motion_clips
from lmgraft.errors import RecipeError, RunError
from lmgraft.recipes import load_recipe
from lmgraft.recipes.build import build_task
from lmgraft.recipes.run import trained_task
from lmgraft.report.analyze.page import sections
from lmgraft.studies.analyze import AnalyzeConfig, analyze_runs, masking, read_analysis
from lmgraft.studies.analyze.compare import comparisons
from lmgraft.studies.analyze.gallery import choose
from lmgraft.studies.analyze.gradients import coherences, independent, item_products
from lmgraft.studies.analyze.look import Opened, look, open_run
from lmgraft.studies.analyze.look import columns as look_at_all
from lmgraft.studies.analyze.masking import carried, losses
from lmgraft.studies.analyze.results import Subject
from lmgraft.studies.analyze.run import _similarity
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
    with pytest.raises(RunError, match=r"no best\.ckpt"):
        analyze_runs([unfinished], tmp_path)
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


def test_seeds_of_an_arm_are_compared_together() -> None:
    """Both arms' maps are constructed: 0.2 better for every item and seed, but for noise."""
    draw = np.random.default_rng(0)
    group = np.arange(40)
    looked, subjects = {}, []
    for seed in range(3):
        base = draw.uniform(0.2, 0.6, 40)
        for arm, gain, stage in (("plain", 0.0, "encoder"), ("llm", 0.2, "mapper_out")):
            values = base + gain + 0.01 * draw.standard_normal(40)
            label = f"{arm} seed {seed}"
            names = (f"score/{stage}/magnitude/{score}" for score in ("best_iou", "average_precision"))
            looked[label] = {"index": group, "group": group, **dict.fromkeys(names, values)}
            block = None if arm == "plain" else {"source": "x"}
            subjects.append(
                Subject(
                    label=label,
                    arm=arm,
                    seed=seed,
                    folder="",
                    metric=0,
                    metric_interval=None,
                    items=40,
                    tokens=4,
                    block=block,
                )
            )
    (iou, precision) = comparisons(subjects, looked, {})
    assert (iou.first, iou.second, iou.seeds, iou.items) == ("llm W2 magnitude", "plain encoder magnitude", 3, 40)
    assert precision.difference == pytest.approx(0.2, abs=0.01)
    assert precision.outcome == "more"
    assert precision.interval is not None
    assert 0.18 < precision.interval[0] < 0.2 < precision.interval[1] < 0.22


def test_maps_and_answers_in_words() -> None:
    common = {"kind": "object", "score": "average_precision", "seeds": 1, "items": 9}
    pairs = [("plain encoder magnitude", (0.1, 0.3)), ("centre", (-0.1, 0.3)), ("llm encoder attention", None)]
    rows = [
        Comparison(**common, first="llm W2 magnitude", second=name, difference=0.2, interval=ends)
        for name, ends in pairs
    ]
    said = [words.object_sentence(row) for row in rows]
    assert said[0].startswith("What stands out behind W2 of llm lies on the object more than what stands out behind")
    assert "no interval" in said[2]
    assert "no interval" not in said[1]
    assert "in 1 of 3 comparisons, less in 0; no difference is shown in 2" in words.object_answer(rows)
    assert words.map_in_words("a untrained W2 magnitude") == "what stands out behind W2 of a before training"


def test_an_interval_over_zero_shows_nothing() -> None:
    common = {"kind": "object", "first": "a", "second": "b", "score": "iou", "seeds": 1, "items": 9}
    assert Comparison(**common, difference=0.1, interval=(-0.1, 0.3)).outcome == "not shown"
    assert Comparison(**common, difference=0.1, interval=None).outcome == "not shown"
    assert Comparison(**common, difference=-0.1, interval=(-0.2, -0.01)).outcome == "less"
