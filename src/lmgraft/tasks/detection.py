"""Detection of objects in rooms: VoteNet's losses, and average precision of boxes along the axes.

Boxes are (..., 6): centre and size in metres. Knows no questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lmgraft.backbones.scene_qa.vote_net import Proposals
from lmgraft.geometry.points import take_points

NEAR, FAR = 0.3, 0.6
"""Metres from a proposal to the nearest centre up to which it is an object, and from which on it is none."""
_OBJECTNESS = (0.2, 0.8)
"""Weights of no object and of an object."""
_SUPPRESSED = 0.25
"""IoU with a surer proposal of its class above which a proposal does not count."""
_EPS = 1e-6


class Truth(NamedTuple):
    """The objects of rooms; K at most, and which box each of N points is in."""

    boxes: Tensor
    """(B, K, 6)"""
    classes: Tensor
    """(B, K) int64, -1 where there is no box."""
    point_box: Tensor
    """(B, N) int64, -1 for none."""


def detection_losses(proposals: Proposals, truth: Truth, mean_sizes: Tensor) -> dict[str, Tensor]:
    """The parts of VoteNet's loss by name, each a number: "vote", "objectness", "centre", "heading_class", "heading",
    "size_class", "size" and "class".

    A part of which a batch has nothing (no point in a box, no proposal near a centre) is 0. Unlike in VoteNet's code,
    boxes that only fill up a batch are no objects.

    Args:
        mean_sizes: (C, 3), of each class.
    """
    there = truth.classes >= 0
    near = _nearest(proposals.bases, truth.boxes[..., :3], there)
    far = (near.squared + _EPS).sqrt()
    is_object, counts = far < NEAR, (far < NEAR) | (far > FAR)
    weights = proposals.objectness.new_tensor(_OBJECTNESS)
    objectness = F.cross_entropy(
        proposals.objectness.flatten(0, 1), is_object.long().flatten(), weights, reduction="none"
    )
    losses = {
        "vote": _vote(proposals, truth),
        "objectness": _mean_of(objectness.view_as(far), counts),
        "centre": _centre(proposals, truth, is_object),
    }
    classes = truth.classes.gather(1, near.which).clamp_min(0)
    sizes = take_points(truth.boxes, near.which)[..., 3:]
    known = mean_sizes[classes]
    residual = proposals.size_residuals.gather(2, classes[..., None, None].expand(-1, -1, 1, 3))[:, :, 0]
    parts = {
        "heading_class": _cross_entropy(proposals.heading_scores, torch.zeros_like(classes)),
        "heading": _huber(proposals.heading_residuals, torch.zeros_like(proposals.heading_residuals)),
        "size_class": _cross_entropy(proposals.size_scores, classes),
        "size": _huber(residual, (sizes - known) / known),
        "class": _cross_entropy(proposals.classes, classes),
    }
    return losses | {name: _mean_of(loss, is_object) for name, loss in parts.items()}


class _Near(NamedTuple):
    squared: Tensor
    which: Tensor


def _nearest(places: Tensor, others: Tensor, there: Tensor) -> _Near:
    """Of each place (B, P, 3) the nearest of others (B, K, 3) that are there (B, K): its squared distance, infinite
    where there is none, and which it is."""
    apart = (places.unsqueeze(2) - others.unsqueeze(1)).square().sum(-1).masked_fill(~there.unsqueeze(1), torch.inf)
    return _Near(*apart.min(2))


def _mean_of(values: Tensor, counts: Tensor) -> Tensor:
    # Not times 0: what does not count may be infinite.
    return values.masked_fill(~counts, 0.0).sum() / (counts.sum() + _EPS)


def _cross_entropy(logits: Tensor, classes: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), classes.flatten(), reduction="none").view_as(classes)


def _huber(values: Tensor, wanted: Tensor) -> Tensor:
    return F.huber_loss(values, wanted, reduction="none").mean(-1)


def _vote(proposals: Proposals, truth: Truth) -> Tensor:
    """How far each seed in a box votes from its centre, the sum over the axes; the mean over such seeds."""
    box = truth.point_box.gather(1, proposals.seed_index)
    centres = take_points(truth.boxes[..., :3], box.clamp_min(0))
    return _mean_of((proposals.votes - centres).abs().sum(-1), box >= 0)


def _centre(proposals: Proposals, truth: Truth, is_object: Tensor) -> Tensor:
    """Chamfer: of proposals that are objects to the nearest centre, of centres to the nearest proposal, squared."""
    there, centres = truth.classes >= 0, truth.boxes[..., :3]
    to_truth = _nearest(proposals.centres, centres, there).squared
    to_proposals = _nearest(centres, proposals.centres, torch.ones_like(is_object)).squared
    return _mean_of(to_truth, is_object) + _mean_of(to_proposals, there)


def box_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Volume of the intersection over that of the union, of boxes (..., P, 6) and (..., K, 6): (..., P, K); 0 of two
    boxes without a volume."""
    a, b = boxes.unsqueeze(-2), others.unsqueeze(-3)
    low = torch.maximum(a[..., :3] - a[..., 3:] / 2, b[..., :3] - b[..., 3:] / 2)
    high = torch.minimum(a[..., :3] + a[..., 3:] / 2, b[..., :3] + b[..., 3:] / 2)
    both = (high - low).clamp_min(0).prod(-1)
    either = a[..., 3:].prod(-1) + b[..., 3:].prod(-1) - both
    return torch.where(either > 0, both / either.clamp_min(_EPS**2), 0.0)


@torch.no_grad()
def matched(proposals: Proposals, truth: Truth, mean_sizes: Tensor, thresholds: Sequence[float]) -> Tensor:
    """What average precision needs of each proposal: (B, P, 2 + thresholds), belief, class, and whether it is right.

    Proposals that are no object, or overlap a surer one of their class by more than 0.25, have the belief -1. At a
    threshold a proposal is right if its IoU with the object of its class that it overlaps most is above it and no
    surer proposal has been right about this object.
    """
    boxes = proposals.boxes(mean_sizes).float()
    of_class, classes = proposals.classes.float().softmax(-1).max(-1)
    beliefs = (proposals.objectness.float().softmax(-1)[..., 1] * of_class).masked_fill(~proposals.is_object, -1.0)
    beliefs, order = beliefs.sort(stable=True, dim=1, descending=True)
    boxes, classes = take_points(boxes, order), classes.gather(1, order)
    same = classes.unsqueeze(2) == classes.unsqueeze(1)
    covers = (box_iou(boxes, boxes) > _SUPPRESSED) & same
    alive = beliefs >= 0
    for p in range(boxes.shape[1]):
        later = torch.arange(boxes.shape[1], device=boxes.device) > p
        alive &= ~(covers[:, p] & alive[:, p, None] & later)
    overlap = box_iou(boxes, truth.boxes.float())
    overlap = overlap.masked_fill(classes.unsqueeze(2) != truth.classes.unsqueeze(1), -1.0)
    columns = [beliefs.masked_fill(~alive, -1.0), classes.float()]
    for threshold in thresholds:
        columns.append(_right(overlap, alive, threshold))
    return torch.stack(columns, -1)


def _right(overlap: Tensor, alive: Tensor, threshold: float) -> Tensor:
    """(B, P): 1 for proposals that are right, in their order, by their overlaps (B, P, K); -1 of another class."""
    if not overlap.shape[2]:
        return torch.zeros_like(alive, dtype=torch.float32)
    most, which = overlap.max(2)
    meets = alive & (most > threshold)
    # The first to meet an object has it.
    met = F.one_hot(which, overlap.shape[2]).bool() & meets.unsqueeze(2)
    return (met & (met.cumsum(1) == 1)).any(2).float()


def average_precision(beliefs: NDArray[Any], right: NDArray[Any], objects: int) -> float:
    """The area under the precision of what is believed at least so much, over recall (VOC's rule since 2010).

    Args:
        beliefs: (M,), of detections of one class.
        right: (M,) 0 or 1.
        objects: Of this class, above 0.
    """
    ordered = right[np.argsort(-beliefs, kind="stable")].astype(np.float64)
    hits = ordered.cumsum()
    precision = hits / np.arange(1, len(hits) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]  # at this recall or a higher one
    return float((best * ordered).sum() / objects)


def mean_average_precision(detections: NDArray[Any], objects: NDArray[Any]) -> list[float]:
    """The mean over classes that have an object, at each threshold; 0 where there is no object at all.

    Args:
        detections: (rooms, P, 2 + thresholds), as `matched` gives them.
        objects: (rooms, C), how many objects of each class there are.
    """
    flat = detections.reshape(-1, detections.shape[-1])
    flat = flat[flat[:, 0] >= 0]
    counts = objects.sum(0)
    of_class = {int(number): flat[flat[:, 1] == number] for number in np.flatnonzero(counts)}
    return [
        float(np.mean([average_precision(of[:, 0], of[:, at], int(counts[n])) for n, of in of_class.items()] or [0.0]))
        for at in range(2, detections.shape[-1])
    ]
