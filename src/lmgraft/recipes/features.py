"""Runs whose encoder is frozen too: the task sees stored tokens in place of images.

The encoder runs once over each split, in evaluation mode; mappers and classifier train on its
tokens. See `lmgraft.data.features` for how they are stored.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import nn

from lmgraft.data.images import SplitName
from lmgraft.errors import RecipeError
from lmgraft.recipes.recipe import Recipe
from lmgraft.training.features import OnTokens, encoder_digest, freeze_encoder, store_split
from lmgraft.training.fit import on_gpu

SPLITS: tuple[SplitName, ...] = ("train", "val", "test")


def network(task: LightningModule) -> nn.Module:
    """The task's whole model, from images to logits."""
    model: nn.Module = task.model  # type: ignore[assignment]
    return model.model if isinstance(model, OnTokens) else model


def wrap(recipe: Recipe, task: LightningModule) -> None:
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
    task.model = OnTokens(freeze_encoder(task.model))  # type: ignore[arg-type]


def use_stored_tokens(recipe: Recipe, task: LightningModule) -> dict[str, Any] | None:
    """Put stored tokens in the place of the data's images, computing what is not there yet.

    Returns:
        What it cost, for the record: bytes, seconds, images a second of the encoder.
    """
    if not recipe.features.cached:
        return None
    data, model = recipe.data, network(task)
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
        images = data.split(split) if augmented else data.still(split)
        features, parts = store_split(
            model,
            images,
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
        sys.stderr.write(f"[features] {size / 2**30:.2f} GiB of tokens, {rate:.0f} images a second, once\n")
    return {
        "folders": [s.folder.name for s in stored],
        "bytes": size,
        "computed": computed,
        "seconds": seconds,
        "encoder_images_per_second": rate,
    }
