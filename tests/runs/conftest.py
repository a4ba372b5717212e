"""Fixtures for tests that train: a learnable stand-in for Fashion-MNIST and a recipe of seconds."""

import gzip
import struct

import numpy as np
import pytest
from lasting import watched_by
from studying import Here, Watch, run_here, study_of, without_flops

from lmgraft.recipes.recipe import Recipe, parse_recipe
from lmgraft.studies import step_times
from lmgraft.studies.engine import local
from lmgraft.studies.study import costs


def write_idx(path, array):
    head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape)
    path.write_bytes(gzip.compress(head + array.astype(np.uint8).tobytes()))


@pytest.fixture(scope="session")
def fashion_root(tmp_path_factory):
    """The four files in their real layout: a bright bar whose row is the class, in noise."""
    root = tmp_path_factory.mktemp("fashion")
    rng = np.random.default_rng(0)
    for half, size in (("train", 120), ("t10k", 60)):
        labels = np.arange(size) % 10
        images = rng.integers(0, 80, (size, 28, 28))
        for image, label in zip(images, labels, strict=True):
            image[2 * label + 4 : 2 * label + 7] += 150
        write_idx(root / f"{half}-images-idx3-ubyte.gz", images)
        write_idx(root / f"{half}-labels-idx1-ubyte.gz", labels)
    return root


@pytest.fixture
def in_this_process(monkeypatch):
    """Trainings and counts without processes of their own; the executor that was used."""
    used = Here()
    monkeypatch.setattr(local, "local", lambda *_: used)
    monkeypatch.setattr(step_times, "_SECONDS", 0.0)
    monkeypatch.setattr(costs, "in_own_process", lambda function, *args, **kwargs: function(*args, **kwargs))
    return used


RECIPE = """
seed: 3
arm: llm
graft: {{llm: {llm}, layer: -1}}
backbone:
  name: vit_tiny_patch16_224
  kwargs: {{patch_size: 14, embed_dim: 24, depth: 2, num_heads: 2, drop_path_rate: 0.3}}
data:
  class_path: lmgraft.data.image.fashion_mnist.FashionMNIST
  init_args: {{root: {root}, verify: false, val_size: 20, batch_size: 24, eval_batch_size: 20}}
task: {{class_path: lmgraft.tasks.classification.Classification, init_args: {{mixup: 0.2, cutmix: 0.5}}}}
optim: {{lr: 0.003}}
train: {{epochs: 2, save_every: 1, log_every: 1, accelerator: cpu}}
"""


@pytest.fixture
def make_recipe(fashion_root, llama_folder):
    """A recipe over the stand-in data and the tiny random LLM; four steps an epoch."""

    def make(*overrides: str) -> Recipe:
        return parse_recipe(RECIPE.format(root=fashion_root, llm=llama_folder), overrides)

    return make


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Where a module keeps its run without interruption."""
    return tmp_path_factory.mktemp("whole") / "run"


@pytest.fixture(scope="session")
def recipe_file(fashion_root, llama_folder, tmp_path_factory):
    """`make_recipe`'s recipe as a file."""
    file = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    file.write_text(RECIPE.format(root=fashion_root, llm=llama_folder))
    return file


@pytest.fixture(scope="session")
def tiny_study(recipe_file, tmp_path_factory):
    """A finished study of three arms and two seeds: its folder, and what its runs saw. Read only: copy to change."""
    out, watch = tmp_path_factory.mktemp("study") / "out", Watch()
    with watched_by(watch), pytest.MonkeyPatch.context() as patch:
        without_flops(patch)
        _, names, _ = run_here(study_of(recipe_file), out)
    assert len(names) == 6
    return out, watch
