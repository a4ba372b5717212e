"""Runs whose encoder is frozen too: the task sees stored tokens in place of images.

The encoder runs once over each split, in evaluation mode; mappers and classifier train on its
tokens. See `lmgraft.data.features` for how they are stored.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import torch
from torch import nn

from lmgraft.data.base import SPLITS
from lmgraft.data.labelled import LabelledBatch, LabelledData, LabelledSet
from lmgraft.errors import RecipeError
from lmgraft.recipes.recipe import Recipe
from lmgraft.tasks.base import Task
from lmgraft.training.features import OnTokens, encode, encoder_digest, freeze_encoder, store_split
from lmgraft.training.fit import on_gpu

_EXAMPLES = 4
"""Items that a task is tried on: more than one, so that what is computed of all items varies."""


def network(task: Task) -> nn.Module:
    """The task's whole model, from its inputs to its output."""
    model = task.model
    return model.model if isinstance(model, OnTokens) else model


def wrap(recipe: Recipe, task: Task) -> None:
    """Freeze the encoder and let the task's model begin at its tokens, if the recipe says so.

    Raises:
        RecipeError: If the recipe asks for what needs the encoder to be trained.
    """
    if not recipe.features.cached:
        return
    if recipe.optim.layer_decay is not None:
        raise RecipeError(
            "optim.layer_decay with features.cached: the encoder's layers are not trained", "set it to null"
        )
    if not isinstance(recipe.data, LabelledData):
        raise RecipeError(
            f"features.cached with {type(recipe.data).__name__}: tokens are stored of items with one label each",
            "leave features.cached out",
        )
    task.model = OnTokens(freeze_encoder(task.model))


def use_stored_tokens(recipe: Recipe, task: Task) -> dict[str, Any] | None:
    """Put stored tokens in the place of what the encoder takes, computing what is not there yet.

    Returns:
        What it cost, for the record: bytes, seconds, items a second of the encoder.
    """
    if not recipe.features.cached:
        return None
    data, model = recipe.data, network(task)
    assert isinstance(data, LabelledData), "wrap() has refused others"
    device = torch.device("cuda" if on_gpu(recipe.train) else "cpu")
    identity = {
        "data": data.fingerprint(),
        "transform": data.transform_record(),
        "encoder": encoder_digest(model),
    }
    stored = []
    for split in SPLITS:
        if split == "val" and data.selection == "test":
            continue
        augmented = split == "train" and recipe.features.views > 1
        items = data.split(split) if augmented else data.still(split)
        assert isinstance(items, LabelledSet)
        features, parts = store_split(
            model,
            items,
            views=recipe.features.views if split == "train" else 1,
            dtype=recipe.features.dtype,
            identity=identity | {"split": split} | ({"seed": recipe.seed} if augmented else {}),
            device=device,
            threads=1 if augmented else max(1, data.num_workers),  # draws use the process's generators
            report=partial(data.report, split),
        )
        data.replace(split, features)
        stored += parts
    if data.selection == "test":
        data.replace("val", data.split("test"))
    data.num_workers = 0  # reading tokens costs less than handing them from process to process
    model.to("cpu")
    computed, seconds = sum(s.computed for s in stored), sum(s.seconds for s in stored)
    rate = computed / seconds if seconds else None
    size = sum(s.tokens.nbytes for s in stored)
    if rate is not None:
        sys.stderr.write(f"[features] {size / 2**30:.2f} GiB of tokens, {rate:.0f} {data.things} a second, once\n")
    return {
        "folders": [s.folder.name for s in stored],
        "bytes": size,
        "computed": computed,
        "seconds": seconds,
        f"encoder_{data.things}_per_second": rate,
    }


def try_task(recipe: Recipe, task: Task) -> None:
    """Score an example with the task's model, so that a task that does not fit its data is refused before training.

    Raises:
        LmgraftError: If the batch, or what the task makes of it, is not as it must be.
    """
    batch = recipe.data.example(_EXAMPLES)
    if recipe.features.cached:
        assert isinstance(batch, LabelledBatch), "wrap() has refused others"
        batch = batch._replace(inputs=encode(network(task), batch.inputs))
    task.try_on(batch, recipe.data.name)
