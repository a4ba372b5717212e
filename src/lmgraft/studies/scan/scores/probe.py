"""A linear probe by ridge regression to the task's targets (of classification: one-hot), in closed form.

How well its predictions fit is the task's word (`Task.agreement`). The penalty is the one with the best leave-one-out
agreement on the features it is fitted to: with one eigendecomposition every penalty's leave-one-out predictions are
known exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean

import torch
from torch import Tensor, nn

from lmgraft.errors import RunError
from lmgraft.studies.scan.lab import Lab, Place, as_features, block_outputs, draws_of, encoder_features
from lmgraft.studies.scan.scores.measured import Measured, not_for_task, over_draws

PENALTIES = tuple(10.0**power for power in range(-5, 5))
"""Relative to the mean eigenvalue of the features' Gram matrix."""

Agreement = Callable[[Tensor, Tensor], float]
"""How well predictions (N, K) fit targets (N, K); more is better."""


def measure(lab: Lab, place: Place, model: nn.Module) -> Measured:
    """The probe's agreement behind the block minus `encoder_agreement`, for each draw of W1.

    Raises:
        RunError: If there are not as many rows of tokens as of targets.
    """
    if lab.train_targets is None or lab.val_targets is None:
        return not_for_task("the task has no targets that a linear probe could predict")
    own = encoder_agreement(lab, place)
    reached = []
    for inserted in draws_of(lab, model):
        # Where other layers follow, they read every token: the mean over all is probed.
        train, val = (block_outputs(inserted, tokens, as_features) for tokens in (place.train, place.val))
        reached.append(_agreement(lab, train, val))
    parts = {lab.task.agreement_metric.name: fmean(reached), "encoder": own}
    return over_draws([value - own for value in reached], **parts)


def encoder_agreement(lab: Lab, place: Place) -> float:
    """The probe's agreement on the encoder's own tokens at this place."""
    if "probe" not in place.known:
        place.known["probe"] = _agreement(lab, *(encoder_features(tokens) for tokens in (place.train, place.val)))
    return place.known["probe"]


def _agreement(lab: Lab, train: Tensor, val: Tensor) -> float:
    targets, truth = lab.train_targets, lab.val_targets
    assert targets is not None
    assert truth is not None
    if (len(train), len(val)) != (len(targets), len(truth)):
        raise RunError(
            f"the encoder gives {len(train):,} rows of tokens for {len(targets):,} rows of targets",
            "Task.targets must have a row for each row of the encoder's tokens",
        )
    predicted = ridge_probe(train, targets, val, lab.task.agreement, device=lab.device)
    return lab.task.agreement(predicted, truth)


def ridge_probe(
    train: Tensor, targets: Tensor, test: Tensor, agreement: Agreement, *, device: torch.device | str = "cpu"
) -> Tensor:
    """Predictions (M, K) for `test` (M, F) by a ridge regression of `targets` (N, K) on `train` (N, F).

    Features are standardised by the training ones. Needs min(N, F)² numbers in float64.
    """
    x, z = train.to(device, torch.float64), test.to(device, torch.float64)
    mean, deviation = x.mean(0), x.std(0, correction=0)
    scale = torch.where(deviation > 1e-12 * x.abs().amax(0).clamp_min(1), deviation, torch.inf)
    x, z = (x - mean) / scale, (z - mean) / scale
    wanted = targets.to(device, torch.float64)
    middle = wanted.mean(0)
    centred = wanted - middle
    left, eigen, right = _decomposed(x)
    projected = left.T @ centred  # (min(N, F), K)
    unit = float(eigen.mean().clamp_min(torch.finfo(eigen.dtype).tiny))
    best, chosen = -torch.inf, PENALTIES[0] * unit
    for penalty in (p * unit for p in PENALTIES):
        shrink = eigen / (eigen + penalty)
        fitted = left @ (shrink[:, None] * projected)
        leverage = (left.square() @ shrink + 1 / len(x)).clamp_max(1 - 1e-9)
        without = centred - (centred - fitted) / (1 - leverage)[:, None]
        reached = agreement(without + middle, wanted)
        if reached >= best:  # of equal ones the larger penalty
            best, chosen = reached, penalty
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
