"""Whole runs on images in files: with workers, a corrupt file and an interruption; test images choose the epoch."""

import warnings

import pytest
from image_trees import WNIDS, write_folder
from lasting import InterruptAfter, InterruptError, assert_same_run, watched_by

from lmgraft import records
from lmgraft.data.base import UnreadableItemWarning
from lmgraft.errors import DataError
from lmgraft.recipes import train_run
from lmgraft.recipes.recipe import parse_recipe

RECIPE = """
arm: plain
backbone:
  name: vit_tiny_patch16_224
  kwargs: {{embed_dim: 24, depth: 2, num_heads: 2, drop_path_rate: 0.3}}
data:
  class_path: lmgraft.data.image.image_files.ImageFiles
  init_args:
    root: {root}
    img_size: 32
    batch_size: 6
    eval_batch_size: 8
    num_workers: 2
    repeats: 3
    val_size: 0
    augment: {{scale: [0.08, 1], auto_augment: rand-m9-mstd0.5-inc1, re_prob: 0.25}}
task: {{class_path: lmgraft.tasks.classification.Classification, init_args: {{mixup: 0.8, cutmix: 1.0}}}}
train: {{epochs: 2, save_every: 1, log_every: 1, accelerator: cpu}}
"""


@pytest.fixture
def tree(tmp_path):
    root = write_folder(tmp_path / "tree", {"train": 8, "val": 3})
    file = root / "train" / WNIDS[1] / f"{WNIDS[1]}_3.JPEG"
    file.write_bytes(file.read_bytes()[:400])
    return root


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::lmgraft.data.base.UnreadableItemWarning")
def test_resuming_inside_an_epoch_is_bit_equal(tree, tmp_path):
    def recipe():
        return parse_recipe(RECIPE.format(root=tree), ["--data.max_corrupt", "1"])

    result = train_run(recipe(), tmp_path / "whole", progress="none")
    assert result.steps == 8
    assert result.items == 9
    assert records.read_json(tmp_path / "whole" / "run.json")["data"]["selection"] == "test"
    with watched_by(InterruptAfter(6)), pytest.raises(InterruptError):
        train_run(recipe(), tmp_path / "run", progress="none")
    with watched_by(InterruptAfter(8)) as rest:
        train_run(recipe(), tmp_path / "run", resume=True, progress="none")
    assert rest.left == 6
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
def test_a_corrupt_file_above_the_limit_ends_the_run_with_its_name(tree, tmp_path):
    recipe = parse_recipe(RECIPE.format(root=tree), ["--data.max_corrupt", "0"])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnreadableItemWarning)
        with pytest.raises(DataError, match=rf"{WNIDS[1]}_3\.JPEG is not readable .* data\.max_corrupt is 0"):
            train_run(recipe, tmp_path / "run", progress="none")
    assert not (tmp_path / "run" / "result.json").exists()
