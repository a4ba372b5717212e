"""A linear probe by ridge regression to one-hot targets, in closed form.

The penalty is the one with the best leave-one-out accuracy on the features it is fitted to: with
one eigendecomposition every penalty's leave-one-out predictions are known exactly.
"""

from __future__ import annotations

from statistics import fmean

import torch
from torch import Tensor, nn

from lmgraft.studies.scan.lab import Lab, Place, as_features, block_outputs, draws_of, encoder_features
from lmgraft.studies.scan.scores.measured import Measured, over_draws

PENALTIES = tuple(10.0**power for power in range(-5, 5))
"""Relative to the mean eigenvalue of the features' Gram matrix."""


def measure(lab: Lab, place: Place, model: nn.Module) -> Measured:
    """Accuracy behind the block minus `encoder_accuracy`, for each draw of W1."""
    own = encoder_accuracy(lab, place)
    accuracies = []
    for inserted in draws_of(lab, model):
        # Where other layers follow, they read every token: the mean over all is probed.
        train, val = (block_outputs(inserted, t, place.reads, as_features) for t in (place.train, place.val))
        accuracies.append(_accuracy(lab, train, val))
    return over_draws([a - own for a in accuracies], accuracy=fmean(accuracies), encoder=own)


def encoder_accuracy(lab: Lab, place: Place) -> float:
    """The probe's accuracy on the encoder's own tokens at this place."""
    if "probe" not in place.known:
        own = [encoder_features(place, tokens) for tokens in (place.train, place.val)]
        place.known["probe"] = _accuracy(lab, *own)
    return place.known["probe"]


def _accuracy(lab: Lab, train: Tensor, val: Tensor) -> float:
    scores = ridge_probe(train, lab.train_labels, val, lab.num_classes, device=lab.device)
    return float((scores.argmax(1) == lab.val_labels).double().mean())


def ridge_probe(
    train: Tensor, labels: Tensor, test: Tensor, num_classes: int, *, device: torch.device | str = "cpu"
) -> Tensor:
    """Scores (M, num_classes) of `test` (M, F) by a ridge classifier of `train` (N, F) with `labels` (N,).

    Features are standardised by the training ones. Needs min(N, F)² numbers in float64.
    """
    x, z = train.to(device, torch.float64), test.to(device, torch.float64)
    mean, deviation = x.mean(0), x.std(0, correction=0)
    scale = torch.where(deviation > 1e-12 * x.abs().amax(0).clamp_min(1), deviation, torch.inf)
    x, z = (x - mean) / scale, (z - mean) / scale
    targets = torch.nn.functional.one_hot(labels.to(device), num_classes).to(x)
    middle = targets.mean(0)
    targets = targets - middle
    left, eigen, right = _decomposed(x)
    projected = left.T @ targets  # (K, C)
    unit = float(eigen.mean().clamp_min(torch.finfo(eigen.dtype).tiny))
    best, chosen = -1.0, PENALTIES[0] * unit
    for penalty in (p * unit for p in PENALTIES):
        shrink = eigen / (eigen + penalty)
        fitted = left @ (shrink[:, None] * projected)
        leverage = (left.square() @ shrink + 1 / len(x)).clamp_max(1 - 1e-9)
        without = targets - (targets - fitted) / (1 - leverage)[:, None]
        right_answers = float((without + middle).argmax(1).eq(labels.to(device)).double().mean())
        if right_answers >= best:  # of equal ones the larger penalty
            best, chosen = right_answers, penalty
    weights = right @ ((eigen.sqrt() / (eigen + chosen))[:, None] * projected)
    return (z @ weights + middle).cpu()


def _decomposed(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x = left · diag(√eigen) · right' by the smaller of its two Gram matrices; null directions are dropped."""
    tall = len(x) >= x.shape[1]
    eigen, vectors = torch.linalg.eigh(x.T @ x if tall else x @ x.T)
    kept = eigen > 1e-10 * eigen[-1].clamp_min(torch.finfo(eigen.dtype).tiny)
    eigen, vectors = eigen[kept], vectors[:, kept]
    if tall:
        return x @ vectors / eigen.sqrt(), eigen, vectors
    return vectors, eigen, x.T @ vectors / eigen.sqrt()
