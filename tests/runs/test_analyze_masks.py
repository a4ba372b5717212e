"""`lmgraft analyze RUN --masks KIND`: a run looked at on images with masks that it was not trained on."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from image_trees import WNIDS, picture, write_folder
from PIL import Image
from test_image_files_runs import RECIPE

from lmgraft.cli.main import main
from lmgraft.recipes import train_run
from lmgraft.recipes.kinds import data_of_kind, images_with_masks
from lmgraft.recipes.options import Option
from lmgraft.recipes.recipe import parse_recipe
from lmgraft.studies.analyze import read_analysis
from lmgraft.studies.analyze.look import look, open_run
from lmgraft.studies.explore import open_explorer

FEW = ["--limit", "6", "--causal", "4", "--shares", "0.25", "--layers", "false", "--coherence", "4"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, llama_folder: Path) -> Path:
    """A grafted run whose training images are gone."""
    folder = tmp_path_factory.mktemp("run")
    tree = write_folder(folder / "tree", {"train": 3, "val": 3})
    options = ["--arm", "llm", "--graft.llm", str(llama_folder), "--train.epochs", "1", "--data.num_workers", "0"]
    train_run(parse_recipe(RECIPE.format(root=tree), options), folder / "llm", progress="none")
    shutil.rmtree(tree)
    return folder / "llm"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of the run and one other, each image with a mask beside it: its upper half."""
    root = tmp_path_factory.mktemp("photos")
    for place, name in enumerate((*WNIDS[:2], "n99999999")):
        for key in range(3):
            file = root / name / f"{key}.png"
            file.parent.mkdir(exist_ok=True)
            picture(10 * place + key, (40, 40)).save(file)
            Image.fromarray(np.repeat([1, 0], 20)[:, None].repeat(40, 1).astype(np.uint8)).save(
                file.with_name(f"{key}_mask.png")
            )
    return root


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are drawn elsewhere, and take seconds."""
    monkeypatch.setattr("lmgraft.report.analyze.page.figures", lambda _: {})


def analysed(run: Path, out: Path, *options: str):
    assert main(["analyze", str(run), *FEW, "--masks", "images-with-masks", *options, "--out", str(out)]) == 0
    return read_analysis(out), (out / "report.html").read_text()


def test_classes_that_are_the_runs_are_measured(run: Path, photos: Path, tmp_path: Path, capsys) -> None:
    options = ["--masks.root", str(photos), "--masks.suffix", "_mask", "--gallery", "0"]
    analysis, page = analysed(run, tmp_path, *options)
    assert analysis.shown is not None
    assert (analysis.shown["labelled"], analysis.shown["items"]) == (True, 6)
    assert analysis.subjects[0].metric is not None
    assert {one.items for one in analysis.found} == {6}
    assert analysis.losses
    assert analysis.coherences
    assert str(photos) in page
    assert "3 images left out, of classes that the model lacks: n99999999" in capsys.readouterr().err


def test_without_the_runs_classes_maps_alone_are(run: Path, photos: Path, tmp_path: Path) -> None:
    options = ["--masks.root", str(photos), "--masks.suffix", "_mask", "--masks.unlabelled", "true", "--gallery", "1"]
    analysis, page = analysed(run, tmp_path, *options)
    assert analysis.shown is not None
    assert (analysis.shown["labelled"], analysis.shown["items"]) == (False, 9)
    assert analysis.subjects[0].metric is None
    assert not analysis.losses
    assert not analysis.coherences
    assert {one.stage for one in analysis.found} >= {"encoder", "mapper_out", "centre"}
    assert len(analysis.gallery) == 4
    assert "none of the runs" in page
    assert "Needed" not in page


def test_masks_follow_the_runs_own_preprocessing(run: Path, photos: Path) -> None:
    words = {"root": str(photos), "suffix": "_mask", "img_size": "64"}
    others = data_of_kind("images-with-masks", [Option(key, [word]) for key, word in words.items()], "")
    opened = open_run(run, "llm", (), others)
    batch = next(opened.batches([0, 1], 2))
    assert batch.truth.shape == (2, *opened.recipe.data.img_size) == (2, 32, 32)
    assert look(opened, batch, layers=False).truth.tolist() == [[True, True, False, False]] * 2


def test_images_with_masks_are_explored(run: Path, photos: Path) -> None:
    left, data = images_with_masks("images-with-masks", ["--masks.root", str(photos), "--masks.suffix", "_mask"])
    assert not left
    seen = open_explorer([run], left, data)
    sight = seen.item(0).sights["llm"]
    assert seen.count == 6
    assert sight.object_tokens is not None
    assert sight.object_tokens.tolist() == [True] * 2 + [False] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--masks.root", "photos"], "options of --masks without it"),
        (["--masks", "images", "--masks.root", "."], "ImageFiles cannot be shown to a model of other data"),
        (["--masks", "pictures"], "there is no kind of files 'pictures'"),
        (["--masks", "images-with-masks", "--masks.suffx", "_m"], "there is no key 'suffx'"),
    ],
)
def test_what_cannot_be_looked_at_is_said(run: Path, options: list[str], message: str, capsys) -> None:
    assert main(["analyze", str(run), *options]) != 0
    assert message in capsys.readouterr().err
