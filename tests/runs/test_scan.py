"""`lmgraft scan`: its scores against plain references, and the whole of it at toy size."""

import csv
import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pages import Page

from lmgraft.analysis.coherence import coherence, coherence_interval, products
from lmgraft.analysis.similarity import linear_cka, unbiased_hsic
from lmgraft.cli.main import main
from lmgraft.contracts import take_tokens
from lmgraft.errors import LmgraftError, RecipeError, RunError
from lmgraft.graft import find_graft
from lmgraft.recipes import build_model, load_recipe, train_run
from lmgraft.registry import METRICS
from lmgraft.report.scan.findings import findings, next_study
from lmgraft.report.scan.page import write_report
from lmgraft.report.scan.tables import scores_table
from lmgraft.studies.engine.missing import Done
from lmgraft.studies.engine.runs import train
from lmgraft.studies.scan import ScanConfig, plan_scan, read_scan, run_scan
from lmgraft.studies.scan import cost as scan_cost
from lmgraft.studies.scan.candidates import find_places
from lmgraft.studies.scan.config import choose_layers
from lmgraft.studies.scan.encoder import load_encoder, run_folder, scan_recipe, training_recipe
from lmgraft.studies.scan.known import Known, Trainings, check_trainings, count_named, match, read_trainings
from lmgraft.studies.scan.lab import (
    as_features,
    block_outputs,
    candidate_model,
    choose_items,
    draws_of,
    open_lab,
)
from lmgraft.studies.scan.ranking import rank
from lmgraft.studies.scan.results import GAIN, write_scan
from lmgraft.studies.scan.scores import SCORES, cka, probe
from lmgraft.studies.scan.scores.measured import Measured, over_draws
from lmgraft.studies.scan.training import gain_of
from lmgraft.studies.study.config import load_study
from lmgraft.studies.tokens import TokenBatch, joined, tokens_at
from lmgraft.tasks.base import Task
from lmgraft.tasks.classification import Classification
from lmgraft.words.numbers import difference
from padded_host import RECIPE as PADDED

# ---- CKA


def plain_hsic(x, y):
    """Song et al. 2012, equation 5, with the kernels written out."""
    k, l = x @ x.T, y @ y.T  # noqa: E741
    k, l = k - k.diag().diag(), l - l.diag().diag()  # noqa: E741
    n, one = len(x), torch.ones(len(x), dtype=x.dtype)
    sums = (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (one @ k @ l @ one)
    return float(((k @ l).trace() + sums) / (n * (n - 3)))


def plain_cka(x, y):
    return plain_hsic(x, y) / (plain_hsic(x, x) * plain_hsic(y, y)) ** 0.5


def related(n, p, q, seed):
    """Features of the same samples that share something."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, p, generator=generator, dtype=torch.float64)
    mixed = torch.randn(p, q, generator=generator, dtype=torch.float64)
    return x, x @ mixed + 0.5 * torch.randn(n, q, generator=generator, dtype=torch.float64) + 3


SHAPES = {"n": st.integers(5, 40), "p": st.integers(1, 50), "q": st.integers(1, 50), "seed": st.integers(0, 10**6)}


@given(**SHAPES)
def test_hsic_is_the_published_estimator(n, p, q, seed):
    x, y = related(n, p, q, seed)
    found, expected = unbiased_hsic(x, y), plain_hsic(x, y)
    assert found == pytest.approx(expected, rel=1e-8, abs=1e-8 * abs(plain_hsic(x, x) * plain_hsic(y, y)) ** 0.5)


@given(**SHAPES | {"n": st.integers(30, 40), "scale": st.floats(1e-3, 1e3)})
def test_cka_does_not_see_scale_shift_and_rotation(n, p, q, seed, scale):
    x, y = related(n, p, q, seed)
    turn = torch.linalg.qr(torch.randn(q, q, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))[0]
    found = linear_cka(x, y)
    assert found == pytest.approx(plain_cka(x, y), abs=1e-8)
    assert linear_cka(x, scale * y @ turn + 7) == pytest.approx(found, abs=1e-8)
    assert linear_cka(y, x) == pytest.approx(found, abs=1e-9)
    assert linear_cka(x, x @ torch.eye(p, dtype=x.dtype) * scale) == pytest.approx(1, abs=1e-9)


def test_cka_of_unrelated_wide_features_is_about_zero_where_the_plain_estimate_is_near_one():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(50, 2000, generator=generator) for _ in range(2))
    x, y = x + torch.randn(50, 1, generator=generator) * 0.3, y + torch.randn(50, 1, generator=generator) * 0.3
    plain = (x - x.mean(0)) @ (x - x.mean(0)).T, (y - y.mean(0)) @ (y - y.mean(0)).T
    assert (plain[0] * plain[1]).sum() / (plain[0].norm() * plain[1].norm()) > 0.4
    assert abs(linear_cka(x, y)) < 0.1


@pytest.mark.parametrize("bad", [(torch.ones(6, 3), torch.randn(6, 2)), (torch.randn(3, 2), torch.randn(3, 2))])
def test_cka_says_when_it_means_nothing(bad):
    with pytest.raises(ValueError, match="CKA"):
        linear_cka(*bad)


# ---- Probe


def share_right(predicted, targets):
    return Classification.agreement(None, predicted, targets)


def probe_accuracy(signal, width, seed=0, n=400):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (2 * n,), generator=generator)
    features = torch.randn(2 * n, width, generator=generator) * torch.logspace(-2, 2, width)
    features += 5 + signal * torch.randn(4, width, generator=generator)[labels] * torch.logspace(-2, 2, width)
    targets = torch.nn.functional.one_hot(labels, 4).float()
    scores = probe.ridge_probe(features[:n], targets[:n], features[n:], share_right)
    return float((scores.argmax(1) == labels[n:]).double().mean())


@pytest.mark.parametrize("width", [30, 900])  # fewer and more features than samples
def test_the_probe_finds_a_planted_signal_and_nothing_in_noise(width):
    assert probe_accuracy(1.0, width) > 0.9
    assert abs(probe_accuracy(0.0, width) - 0.25) < 0.08


@pytest.mark.parametrize("width", [6, 60])
def test_the_probe_is_ridge_regression_with_the_best_penalty_by_leaving_one_out(width):
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(3, (40,), generator=generator)
    x = torch.randn(40, width, generator=generator).double() + 0.8 * torch.nn.functional.one_hot(labels, width)
    z = torch.randn(5, width, generator=generator).double()
    targets = torch.nn.functional.one_hot(labels, 3).double()
    found = probe.ridge_probe(x, targets, z, share_right)
    mean, deviation = x.mean(0), x.std(0, correction=0)
    x, z = (x - mean) / deviation, (z - mean) / deviation
    unit = torch.linalg.svdvals(x).square()
    unit = float(unit[unit > 1e-10 * unit[0]].mean())

    def fit(x, y, penalty):
        """With an intercept, which is not shrunk."""
        middle, centre = y.mean(0), x.mean(0)
        weights = torch.linalg.solve(
            (x - centre).T @ (x - centre) + penalty * torch.eye(width), (x - centre).T @ (y - middle)
        )
        return lambda new: (new - centre) @ weights + middle

    best = max(
        (
            sum(int(fit(x[keep], targets[keep], p * unit)(x[i]).argmax() == labels[i]) for i, keep in left_out(40)),
            p * unit,
        )
        for p in probe.PENALTIES
    )[1]
    assert torch.allclose(found, fit(x, targets, best)(z), atol=1e-8)


def left_out(n):
    return [(i, torch.arange(n) != i) for i in range(n)]


def test_a_constant_feature_is_no_division_by_zero():
    x = torch.randn(20, 3)
    x[:, 1] = 4.0
    targets = torch.nn.functional.one_hot(torch.arange(20) % 2).float()
    assert probe.ridge_probe(x, targets, x, share_right).isfinite().all()


def test_a_tasks_own_word_for_a_fit_is_r2_unless_it_says_otherwise():
    truth = torch.tensor([[0.0, 1.0], [2.0, 1.0], [4.0, 4.0]])
    assert Task.agreement(None, truth, truth) == 1
    assert Task.agreement(None, truth.mean(0).expand(3, -1), truth) == pytest.approx(0)
    assert Task.agreement(None, truth + torch.tensor([1.0, 0.0]), truth) == pytest.approx(1 - 3 / 14)
    constant = torch.ones(3, 2)
    assert Task.agreement(None, constant, constant) == 1
    assert Task.agreement(None, 2 * constant, constant) == 0
    assert share_right(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])) == 0.5


# ---- Coherence


def products_of(gradients):
    return products(lambda: [{"encoder": one} for one in gradients])["encoder"]


def test_coherence_of_equal_batches_is_one_and_of_random_ones_about_zero():
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(1, 5000, generator=generator)
    equal = products_of(one.expand(6, -1))
    assert coherence(equal) == pytest.approx(1, abs=1e-6)
    assert coherence_interval(equal) == pytest.approx((1, 1), abs=1e-5)
    noise = torch.randn(8, 5000, generator=generator)
    assert abs(coherence(products_of(noise))) < 0.02
    low, high = coherence_interval(products_of(noise + one))
    assert low < 0.5 < high
    assert high - low < 0.1
    assert coherence_interval(products_of(noise[:2])) is None


def test_coherence_is_that_of_all_pairs_and_unbiased_for_few_batches():
    generator = torch.Generator().manual_seed(0)
    shared, found = torch.ones(100), []
    for _ in range(400):
        gradients = shared + torch.randn(3, 100, generator=generator) * 2
        found.append(coherence(products_of(gradients)))
    gram = (gradients @ gradients.T).double()
    pairs = (gram.sum() - gram.trace()) / 6
    assert found[-1] == pytest.approx(float(pairs / (gram.trace() / 3)), rel=1e-4)
    assert sum(found) / 400 == pytest.approx(1 / 5, abs=0.01)  # 100 / (100 + 400)


def test_the_interval_of_coherence_leaves_each_gradient_out_in_turn():
    gradients = torch.randn(5, 20, generator=torch.Generator().manual_seed(0)) + 0.5
    without = torch.tensor([coherence(products_of([*gradients[:i], *gradients[i + 1 :]])) for i in range(5)])
    error = float(((without - without.mean()).square().sum() * 4 / 5).sqrt())
    low, high = coherence_interval(products_of(gradients))
    assert (low + high) / 2 == pytest.approx(coherence(products_of(gradients)), rel=1e-5)
    assert high - low == pytest.approx(2 * 2.776445 * error, rel=1e-4)  # t of 4 degrees of freedom


@pytest.mark.parametrize("gradients", [torch.zeros(3, 4), torch.tensor([[1.0, torch.nan]] * 3)])
def test_gradients_that_say_nothing_are_said(gradients):
    with pytest.raises(RunError, match="zero or not finite"):
        coherence(products_of(gradients))


# ---- What is asked


def test_layers_as_they_may_be_named():
    assert choose_layers(("0", "-1", "5", "5"), 10, "x") == [0, 5, 9]
    assert choose_layers(("all",), 3, "x") == [0, 1, 2]
    assert choose_layers(("every:4",), 30, "x") == [1, 5, 9, 13, 17, 21, 25, 29]
    for wrong, said in ((("10",), "has 10 layers"), (("every:0",), "no step"), (("last",), "no layer")):
        with pytest.raises(RecipeError, match=said):
            choose_layers(wrong, 10, "x")


@pytest.fixture
def toy(make_recipe, tmp_path):
    """A recipe file over the stand-in data and the tiny LLM."""
    file = tmp_path / "toy.yaml"
    file.write_text(make_recipe().yaml)
    return file


@pytest.fixture
def small(toy, llama_folder):
    """A scan of seconds, without training."""
    return ScanConfig(
        recipe=str(toy),
        llms=(str(llama_folder),),
        layers=("0", "-1"),
        positions=("tail", "middle"),
        draws=2,
        train_images=80,
        val_images=20,
        cka_images=8,
        coherence_batches=3,
        coherence_images=8,
        train_epochs=0,
    )


@pytest.fixture(scope="module")
def plain_runs(tmp_path_factory):
    """Where the module keeps its one trained plain encoder."""
    return tmp_path_factory.mktemp("plain")


@pytest.fixture
def trained(make_recipe, plain_runs):
    """A finished plain run of `toy`, one epoch long."""
    folder = plain_runs / "plain"
    if not (folder / "result.json").exists():
        train_run(make_recipe("--arm", "plain", "--train.epochs", "1"), folder, progress="none")
    return folder


def test_what_is_wrong_is_said_before_anything_is_computed(small, toy, trained, tmp_path, make_recipe, llama_folder):
    unfinished, other, llm = tmp_path / "unfinished", tmp_path / "other", tmp_path / "llm"
    for folder in (unfinished, other, llm):
        shutil.copytree(trained, folder)
    (unfinished / "result.json").unlink()
    for folder, change in ((other, ("--backbone.kwargs.embed_dim", "32")), (llm, ("--arm", "llm"))):
        (folder / "config.yaml").write_text(make_recipe("--arm", "plain", *change).yaml)
    wrong = {
        "no such score": {"scores": ("prob",)},
        "switched on by --train-epochs": {"scores": ("train",)},
        "has 3 layers": {"layers": ("3",)},
        "no/such/llm.gguf": {"llms": (str(llama_folder), "no/such/llm.gguf")},
        "is no place in": {"positions": ("somewhere",)},
        "the same place": {"positions": ("tail", "1")},
        "is not finished": {"from_run": str(unfinished)},
        "another backbone": {"from_run": str(other)},
        "arm llm": {"from_run": str(llm)},
        "other data": {"from_run": str(trained), "overrides": ("--data.val_size", "30")},
        "is too few": {"draws": 1},
        "use --llms": {"overrides": ("--llm", "x")},
        "compares frozen blocks": {"overrides": ("--graft.train_block", "all")},
    }
    small = replace(small, layers=("-1",), positions=("tail",))
    for said, change in wrong.items():
        with pytest.raises((RecipeError, ValueError), match=re.escape(said)):
            plan_scan(replace(small, **change))
    assert plan_scan(replace(small, from_run=str(trained))).trains_encoder is False


def test_data_without_held_out_images_are_refused(small, monkeypatch):
    from lmgraft.data.image.fashion_mnist import FashionMNIST

    monkeypatch.setattr(FashionMNIST, "selection", "test")
    with pytest.raises(RunError, match="test items"):
        plan_scan(small)


def test_more_memory_than_there_is_is_said(small, monkeypatch):
    monkeypatch.setattr(scan_cost, "total_memory", lambda: 1 << 30)
    with pytest.raises(RunError, match="4 of 4 candidates need more memory"):
        plan_scan(small)


def test_steps_are_limited_by_fewer_images(small):
    config = replace(small, train_epochs=2, train_steps=4)
    assert training_recipe(config, 3).data.train_size == 48  # 2 steps of 24 images in each of 2 epochs
    assert training_recipe(replace(config, train_steps=1000), 3).data.train_size is None  # there are 100


# ---- What the scores look at


@pytest.fixture
def lab(small, trained):
    config = replace(small, from_run=str(trained), overrides=("--graft.form", "auto"))
    recipe = scan_recipe(config)
    recipe.data.seed = recipe.seed
    recipe.data.setup()
    encoder, _ = load_encoder(config, recipe, trained)
    places = find_places(encoder, config.positions)
    return open_lab(config, recipe, encoder, places, torch.device("cpu"), lambda _: None)


def candidates_of(lab):
    return {c.position: c for c in plan_scan(lab.config).candidates if c.layer == 2}


def test_the_first_draw_is_the_recipes_own_graft_behind_the_trained_encoder(lab):
    candidate = candidates_of(lab)["tail"]
    model = candidate_model(lab, candidate)
    own = build_model(load_recipe(lab.config.recipe, candidate.overrides()))
    first, second = draws_of(lab, model)
    assert torch.equal(first.mapper_in.weight, own.graft.mapper_in.weight)
    assert torch.equal(first.mapper_in.weight, find_graft(model).mapper_in.weight)
    assert not torch.equal(second.mapper_in.weight, first.mapper_in.weight)
    trained = lab.encoder.state_dict()
    assert all(torch.equal(model.state_dict()[name], value) for name, value in trained.items())


def whole(y, part):
    return y


def test_block_outputs_are_what_the_dense_form_makes_of_the_encoders_tokens(lab, monkeypatch):
    place, model = lab.places["tail"], candidate_model(lab, candidates_of(lab)["tail"])
    inserted = find_graft(model)
    tokens = place.val[:5]
    expected = inserted.block(inserted.mapper_in(tokens.x.float())).detach()
    monkeypatch.setattr("lmgraft.studies.scan.lab.NUMBERS_PER_CALL", 2 * tokens.x.shape[1] * 64)  # two images a call
    assert torch.allclose(block_outputs(inserted, replace(tokens, reads=None), whole), expected, atol=1e-5)
    read = block_outputs(inserted, tokens, whole)
    assert torch.allclose(read, expected[:, :1], atol=1e-5)


def test_tokens_are_those_the_graft_is_given(lab):
    images = lab.recipe.data.still("val").batch(range(4)).inputs
    for position, candidate in candidates_of(lab).items():
        model = candidate_model(lab, candidate)
        seen = []
        find_graft(model).register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        model(images)
        found = tokens_at(lab.encoder, find_places(lab.encoder, (position,)), (images,))[position]
        assert torch.allclose(found.x, seen[0], atol=1e-6)
        assert found.reads == (0 if position == "tail" else None)


def test_cka_of_a_block_that_passes_tokens_on_is_one(lab, monkeypatch):
    place, model = lab.places["tail"], candidate_model(lab, candidates_of(lab)["tail"])
    width = lab.encoder.embed_dim

    def pass_on(inserted, tokens, shorten):
        turn = torch.linalg.qr(torch.randn(width, width))[0]
        return shorten(tokens.x.float() @ turn, tokens)

    monkeypatch.setattr(cka, "block_outputs", pass_on)
    assert cka.measure(lab, place, model).draws == pytest.approx([1, 1], abs=1e-6)


def test_coherence_is_that_of_the_models_own_gradients(lab):
    place, model = lab.places["middle"], candidate_model(lab, candidates_of(lab)["middle"])
    found = SCORES["coherence"].measure(lab, place, model)
    gradients = []
    samples = choose_items(24, len(lab.recipe.data.split("train")))
    mixed = torch.randperm(24, generator=torch.Generator().manual_seed(0)).tolist()
    for start in (0, 8, 16):
        images, labels, *_ = lab.recipe.data.still("train").batch([samples[i] for i in mixed[start : start + 8]])
        model.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad]))
    assert found.value == pytest.approx(coherence(products_of(gradients)), rel=1e-4)
    assert set(found.parts) == {"mappers", "encoder"}


# ---- The whole of it


@pytest.fixture
def scanned(small, trained, plain_runs, tmp_path):
    """A finished scan in a folder of its own, made once."""
    config = replace(small, from_run=str(trained), scores=("probe", "cka"))
    if not (plain_runs / "scan").exists():
        run_scan(config, plain_runs / "scan")
    shutil.copytree(plain_runs / "scan", tmp_path / "out")
    return config, tmp_path / "out", read_scan(tmp_path / "out")


@pytest.mark.long
def test_only_what_is_missing_is_computed(scanned, monkeypatch):
    config, out, first = scanned
    assert set(first.candidates) == {
        f"{Path(config.llms[0]).name}_layer{n}_{p}" for n in (0, 2) for p in ("tail", "middle")
    }
    before = (out / "scan.json").read_text()
    held = json.loads(before)
    gone = list(held["candidates"])[1]
    del held["candidates"][gone]["scores"]["cka"]
    (out / "scan.json").write_text(json.dumps(held))
    measured = []
    for name, module in (("probe", probe), ("cka", cka)):

        def watch(lab, place, model, name=name, measure=module.measure):
            measured.append(name)
            return measure(lab, place, model)

        monkeypatch.setitem(SCORES, name, replace(SCORES[name], measure=watch))
    again = run_scan(config, out)
    assert measured == ["cka"]
    assert again.candidates[gone].scores["cka"].draws == first.candidates[gone].scores["cka"].draws

    more = run_scan(replace(config, layers=("1",)), out)  # candidates may be added
    assert measured == ["cka"] + ["probe", "cka"] * 2
    assert len(more.candidates) == 6
    with pytest.raises(RunError, match=r"other settings.*train_images"):
        run_scan(replace(config, train_images=60), out)
    with pytest.raises(RunError, match=r"other settings.*lr"):
        run_scan(replace(config, overrides=("--optim.lr", "1")), out)


def test_a_damaged_scan_is_said_and_a_whole_one_comes_back(scanned, tmp_path):
    config, out, scan = scanned
    write_scan(scan, tmp_path)
    assert (tmp_path / "scan.json").read_text() == (out / "scan.json").read_text()
    assert asdict(read_scan(tmp_path)) == asdict(scan)
    (tmp_path / "scan.json").unlink()
    text = (out / "scan.json").read_text()
    damaged = {
        "not readable JSON": text[: len(text) // 2],
        "is damaged": text.replace('"num_layers"', '"layers"'),
        "version 99": text.replace('"version": 2', '"version": 99'),
    }
    for said, content in damaged.items():
        (out / "scan.json").write_text(content)
        with pytest.raises(RunError, match=said):
            run_scan(config, out)
    assert read_scan(tmp_path) is None


def test_an_llm_that_changed_under_a_scan_is_said(scanned):
    config, out, scan = scanned
    for one in scan.candidates.values():
        one.digest, one.scores = "0" * 64, {}
    write_scan(scan, out)
    with pytest.raises(RunError, match="another layer 0 than"):
        run_scan(config, out)


def test_a_score_that_fails_fails_alone(scanned, monkeypatch):
    config, out, _ = scanned
    config = replace(config, layers=("0",), positions=("tail",))

    def fail(*args):
        raise ValueError("CKA of features that do not vary")

    monkeypatch.setattr(cka, "linear_cka", fail)
    scan = run_scan(config, out.parent / "again")
    for one in scan.candidates.values():
        assert one.scores["cka"].failed == "CKA of features that do not vary"
        assert one.scores["cka"].value is None
        assert one.scores["probe"].value is not None
    assert rank(scan, "cka") == []


def test_ranks_say_what_is_not_told_apart(scanned):
    _, _, scan = scanned
    values = [(0.3, (0.25, 0.35)), (0.5, (0.4, 0.6)), (0.45, (0.41, 0.49)), (0.1, None)]
    for one, (value, interval) in zip(scan.candidates.values(), values, strict=True):
        one.scores["probe"] = Measured(value=value, interval=interval)
    labels = list(scan.candidates)
    order = rank(scan, "probe")
    assert [r.label for r in order] == [labels[1], labels[2], labels[0], labels[3]]
    assert [r.tied for r in order] == [False, True, False, True]


def shares(values):
    """Accuracies of a short training, seed by seed."""
    return dict(enumerate(values, start=3))


@pytest.mark.parametrize(
    ("accuracies", "missing"),
    [((0.5414, 0.5514), "no spread"), ((0.5414,), "one value"), ((0.5414, 0.5614), None)],
)
def test_a_gain_that_two_seeds_share_has_no_interval(tmp_path, monkeypatch, scanned, accuracies, missing):
    """A scan printed +1.14 [+1.14, +1.14] where two seeds gained the same; it then counted as told apart from zero."""
    scan = read_scan(scanned[1])
    one, other = list(scan.candidates.values())[:2]
    plain = shares((0.53, 0.54)[: len(accuracies)])
    trained = {}
    for seed, accuracy in shares(accuracies).items():
        folder = run_folder(tmp_path, one.candidate, seed)
        folder.mkdir(parents=True)
        (folder / "result.json").touch()
        trained[folder] = SimpleNamespace(val={"accuracy": accuracy}, primary="accuracy", seconds=1.0)
    monkeypatch.setattr("lmgraft.studies.scan.training.read_result", trained.__getitem__)
    one.gain = gain_of(tmp_path, one.candidate, plain, METRICS.find("accuracy"), {})
    other.gain = Measured(value=0.001, interval=(-0.2, 0.2))
    assert one.gain.value == pytest.approx(sum(accuracies) / len(accuracies) - sum(plain.values()) / len(plain))
    assert (one.gain.interval is None, one.gain.no_interval) == (missing is not None, missing)
    if missing is None:
        return
    assert [r.tied for r in rank(scan, GAIN) if r.measured is other.gain] == [True]
    assert "train: no gain" in {finding.kind for finding in findings(scan)}
    [row] = [row for row in scores_table(scan).rows if row[-1].startswith("+1.14")]
    assert row[-1] == f"+1.14 [{missing}] (1)"


def test_an_older_scans_interval_of_no_width_is_none(scanned, tmp_path):
    scan = read_scan(scanned[1])
    next(iter(scan.candidates.values())).gain = Measured(value=0.0114, interval=(0.0114, 0.0114), draws=[0.0114] * 2)
    write_scan(scan, tmp_path)
    gain = next(iter(read_scan(tmp_path).candidates.values())).gain
    assert (gain.interval, gain.no_interval) == (None, "no spread")


def of_task(name):
    return METRICS.find(name or "accuracy")


def test_known_trainings_are_matched(scanned, tmp_path):
    config, _, scan = scanned
    labels = {(c.candidate.layer, c.candidate.position): label for label, c in scan.candidates.items()}
    file = tmp_path / "known.json"
    rows = [
        {"llm": config.llms[0], "layer": -1, "position": "tail", "gain": 0.5},
        {"llm": "another", "layer": 0, "position": "tail", "gain": 0.1},
    ]
    file.write_text(json.dumps({"source": "a table", "candidates": rows}))
    known = match(read_trainings(file, of_task), scan.candidates)
    assert known.gains == {labels[2, "tail"]: 0.5}
    assert known.metric == METRICS.find("accuracy")
    assert known.unmatched == ["another layer 0, tail"]

    study = tmp_path / "study"
    study.mkdir()
    block = {"source": "moved", "layers": [0], "digest": scan.candidates[labels[0, "middle"]].digest}
    results = study_results([("a", {"1": 0.7, "2": 0.9}, block, "middle")]) | {"metric": asdict(METRICS.find("nll"))}
    (study / "results.json").write_text(json.dumps(results))
    known = match(read_trainings(study, of_task), scan.candidates)
    assert known.gains == {labels[0, "middle"]: pytest.approx(-0.1)}  # less is better
    assert known.metric == METRICS.find("nll")

    file.write_text(json.dumps({"metric": "acuracy", "candidates": rows}))
    with pytest.raises(LmgraftError, match="no metric 'acuracy'"):
        read_trainings(file, of_task)
    good = {"llm": "a", "layer": 1, "position": "tail", "gain": 0.1}
    bad = [{}, *(good | wrong for wrong in ({"gain": float("nan")}, {"gain": True}, {"gain": "1"}, {"layer": 1.7}))]
    for content in (json.dumps({"candidates": [row]}) for row in bad):
        file.write_text(content)
        with pytest.raises(RunError, match="neither a study"):
            read_trainings(file, of_task)
    file.write_text(json.dumps({"candidates": [good | {"gain": 40}]}))
    with pytest.raises(RunError, match=r"a gain of 40, which no test accuracy can have"):
        read_trainings(file, of_task)


def study_results(arms):
    """What `--known` reads of a study's results.json; arms of label, values, block and position."""
    rows = [{"label": "plain", "arm": "plain", "values": {"0": 0.5, "1": 0.6}, "block": None, "position": "tail"}]
    rows += [
        {"label": label, "arm": "llm", "values": values, "block": block, "position": position}
        for label, values, block, position in arms
    ]
    return {"name": "s", "metric": asdict(METRICS.find("accuracy")), "arms": rows}


def test_known_trainings_that_cannot_belong_to_the_scan_are_refused_before_anything_is_computed(scanned, tmp_path):
    config, _, scan = scanned
    candidates = [s.candidate for s in scan.candidates.values()]
    name, of = config.llms[0], {label: s.digest for label, s in scan.candidates.items()}
    data = {"name": "toy", "sha256": {"train": "1", "test": "2"}, "sizes": {"train": 5}}
    source, layer = {"llm": name, "position": "tail", "gain": 0.1}, candidates[0].layer

    def known(rows, **more):
        return Trainings(file=tmp_path, source="s", metric=METRICS.find("accuracy"), rows=rows, **more)

    def of_file(*rows):
        file = tmp_path / "known.json"
        file.write_text(json.dumps({"candidates": list(rows)}))
        return read_trainings(file, of_task)

    good = of_file(source | {"layer": layer})
    check_trainings(good, candidates, data)
    assert count_named(good, candidates) == 1
    for row in ({"layer": 99}, {"layer": layer, "position": "head"}, {"layer": layer, "llm": "another"}):
        with pytest.raises(RunError, match="nothing in it is a candidate"):
            check_trainings(of_file(source | row), candidates, data)
    with pytest.raises(RunError, match="nothing in it is a candidate of this scan; it knows none"):
        check_trainings(of_file(), candidates, data)

    count = candidates[0].num_layers
    twice = of_file(source | {"layer": layer}, source | {"layer": layer - count, "gain": 0.2})
    with pytest.raises(RunError, match=r"2 of its trainings are of one candidate.*\+0.1.*\+0.2"):
        check_trainings(twice, candidates, data)

    # A block under another name may be the same: that is seen when it has been loaded.
    moved = replace(good.rows[0], llm="moved", digest="of another block")
    check_trainings(known([moved]), candidates, data)
    with pytest.raises(RunError, match="nothing in it is a candidate"):
        match(known([moved]), scan.candidates)
    same = replace(moved, digest=of[candidates[0].label])
    with pytest.raises(RunError, match="2 of its trainings are of one candidate"):
        match(known([good.rows[0], same]), scan.candidates)

    fewer = data | {"sizes": {"train": 3}, "sha256": {"train": "1", "test": "other"}}
    check_trainings(known(good.rows, data=fewer), candidates, data)
    for other in ({"name": "toys"}, {"sha256": {"train": "9", "test": "2"}}, {"classes": ["a"]}):
        with pytest.raises(RunError, match="other data than this scan's"):
            check_trainings(known(good.rows, data=data | other), candidates, data)


def test_known_gains_in_nats_are_written_in_nats_and_the_short_training_is_held_against_them(scanned):
    _, out, scan = scanned
    known = Known(source="s", gains={}, unmatched=[], metric=METRICS.find("nll"))
    for i, (label, one) in enumerate(scan.candidates.items()):
        one.scores["probe"] = Measured(value=float(i % 3))
        one.gain = Measured(value=0.01 * i)
        known.gains[label] = 0.0123 * (3 - i)
    made = findings(scan, known)
    agreed = {(f.score.title, f.source): f for f in made if f.agreement is not None}
    against = agreed["held-out gain", "s"]
    assert against.metric == METRICS.find("nll")
    assert against.agreement.regret == pytest.approx(0.0123 * (len(scan.candidates) - 1))
    assert against.agreement.kendall.value == -1
    assert ("held-out gain", "short training") not in agreed
    assert agreed["probe, block minus encoder", "short training"].metric == METRICS.find("accuracy")
    assert {"uncorrected", "paper"} <= {f.kind for f in made}
    write_report(scan, out, known)
    table = (out / "tables" / "agreement_known.md").read_text()
    assert "lost by it, nats" in table
    assert "0.0369" in table
    assert "gain of known training, nats" in (out / "figures" / "against_known.svg").read_text()
    assert "lost by it, points" in (out / "tables" / "agreement_short_training.md").read_text()


# ---- Old scans, and tasks of another kind


EVIDENCE = Path(__file__).parents[2] / "evidence" / "scan"


def test_an_old_scan_is_read_and_its_tables_come_out_as_they_were(tmp_path):
    assert json.loads((EVIDENCE / "scan.json").read_text())["version"] == 1
    scan = read_scan(EVIDENCE)
    assert scan.encoder.val == pytest.approx(0.8418, abs=1e-6)
    assert (scan.metric, scan.agreement, scan.things) == (METRICS.find("accuracy"), METRICS.find("accuracy"), "images")
    write_report(scan, tmp_path)
    for name in ("scan.csv", "scan.md", "scan.tex"):
        assert (tmp_path / "tables" / name).read_text() == (EVIDENCE / "tables" / name).read_text()
    assert "held-out accuracy 84.18 %" in (tmp_path / "report.html").read_text()


def test_draws_that_are_all_equal_have_no_interval():
    assert over_draws([0.0114, 0.0114]).interval is None
    assert over_draws([0.0114, 0.0124]).interval is not None


def test_batches_of_other_lengths_are_joined_and_what_is_read_stays_what_it_is():
    parts = [torch.randn(2, 3, 4), torch.randn(1, 5, 4)]
    for reads, places in ((-1, [[2], [2], [4]]), (slice(0, 2), [[0, 1]] * 3), (torch.tensor([1, -2]), None)):
        tokens = joined([TokenBatch(x=x, reads=reads) for x in parts])
        assert tokens.padded.tolist() == [[False] * 3 + [True] * 2] * 2 + [[False] * 5]
        assert places is None or tokens.reads.tolist() == places
        expected = torch.cat([take_tokens(x, reads) for x in parts])
        assert torch.equal(take_tokens(tokens.x, tokens.reads), expected)
        assert torch.equal(as_features(expected, tokens), expected.flatten(1))
    assert joined([TokenBatch(x=parts[0], reads=-1)] * 2).reads == -1
    mean = as_features(tokens.x, replace(tokens, reads=None))
    assert torch.allclose(mean, torch.cat([x.mean(1) for x in parts]))
    with pytest.raises(LmgraftError, match="same number of tokens"):
        joined([TokenBatch(x=x, reads=slice(1, None)) for x in parts])


@pytest.fixture
def padded(tmp_path, llama_folder):
    """A scan of the padded toy: two inputs, regression, less is better."""
    file = tmp_path / "padded.yaml"
    file.write_text(PADDED.format(llm=llama_folder))
    sizes = {"train_images": 60, "val_images": 24, "cka_images": 16, "coherence_batches": 3, "coherence_images": 8}
    return ScanConfig(
        recipe=str(file), llms=(str(llama_folder),), layers=("0", "-1"), positions=("tail", "head"), draws=2,
        train_epochs=1, train_seeds=2, **sizes,
    )  # fmt: skip


def open_padded(config):
    recipe = scan_recipe(config)
    recipe.data.setup()
    encoder = build_model(scan_recipe(config, "--arm", "plain")).eval()
    lab = open_lab(config, recipe, encoder, find_places(encoder, config.positions), torch.device("cpu"), lambda _: None)
    return lab, {c.position: candidate_model(lab, c) for c in plan_scan(config).candidates if c.layer == 2}


def one_by_one(lab, model, split, count):
    """Of each scene by itself, without padding: the tokens that enter the block, what the dense block makes of them,
    and the targets; tokens are rounded as the lab keeps them."""
    inserted, entered, targets = find_graft(model), [], []
    hook = inserted.register_forward_pre_hook(lambda _, args: entered.append(args[0].half().float()))
    with torch.no_grad():
        for sample in choose_items(count, len(lab.recipe.data.split(split))):
            batch = lab.recipe.data.still(split).batch([sample])
            model(*lab.task.inputs(batch))
            targets.append(batch.target)
        hook.remove()
        left = [inserted.block(inserted.mapper_in(tokens))[0] for tokens in entered]
    return [tokens[0] for tokens in entered], left, torch.cat(targets)


@pytest.mark.parametrize("position", ["tail", "head"])
def test_scores_of_a_padded_regression_are_those_of_each_scene_by_itself(padded, position):
    lab, models = open_padded(replace(padded, positions=(position,)))
    place, model = lab.places[position], models[position]
    assert place.val.padded.any()
    found = {"probe": probe.measure(lab, place, model), "cka": cka.measure(lab, place, model)}
    in_train, out_train, targets = one_by_one(lab, model, "train", 60)
    in_val, out_val, truth = one_by_one(lab, model, "val", 24)

    def probed(train, val):
        read = (lambda x: x[0]) if position == "tail" else (lambda x: x.mean(0))
        train, val = (torch.stack([read(x) for x in items]) for items in (train, val))
        predicted = probe.ridge_probe(train, targets, val, lab.task.agreement)
        return float(1 - (predicted - truth).square().sum() / (truth - truth.mean(0)).square().sum())

    own, behind = probed(in_train, in_val), probed(out_train, out_val)
    # The first draw has the mappers of the candidate's model.
    assert found["probe"].parts["encoder"] == pytest.approx(own, abs=2e-3)
    assert found["probe"].draws[0] == pytest.approx(behind - own, abs=4e-3)
    similar = linear_cka(torch.cat(in_val[:16]), torch.cat(out_val[:16]))
    assert found["cka"].draws[0] == pytest.approx(similar, abs=1e-3)


@pytest.mark.long
def test_a_padded_regression_is_scanned_from_training_to_the_page(padded, tmp_path, monkeypatch):
    monkeypatch.setattr("lmgraft.studies.scan.run.local", here)
    padded = replace(padded, positions=("tail",))
    out = tmp_path / "out"
    scan = run_scan(padded, out)
    plain = {k: json.loads((out / f"runs/plain/seed{k}/result.json").read_text())["val"]["error"] for k in (1, 2)}
    assert scan.plain == plain
    for label, one in scan.candidates.items():
        assert {name: m.failed for name, m in one.scores.items()} == dict.fromkeys(SCORES)
        val = {k: json.loads((out / f"runs/{label}/seed{k}/result.json").read_text())["val"]["error"] for k in plain}
        assert one.gain.draws == [plain[k] - val[k] for k in plain]  # less is better
    for name in (*SCORES, GAIN):
        assert [r.rank for r in rank(scan, name)] == [1, 2]
    assert asdict(read_scan(out)) == asdict(scan)
    page = write_report(scan, out).read_text()
    assert "held-out gain, m<" in page
    assert "held-out scenes" in page
    assert "accuracy" not in (out / "tables/scan.md").read_text()
    rows = list(csv.DictReader((out / "tables/scan.csv").read_text().splitlines()))
    assert {row["score"] for row in rows} == {*SCORES, GAIN}


def test_a_task_without_targets_says_so_of_the_probe_and_has_the_rest(padded):
    config = replace(padded, overrides=("--task=padded_host.NoTargets",), positions=("tail",))
    lab, models = open_padded(config)
    measured = probe.measure(lab, lab.places["tail"], models["tail"])
    assert (measured.value, measured.applies) == (None, False)
    assert cka.measure(lab, lab.places["tail"], models["tail"]).value is not None


def here():
    """Trains in this process, one after the other: a study's tests have the processes of their own."""

    def run(jobs, say):
        for job in jobs:
            train(job)
            yield Done(cell=job, seconds=1.0)

    return run


@pytest.mark.slow
def test_from_the_command_line_to_the_page(toy, llama_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("lmgraft.studies.scan.run.local", here)
    out = tmp_path / "out"
    sizes = ["--draws", "2", "--train-images", "80", "--val-images", "20", "--cka-images", "8"]
    command = ["scan", str(toy), "--llms", str(llama_folder), "--layers", "0", "-1", "--out", str(out), *sizes]
    command += ["--coherence-batches", "3", "--coherence-images", "8", "--train-seeds", "2", "--optim.lr", "0.002"]
    assert main([*command, "--dry-run"]) == 0
    assert "2 candidates" in capsys.readouterr().out
    assert not out.exists()

    assert main(command) == 0
    printed = capsys.readouterr()
    assert "short training: 4 in all, 0 done before" in printed.err
    assert "[4/4] " in printed.err
    assert "The paper (Fig. 2" in printed.out
    scan = read_scan(out)
    for label, one in scan.candidates.items():
        runs = [json.loads((out / "runs" / name / "seed3" / "result.json").read_text()) for name in (label, "plain")]
        assert one.gain.draws[0] == pytest.approx(runs[0]["val"]["accuracy"] - runs[1]["val"]["accuracy"])
        assert (one.gain.interval is None) == (len(set(one.gain.draws)) == 1)
        assert one.gain.interval is None or one.gain.interval[0] <= one.gain.value <= one.gain.interval[1]
        assert set(one.scores) == {"probe", "cka", "coherence"}
    assert set(scan.plain) == {3, 4}

    page = Page((out / "report.html").read_text())
    assert "script" not in page.tags
    assert page.tags.count("svg") == 2
    local = [address for address in page.addresses if not address.startswith(("data:", "#"))]
    assert local
    assert all((out / address).is_file() for address in local)
    best = rank(scan, GAIN)[0]
    assert difference(best.measured.value, scan.metric) in page.text
    assert "too few to say whether rankings agree" in page.text
    lines = (out / "tables" / "scan.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * 4
    study = load_study(str(out / "next_study.yaml"))
    assert (out / "next_study.yaml").read_text() == next_study(scan)
    assert study.seeds == (5, 6, 7, 8, 9)
    assert "--optim.lr" in study.arguments

    changed = (out / "scan.json").stat().st_mtime_ns
    results = {p: p.stat().st_mtime_ns for p in out.rglob("result.json")}
    known = tmp_path / "known.json"
    rows = [{"llm": str(llama_folder), "layer": n, "position": "tail", "gain": n / 10} for n in (0, 2)]
    known.write_text(json.dumps({"source": "an older table", "candidates": rows}))
    assert main([*command, "--known", str(known)]) == 0
    assert "short training: 4 in all, 4 done before, 0 to do" in capsys.readouterr().err
    assert results == {p: p.stat().st_mtime_ns for p in out.rglob("result.json")}
    assert (out / "scan.json").stat().st_mtime_ns > changed
    assert "Against an older table" in (out / "report.html").read_text()
    for wrong in ([], ["--dry-run"]):  # before anything is computed
        again = [*command, "--known", str(known), *wrong, "--out", str(tmp_path / "other"), "--positions", "middle"]
        assert main(again) == 2
        assert "nothing in it is a candidate of this scan" in capsys.readouterr().err
        assert not (tmp_path / "other").exists()
    assert main([*command, "--known", str(known), "--dry-run"]) == 0
    assert "an older table has trainings of 2 of these candidates by name" in capsys.readouterr().out
    assert main([*command, "--scores", "prob"]) == 2
    assert "Did you mean 'probe'?" in capsys.readouterr().err
