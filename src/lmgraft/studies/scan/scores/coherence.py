"""Gradient coherence of a candidate at the start of its training: how far minibatches agree."""

from __future__ import annotations

import torch
from torch import nn

from lmgraft.analysis.coherence import coherence, coherence_interval, gradients_of, products, summed
from lmgraft.data.base import on_device
from lmgraft.errors import RunError
from lmgraft.studies.scan.lab import Lab, Place, choose_items, still_batches
from lmgraft.studies.scan.scores.measured import Measured


def measure(lab: Lab, place: Place, model: nn.Module) -> Measured:
    """Of the encoder's, the head's and the mappers' gradients together; and of encoder and mappers alone.

    The loss is the task's, of items without augmentation, dropout and drop path.

    Raises:
        RunError: If there are too few training items.
    """
    count, size = lab.config.coherence_batches, lab.config.coherence_images
    samples = choose_items(count * size, len(lab.recipe.data.split("train")))
    if len(samples) < count * size:
        raise RunError(
            f"coherence needs {count} x {size} training {lab.recipe.data.things}, there are {len(samples)}",
            "lower --coherence-batches or --coherence-images",
        )
    mixed = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0)).tolist()
    batches = still_batches(lab.recipe, "train", [samples[i] for i in mixed], size)
    task = lab.recipe.task(model).eval()
    every = [
        {part: gradient.cpu() for part, gradient in gradients_of(task, on_device(batch, lab.device)).items()}
        for batch in batches
    ]
    of = products(lambda: every)
    whole = summed(of.values())
    return Measured(
        value=coherence(whole),
        interval=coherence_interval(whole),
        parts={part: coherence(one) for part, one in of.items() if one.squares.sum() > 0},
    )
