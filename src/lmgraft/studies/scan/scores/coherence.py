"""Gradient coherence: how much of a minibatch's gradient other minibatches agree with.

With gradients g_i of k minibatches, ||E g||² / E||g||², the numerator estimated without bias by the
mean of g_i·g_j over pairs of different minibatches.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lmgraft.data.base import on_device
from lmgraft.errors import RunError
from lmgraft.studies.scan.lab import Lab, Place, choose_items, still_batches
from lmgraft.studies.scan.scores.measured import Measured

_RESAMPLES = 2000


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
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    groups = {
        "mappers": [p for name, p in trained.items() if name.startswith("graft.")],
        "encoder": [p for name, p in trained.items() if not name.startswith("graft.")],
    }
    grams = {name: torch.zeros(count, count, dtype=torch.float64) for name in groups}
    gradients: list[list[Tensor]] = []
    for still in batches:
        batch = on_device(still, lab.device)
        loss = task.loss(task.outputs(batch), batch)
        flat = torch.autograd.grad(loss, [*trained.values()], allow_unused=True)
        found = {id(p): g for p, g in zip(trained.values(), flat, strict=True) if g is not None}
        gradients.append(
            [_joined([found[id(p)] for p in parameters if id(p) in found]) for parameters in groups.values()]
        )
    for name, vectors in zip(groups, zip(*gradients, strict=True), strict=True):
        for i, first in enumerate(vectors):
            for j in range(i + 1):
                grams[name][i, j] = grams[name][j, i] = float(first @ vectors[j])
    whole = sum(grams.values(), torch.zeros(count, count, dtype=torch.float64))
    value, interval = coherence(whole), coherence_interval(whole)
    parts = {name: coherence(gram) for name, gram in grams.items() if gram.trace() > 0}
    return Measured(value=value, interval=interval, parts=parts)


def _joined(gradients: list[Tensor]) -> Tensor:
    return torch.cat([g.flatten() for g in gradients]).cpu() if gradients else torch.zeros(1)


def coherence(gram: Tensor, counts: Tensor | None = None) -> float:
    """From the Gram matrix (k, k) of k gradients: 1 if all are equal, about 0 if they have nothing in common.

    Args:
        counts: How often each gradient counts, for resampling; never a gradient with itself. Once by default.

    Raises:
        RunError: If all gradients are zero or one is not finite.
    """
    if not gram.isfinite().all() or gram.trace() <= 0:
        raise RunError("the gradients at the start are zero or not finite", "look at the encoder's run")
    weights = torch.ones(len(gram), dtype=gram.dtype) if counts is None else counts.to(gram.dtype)
    pairs = weights[:, None] * weights
    pairs.fill_diagonal_(0)
    common = (pairs * gram).sum() / pairs.sum()
    return float(common / ((weights * gram.diagonal()).sum() / weights.sum()))


def coherence_interval(gram: Tensor, confidence: float = 0.95) -> tuple[float, float]:
    """Percentile interval over minibatches drawn anew."""
    k = len(gram)
    drawn = torch.randint(k, (_RESAMPLES, k), generator=torch.Generator().manual_seed(0))
    counts = torch.nn.functional.one_hot(drawn, k).sum(1)
    usable = counts[(counts > 0).sum(1) > 1]
    values = torch.tensor([coherence(gram, row) for row in usable], dtype=torch.float64)
    tail = (1 - confidence) / 2
    low, high = torch.quantile(values, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high
