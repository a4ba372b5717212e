"""What was trained is used: a run, its saved model, with names of classes, for files that no one has labelled."""

import csv
import json
from pathlib import Path

import pytest
import torch
from image_trees import picture, write_folder
from PIL import Image

import lmgraft
from lmgraft.cli.main import main
from lmgraft.errors import DataError, LmgraftError, SourceError
from lmgraft.graft.save import read_about
from lmgraft.recipes.run import evaluate_run
from lmgraft.training.checkpoints import RunWarning

RECIPE = """
arm: {arm}
graft: {{llm: {llm}, layer: 1}}
backbone:
  name: vit_tiny_patch16_224
  kwargs: {{patch_size: 8, embed_dim: 32, depth: 1, num_heads: 2}}
data:
  class_path: lmgraft.data.image.image_files.ImageFiles
  init_args: {{root: {root}, img_size: 32, batch_size: 4, eval_batch_size: 4, num_workers: 0, test_size: 0.3}}
train: {{epochs: 1, accelerator: cpu}}
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory, llama_folder):
    """A run with the block and one without, and their images."""
    folder = tmp_path_factory.mktemp("trained")
    root = write_folder(folder / "photos", {"": 12}, classes=("cat", "dog"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LMGRAFT_CACHE", str(folder / "cache"))
        for arm in ("llm", "plain"):
            (folder / f"{arm}.yaml").write_text(RECIPE.format(arm=arm, llm=llama_folder, root=root))
            assert main(["train", str(folder / f"{arm}.yaml"), "--out", str(folder / arm)]) == 0
    return folder


@pytest.mark.parametrize("arm", ["llm", "plain"])
def test_a_run_says_of_files_what_its_model_does(runs, tmp_path, arm):
    run = lmgraft.load_run(runs / arm)
    assert run.categories == {"class": ("cat", "dog")}
    picture(3, mode="L").save(tmp_path / "a.png")
    Image.open(runs / "photos" / "dog" / "dog_1.JPEG").save(tmp_path / "b.png")
    rows = run.predict(tmp_path)
    assert [row["file"] for row in rows] == [str(tmp_path / name) for name in ("a.png", "b.png")]
    assert rows == [*run.predict(tmp_path / "a.png"), *run.predict([tmp_path / "b.png"])]
    with torch.no_grad():
        expected = run.model(torch.stack([run.recipe.data.load_file(tmp_path / "b.png")])).softmax(1)[0]
    for label, share in zip(("cat", "dog"), expected.tolist(), strict=True):
        assert rows[1][label] == pytest.approx(share, abs=1e-5)
    with pytest.raises(DataError, match=r"absent\.png is not there"):
        run.predict("absent.png")


def test_a_class_called_file_stands_beside_the_files_name(runs, monkeypatch):
    run = lmgraft.load_run(runs / "plain")
    monkeypatch.setattr(run._task, "_class_names", ("file", "dog"))
    place = runs / "photos" / "dog" / "dog_1.JPEG"
    (row,) = run.predict(place)
    assert (row["file"], row.keys()) == (str(place), {"file", "task.file", "dog"})
    assert row["task.file"] + row["dog"] == pytest.approx(1, abs=1e-5)
    ((_, said),) = run.predictions([str(place)])  # as the command writes it
    assert "file" not in said


def test_the_command_writes_json_or_a_table(runs, tmp_path, capsys):
    run, photos = str(runs / "plain"), [str(runs / "photos" / "cat" / f"cat_{i}.JPEG") for i in (1, 2)]
    capsys.readouterr()
    assert main(["predict", run, *photos, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert main(["predict", run, *photos, "--csv", "--out", str(tmp_path / "a.csv")]) == 0
    with open(tmp_path / "a.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [{key: str(value) for key, value in row.items()} for row in rows] == table
    assert set(table[0]) == {"file", "cat", "dog"}
    assert main(["predict", run, *photos, "--csv", "--json"]) == 2


@pytest.mark.parametrize("arm", ["llm", "plain"])
def test_load_pretrained_of_a_run_finds_its_model_with_names_of_classes_and_preprocessing(runs, arm):
    run = lmgraft.load_run(runs / arm)
    model = lmgraft.load_pretrained(runs / arm)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(x), run.model(x))
    about = read_about(runs / arm)
    assert about == read_about(runs / arm / "model")
    assert about["categories"] == {"class": ["cat", "dog"]}
    assert about["preprocess"]["img_size"] == [32, 32]


def test_a_folder_that_is_not_there_and_no_hub(tmp_path):
    with pytest.raises(SourceError, match="is no folder here, and cannot be fetched from the Hub"):
        lmgraft.load_pretrained("nobody/nothing")
    with pytest.raises(LmgraftError, match="none"):
        lmgraft.load_pretrained(tmp_path / "none")


def test_an_evaluation_over_other_files_is_said(runs, recwarn):
    evaluate_run(runs / "plain")
    assert not [w for w in recwarn.list if issubclass(w.category, RunWarning)]
    data = lmgraft.load_run(runs / "plain").recipe.data
    data.setup()
    test = data.split("test")
    file = test.table.place(int(test.indices[0]))
    content = Path(file).read_bytes()
    Path(file).unlink()
    try:
        with pytest.warns(RunWarning, match=r"these are not the images of .*run\.json: sha256"):
            evaluate_run(runs / "plain")
    finally:
        Path(file).write_bytes(content)
