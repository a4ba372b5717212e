"""The robustness suites: arithmetic by hand, counting, resuming, table, figure and the command."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from test_robustness_sets import picture, published  # noqa: F401  (fixtures)
from torch import nn
from torch.utils.data import Dataset

from lmgraft.analysis.robustness import ALEXNET_CLEAN_ERROR, ALEXNET_ERRORS, Count, summarise
from lmgraft.cli.main import main
from lmgraft.data.image import imagenet_sets
from lmgraft.data.image.corruptions import CORRUPTIONS, corrupt
from lmgraft.data.image.fashion_mnist import FashionMNIST
from lmgraft.errors import DataError, RunError
from lmgraft.recipes import load_trained, train_run
from lmgraft.report.robustness.table import markdown, to_dict, write_report
from lmgraft.studies.robustness import run as robustness
from lmgraft.studies.robustness import timm_model
from lmgraft.studies.robustness.cells import Cell, corruption_cells, crop_transform, set_cells, spread
from lmgraft.studies.robustness.run import RobustnessConfig, Subject, evaluate_cells, evaluate_robustness
from lmgraft.training.fit import TrainConfig

SOME = ("gaussian_noise", "contrast")


def test_mce_by_hand():
    """Half of AlexNet's errors everywhere but on fog, where they are AlexNet's own: (14 * 0.5 + 1) / 15."""
    cells = {}
    for name, error in ALEXNET_ERRORS.items():
        wanted = error if name == "fog" else error / 2
        for severity in range(1, 6):
            wrong = round(1_000_000 * wanted) + 1000 * (severity - 3)  # a spread that the mean forgets
            cells[name, severity] = Count(1_000_000 - wrong, 1_000_000)
    clean = Count(1_000_000 - round(1_000_000 * ALEXNET_CLEAN_ERROR), 1_000_000)
    summary = summarise(cells, clean, published=True)
    assert summary.mce == pytest.approx(8 / 15, abs=1e-6)
    assert summary.mean == pytest.approx(np.mean([1 - e / (1 if n == "fog" else 2) for n, e in ALEXNET_ERRORS.items()]))
    assert summary.by_severity[1] - summary.by_severity[5] == pytest.approx(0.004)
    assert summary.kept == pytest.approx(summary.mean / (1 - ALEXNET_CLEAN_ERROR), abs=1e-6)
    everywhere = {key: Count(1_000_000 - round(1_000_000 * ALEXNET_ERRORS[key[0]]), 1_000_000) for key in cells}
    itself = summarise(everywhere, clean, published=True)
    assert itself.mce == pytest.approx(1)
    assert itself.relative_mce == pytest.approx(1, abs=1e-5)


def test_summaries_without_alexnet():
    cells = {("fog", 1): Count(3, 4), ("fog", 2): Count(1, 4), ("snow", 1): Count(1, 4), ("snow", 2): Count(0, 4)}
    summary = summarise(cells, Count(4, 4), published=True)
    assert summary.by_corruption == {"fog": 0.5, "snow": 0.125}
    assert summary.by_severity == {1: 0.5, 2: 0.125}
    assert (summary.mean, summary.kept, summary.mce) == (0.3125, 0.3125, None)  # two of fifteen are no mCE
    del cells["snow", 2]
    with pytest.raises(ValueError, match="snow"):
        summarise(cells)
    assert set(ALEXNET_ERRORS) == set(CORRUPTIONS)
    assert list(ALEXNET_ERRORS) == list(CORRUPTIONS)


def test_a_limit_is_spread_over_the_classes():
    assert list(spread(10, None)) == list(spread(10, 99)) == list(range(10))
    assert spread(1000, 4) == [0, 250, 500, 750]


class Brightest(nn.Module):
    """Says that the class is 100 x the mean of the first channel: an image's colour decides."""

    def forward(self, images):
        wanted = images[:, 0].mean((1, 2)) * 100
        return -(torch.arange(1000.0) - wanted[:, None]).abs()


def subject(tmp_path, **changes):
    made = Subject(
        label="toy",
        model=Brightest(),
        prepare=crop_transform((0, 0, 0), (1, 1, 1), (224, 224)),
        crop=crop_transform((0, 0, 0), (1, 1, 1), (224, 224)),
        img_size=(224, 224),
        eval_batch_size=16,
        train=TrainConfig(accelerator="cpu"),
        weights="w",
        record=tmp_path / "robustness.json",
    )
    return replace(made, **changes)


def test_masks_and_several_right_answers(tmp_path):
    """Red 102 / 255 says class 40; among the masked classes the nearest is taken."""
    Image.new("RGB", (224, 224), (102, 0, 0)).save(tmp_path / "a.png")
    one = imagenet_sets.PublishedSet("toy", tmp_path, ("a.png",), ((40,),))
    cases = {
        "all": one,
        "masked": replace(one, name="masked", classes=(3, 44, 900), targets=((44,),)),
        "masked_wrong": replace(one, name="masked_wrong", classes=(3, 44, 900), targets=((900,),)),
        "several": replace(one, name="several", targets=((1, 40, 77),)),
        "wrong": replace(one, name="wrong", targets=((41,),)),
    }
    cells = set_cells([replace(c, name=n) for n, c in cases.items()], subject(tmp_path).prepare, None)
    result = evaluate_cells(subject(tmp_path), cells, RobustnessConfig(workers=0), ["said"], robustness.silent)
    assert {key: count.correct for key, count in result.cells.items()} == {
        "all": 1, "masked": 1, "masked_wrong": 0, "several": 1, "wrong": 0,
    }  # fmt: skip
    assert result.notes == ("said",)


def test_an_unreadable_file_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    broken = imagenet_sets.PublishedSet("toy", tmp_path, ("a.png",), ((40,),))
    cells = set_cells([broken], subject(tmp_path).prepare, None)
    for workers in (0, 1):
        with pytest.raises(DataError, match=r"a\.png cannot be read") as error:
            evaluate_cells(subject(tmp_path), cells, RobustnessConfig(workers=workers), [], robustness.silent)
        assert "Traceback" not in str(error.value)


def test_the_crop_of_imagenet_c():
    image = Image.fromarray(np.arange(240 * 230 * 3, dtype=np.uint32).reshape(240, 230, 3).astype(np.uint8))
    shown = crop_transform((0.1, 0.2, 0.3), (0.5, 0.5, 0.5), (224, 224))(image)
    expected = (np.asarray(image)[8:232, 3:227] / 255 - (0.1, 0.2, 0.3)) / 0.5
    assert np.allclose(shown.permute(1, 2, 0).numpy(), expected, atol=1e-6)
    assert crop_transform((0,), (1,), (96, 96))(image.convert("L")).shape == (1, 96, 96)


class Counting(Dataset):
    def __init__(self, size):
        self.size, self.asked = size, 0

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        self.asked += 1
        if index >= self.size:
            raise IndexError
        return torch.zeros(3, 8, 8), (index % 2,)


def test_done_cells_are_kept_unless_weights_or_conditions_changed(tmp_path):
    sets = {name: Counting(6) for name in ("clean", "corruptions/fog/1", "corruptions/fog/2")}

    def evaluate(weights="w", stop_at=None, **conditions):
        said = []

        def say(text):
            said.append(text)
            if stop_at is not None and stop_at in text:
                raise KeyboardInterrupt

        cells = [Cell(key=k, dataset=d, size=len(d), conditions=conditions) for k, d in sets.items()]
        for dataset in sets.values():
            dataset.asked = 0
        subject_ = subject(tmp_path, weights=weights)
        return evaluate_cells(subject_, cells, RobustnessConfig(workers=0), [], say), said

    with pytest.raises(KeyboardInterrupt):
        evaluate(stop_at="fog/1", seed=0)
    result, said = evaluate(seed=0)
    assert [d.asked for d in sets.values()] == [0, 0, 6]
    assert "3 cells, 2 done before" in said[0]
    assert all(count == Count(3, 6) for count in result.cells.values())
    assert result.summary.kept == 1
    evaluate(seed=0)
    assert [d.asked for d in sets.values()] == [0, 0, 0]
    evaluate(seed=1)
    assert [d.asked for d in sets.values()] == [6, 6, 6]
    _, said = evaluate(weights="other", seed=1)
    assert [d.asked for d in sets.values()] == [6, 6, 6]
    assert "other weights" in said[0]
    (tmp_path / "robustness.json").write_text('{"weights": "other"')
    _, said = evaluate(weights="other", seed=1)
    assert "damaged" in said[0]
    assert [d.asked for d in sets.values()] == [6, 6, 6]


def test_cells_shown_by_another_transform_are_counted_again(tmp_path, run_dir, monkeypatch):
    dataset = Counting(6)
    cells = [Cell(key="clean", dataset=dataset, size=6)]
    asked = []
    for crop_pct in (0.875, 0.875, 1.0):
        dataset.asked = 0
        shown = subject(tmp_path, shown={"crop_pct": crop_pct, "img_size": (224, 224)})
        evaluate_cells(shown, cells, RobustnessConfig(workers=0), [], robustness.silent)
        asked.append(dataset.asked)
    assert asked == [6, 0, 6]
    said = []
    config = RobustnessConfig(corruptions=("contrast",), workers=0, limit=4)
    for mean in (FashionMNIST.mean, FashionMNIST.mean, (0.9,)):
        monkeypatch.setattr(FashionMNIST, "mean", mean)
        evaluate_robustness([run_dir], config, say=said.append)
    assert [line for line in said if "done before" in line] == [f"run: 6 cells, {n} done before" for n in (0, 6, 0)]


def test_a_checkpoint_from_elsewhere_is_shown_what_its_model_says(tmp_path, published, monkeypatch):  # noqa: F811
    file = tmp_path / "weights.pth"
    torch.save(timm.create_model("test_vit").state_dict(), file)
    seen = []
    monkeypatch.setattr(timm_model, "evaluate_cells", lambda subject, *_: seen.append(subject.shown))
    config = RobustnessConfig(suite="imagenet-robustness", places={"imagenet_a": published / "ImageNet-A"})
    timm_model.evaluate_checkpoint("timm:test_vit", file, tmp_path, config)
    assert seen[0] == timm.data.resolve_model_data_config(timm.create_model("test_vit")) | {"model": "timm:test_vit"}


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model.", "model.module."])
def test_what_a_state_dict_was_wrapped_in_is_taken_off(tmp_path, prefix):
    state = {"model.weight": torch.ones(2), "head.bias": torch.zeros(1)}  # a module may itself be called model
    torch.save({"state_dict": {prefix + name: value for name, value in state.items()}}, tmp_path / "a.ckpt")
    assert timm_model._read(tmp_path / "a.ckpt").keys() == state.keys()


def test_the_best_checkpoint_of_a_plain_arm_is_a_state_dict_of_its_model(tmp_path, make_recipe):
    train_run(make_recipe("--train.epochs", "1", "--arm", "plain"), tmp_path / "plain", progress="none")
    _, model = load_trained(tmp_path / "plain")
    state = timm_model._read(tmp_path / "plain" / "checkpoints" / "best.ckpt")
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_models_of_other_classes_are_refused():
    names = imagenet_sets.wnids()
    for given, message in (
        ((10, 3, names[:10]), "10 classes, ImageNet's sets have 1000"),
        ((1000, 1, names), "1 channels"),
        ((1000, 3, names[::-1]), "in another order"),
    ):
        with pytest.raises(RunError, match=message):
            robustness.check_imagenet_model("toy", *given)
    robustness.check_imagenet_model("toy", 1000, 3, names)
    robustness.check_imagenet_model("toy", 1000, 3, tuple(map(str, range(1000))))


def test_outputs_that_are_no_numbers_stop_it(tmp_path):
    class Broken(nn.Module):
        def forward(self, images):
            return torch.full((len(images), 1000), torch.nan)

    cells = [Cell(key="clean", dataset=Counting(2), size=2)]
    with pytest.raises(RunError, match="not finite"):
        evaluate_cells(subject(tmp_path, model=Broken()), cells, RobustnessConfig(workers=0), [], robustness.silent)


@pytest.fixture(scope="module")
def frost_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frost")
    pixels = np.random.default_rng(0).integers(100, 250, (240, 260, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "frost.png")
    return folder


@pytest.fixture
def run_dir(make_recipe, tmp_path):
    train_run(make_recipe("--train.epochs", "1"), tmp_path / "run", progress="none")
    return tmp_path / "run"


def test_counts_of_a_run_equal_a_plain_loop(run_dir, tmp_path):
    config = RobustnessConfig(corruptions=SOME, seed=4, workers=2, batch_size=7)
    (result,) = evaluate_robustness([run_dir], config)
    recipe, model = load_trained(run_dir)
    recipe.data.prepare_data()
    recipe.data.setup()
    raw = recipe.data.raw_test()
    with torch.no_grad():
        for key, count in result.cells.items():
            correct = 0
            for index in range(len(raw)):
                image, label = raw[index]
                if key != "clean":
                    _, name, severity = key.split("/")
                    image = corrupt(image, name, int(severity), seed=4, index=index)
                correct += int(model(recipe.data.prepare(image)[None]).argmax()) == label
            assert count == Count(correct, 60), key
    assert len(result.cells) == 11
    assert "not comparable with published ImageNet-C figures" in result.notes[0]
    assert "28 x 28" in result.notes[0]
    other = tmp_path / "other"
    shutil.copytree(run_dir, other)
    config_file = other / "config.yaml"
    config_file.write_text(config_file.read_text().replace("test_size: null", "test_size: 30"))
    both = evaluate_robustness([run_dir, other], replace(config, corruptions=SOME[1:]))
    assert all("cannot be compared" in result.notes[0] for result in both)
    assert [result.cells["clean"].total for result in both] == [60, 30]
    written = json.loads((run_dir / "robustness.json").read_text())
    assert written["cells"].keys() == result.cells.keys()
    assert written["environment"]["versions"]["torch"]


def test_report_of_two_runs(tmp_path):
    def made(label, shift):
        cells = {"clean": Count(90 - shift, 100)}
        for number, name in enumerate(CORRUPTIONS):
            cells |= {f"corruptions/{name}/{s}": Count(80 - shift - 6 * s - number, 100) for s in range(1, 6)}
        return robustness.Robustness(
            label=label, suite="corruptions", cells=cells, summary=robustness.summed(cells), notes=("said",)
        )

    results = [made("plain", 0), replace(made("llm", 10), limit=100)]
    written = write_report(results, tmp_path)
    numbers, page, png, svg = sorted(written, key=lambda path: path.suffix)
    assert [p.name for p in (page, png, svg)] == ["robustness.md", "robustness.png", "robustness.svg"]
    assert numbers.name == "robustness_report.json"  # robustness.json is what is counted, and must stay
    content = json.loads(numbers.read_text())
    assert content == json.loads(json.dumps([to_dict(result) for result in results]))
    assert [one["limit"] for one in content] == [None, 100]
    assert content[1]["summary"]["mean"] == pytest.approx(0.45)
    assert content[1]["summary"]["mce"] is None
    assert content[1]["cells"]["corruptions/fog/2"]["accuracy"] == pytest.approx(
        results[1].cells["corruptions/fog/2"].accuracy
    )
    assert content[1]["notes"] == ["said"]
    text = markdown(results)
    assert "| top-1 accuracy | plain | llm |" in text
    assert "| clean | 90.00 (82.56 to 94.48) |" in text
    assert "| gaussian noise | 62.00 | 52.00 |" in text
    assert "| corruptions, mean of 15 | 55.00 | 45.00 |" in text
    assert "mCE" not in text
    assert text.count("said") == 1
    with Image.open(png) as figure:
        assert figure.size[0] > 1000
    assert ">gaussian noise</text>" in re.sub(r"\s*\n\s*", "", svg.read_text())
    assert to_dict(results[0])["cells"]["clean"]["interval"] == pytest.approx([0.8256, 0.9448], abs=1e-4)


def call(capsys, *arguments):
    status = main([str(a) for a in arguments])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_the_command_on_a_run(capsys, run_dir, frost_folder, tmp_path):
    options = ["--suite", "corruptions", "--limit", "10", "--workers", "0", "--frost", frost_folder]
    options += ["--corruptions", "frost,gaussian-noise"]
    status, out, err = call(capsys, "evaluate", run_dir, *options)
    assert status == 0, err
    assert "corruptions, mean of 2" in out
    assert "not comparable with published ImageNet-C figures" in " ".join(out.split())
    assert "10/11 corruptions/gaussian_noise/4" in err
    assert (run_dir / "robustness.md").exists()
    assert (run_dir / "robustness.png").exists()
    assert json.loads((run_dir / "robustness_report.json").read_text())[0]["limit"] == 10
    status, out, err = call(capsys, "evaluate", run_dir, run_dir, *options, "--json", "--out", tmp_path / "both")
    assert "11 done before" in err
    both = json.loads(out)
    assert [one["label"] for one in both] == [str(run_dir)] * 2
    assert both[0]["cells"]["clean"]["total"] == 10
    assert (tmp_path / "both" / "robustness.svg").exists()


MISTAKES = [
    (["RUN", "--suite", "corruptions", "--corruptions", "fgo"], "'fog'"),
    (["RUN", "--suite", "corruptions", "--frost", "nowhere"], "nowhere holds no picture"),
    (["RUN", "--suite", "corruptions", "--limit", "0"], "--limit 0"),
    (["RUN", "--suite", "imagenet-robustness"], "10 classes"),
    (["RUN", "--suite", "corruptions", "--seed", "3", "--workers", "-1"], "--workers -1"),
    (["nowhere", "--suite", "corruptions", "--corruptions", "fog"], "no run folder"),
    (["RUN", "RUN"], "--suite"),
    (["RUN", "--imagenet-c", "ROOT", "--limit", "3"], "--limit, --imagenet-c: only a suite"),
    (["RUN", "--suite", "corruptions", "--approximate"], "--approximate"),
    (["--model", "timm:test_vit", "--suite", "imagenet-robustness"], "--checkpoint"),
    (["RUN", "--suite", "corruptions", "--corruptions", "fog", "--data.rot", "x"], "rot"),
]


def test_mistakes_of_the_command(capsys, run_dir, published, monkeypatch, tmp_path):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for arguments, message in MISTAKES:
        given = [{"RUN": run_dir, "ROOT": published}.get(a, a) for a in arguments]
        status, out, err = call(capsys, "evaluate", *given)
        assert (status, out) == (2, ""), arguments
        assert message in err
        assert len(err.splitlines()) < 20
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_the_command_on_a_checkpoint_from_elsewhere(capsys, published, tmp_path):  # noqa: F811
    torch.manual_seed(0)
    file = tmp_path / "weights.safetensors"
    save_file(timm.create_model("test_vit").state_dict(), file)
    call_ = ["evaluate", "--model", "timm:test_vit", "--checkpoint", file, "--suite", "imagenet-robustness"]
    status, out, err = call(capsys, *call_, "--suite-root", published, "--limit", "2", "--workers", "0")
    assert status == 0, err
    assert "resized to 160 x 160, not comparable" in " ".join(out.split())
    for row in (
        "ImageNet-C, mean of 15",
        "mCE",
        "ImageNet-A",
        "ImageNet, ReaL labels",
        "ImageNet-V2",
        "gaussian noise",
    ):
        assert row in out
    assert (tmp_path / "weights_robustness" / "imagenet_robustness.png").exists()
    torch.save({"state_dict": timm.create_model("test_vit").state_dict()}, tmp_path / "b.pth")
    call_[4] = tmp_path / "b.pth"
    status, out, err = call(capsys, *call_, "--imagenet-a", published / "ImageNet-A", "--limit", "2", "--json")
    assert status == 0, err
    assert list(json.loads(out)[0]["cells"]) == ["imagenet_a"]
    assert "ImageNet-C is left out" in err
    for name, message in (
        ("timm:test_vti", "test_vit"),
        ("test_vit", "timm:NAME"),
        ("timm:test_resnet", "does not fit"),
    ):
        call_[2] = name
        status, out, err = call(capsys, *call_, "--imagenet-a", published / "ImageNet-A")
        assert status == 2
        assert message in err
    call_[2], call_[4] = "timm:test_vit", tmp_path / "c.pth"
    (tmp_path / "c.pth").write_bytes(b"no weights")
    status, out, err = call(capsys, *call_, "--imagenet-a", published / "ImageNet-A")
    assert status == 2
    assert "c.pth" in err


def test_frost_of_other_pictures_is_another_cell(frost_folder):
    raw = [(Image.new("L", (28, 28), 100), 0)]
    pictures = robustness.needed_pictures(("frost",), frost_folder)
    cells = [
        corruption_cells(raw, None, {}, corruptions=("frost",), frost=chosen)[1].conditions
        for chosen in (pictures, [255 - pictures[0]])
    ]
    assert cells[0] != cells[1]
    assert robustness.needed_pictures(("fog",), None) == ()  # nothing is fetched where frost is not wanted
