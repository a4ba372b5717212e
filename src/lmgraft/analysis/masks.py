"""Do the tokens that stand out lie on the object? Overlap of activation with true masks, item by item.

All functions take maps (B, T) in [0, 1], as `activations` gives them, and true masks (B, T) over the same tokens, and
return one number an item, so that the statistics of any metric serve. An item is nan where nothing can be said of it
(no token of the object, or where areas are ranked, none of the background).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

THRESHOLDS = tuple(step / 10 for step in range(1, 10))
"""The paper's rule takes the best of these for each image (Section 6)."""


def mask_of_tokens(mask: Tensor, grid: tuple[int, ...], share: float = 0.5) -> Tensor:
    """A mask of pixels (B, H, W), or of a clip (B, T, H, W), as tokens (B, N) bool; see `covered`."""
    return covered(shares_of_tokens(mask, grid), share)


def shares_of_tokens(mask: Tensor, grid: tuple[int, ...]) -> Tensor:
    """How much of each token's patch is in a mask, bool or the covered part of each pixel: (B, ...) -> (B, N) float.

    Patches need not divide the image evenly.
    """
    pool: Any = F.adaptive_avg_pool2d if len(grid) == 2 else F.adaptive_avg_pool3d
    shares: Tensor = pool(mask.float().unsqueeze(1), grid)
    return shares.flatten(1)


def covered(shares: Tensor, share: float = 0.5) -> Tensor:
    """Which tokens belong to the object, from how much of each does: (B, T) -> (B, T) bool.

    Those of which at least `share` does; of an object that fills no token that far, the token that it fills most.
    Tokens that lie nowhere (NaN) do not.
    """
    shares = shares.nan_to_num(0.0)
    if shares.shape[1] == 0:
        return torch.zeros_like(shares, dtype=torch.bool)
    most = shares.amax(1, keepdim=True)
    return shares >= most.clamp(max=share).where(most > 0, torch.inf)


def iou(maps: Tensor, truth: Tensor, threshold: float, padded: Tensor | None = None) -> Tensor:
    """TP / (TP + FP + FN) of the tokens above a threshold: (B,)."""
    seen = _seen(truth, padded)
    chosen = (maps > threshold) & seen
    return _over_something((chosen & truth & seen).sum(1), ((chosen | truth) & seen).sum(1), (truth & seen).any(1))


def best_iou(
    maps: Tensor, truth: Tensor, padded: Tensor | None = None, thresholds: Sequence[float] = THRESHOLDS
) -> Tensor:
    """The paper's rule: each item at the threshold that is best for it. An oracle: whatever is scored gains by it."""
    return torch.stack([iou(maps, truth, threshold, padded) for threshold in thresholds]).amax(0)


def average_precision(maps: Tensor, truth: Tensor, padded: Tensor | None = None) -> Tensor:
    """Area under precision and recall (as step function) over all thresholds: (B,). Equal values count as one step."""
    seen = _seen(truth, padded)
    values = maps.masked_fill(~seen, float("-inf"))
    order = values.argsort(dim=1, descending=True, stable=True)
    ranked, hit = values.gather(1, order), (truth & seen).gather(1, order)
    hits, places = hit.cumsum(1), torch.arange(1, maps.shape[1] + 1, device=maps.device)
    # A threshold stands behind the last of equal values.
    ends = torch.cat([ranked[:, 1:] != ranked[:, :-1], torch.ones_like(hit[:, :1])], 1) & (ranked > float("-inf"))
    total = hits[:, -1:].clamp_min(1)
    recall = hits / total
    before = torch.cat([torch.zeros_like(recall[:, :1]), (recall * ends).cummax(1).values[:, :-1]], 1)
    areas = ((recall - before) * (hits / places) * ends).sum(1)
    return areas.masked_fill(~_has_both(truth, seen), float("nan"))


def pointing(maps: Tensor, truth: Tensor, padded: Tensor | None = None) -> Tensor:
    """Whether the token that stands out most lies on the object: (B,); of several equal ones, the share that does."""
    seen = _seen(truth, padded)
    values = maps.masked_fill(~seen, float("-inf"))
    top = values == values.amax(1, keepdim=True) if values.shape[1] else torch.zeros_like(truth)
    return _over_something((top & truth).sum(1), top.sum(1), (truth & seen).any(1))


def share(amounts: Tensor, truth: Tensor, padded: Tensor | None = None) -> Tensor:
    """How much of what is divided among tokens falls on the object: (B,), its share of the tokens where all are alike.

    Args:
        amounts: (B, T), none negative, not scaled to their range: attention, or how far tokens lie from their mean.
        truth: (B, T) bool.
        padded: (B, T) bool: tokens that do not count.
    """
    seen = _seen(truth, padded)
    total = (amounts * seen).sum(1)
    return _over_something((amounts * (truth & seen)).sum(1), total, (truth & seen).any(1) & (total > 0))


def centred_blob(truth: Tensor, grid: tuple[int, ...]) -> Tensor:
    """The floor that knows nothing of the item: for each, as many tokens as its object has, nearest the centre.

    Args:
        truth: (B, T) bool.
        grid: (rows, columns), or (times, rows, columns), in which the blob is at the centre of every time.

    Returns:
        (B, T) with 1 at these and less the farther a token lies, so that a threshold just below 1 gives the area of
        the object, and `average_precision` ranks by distance.
    """
    rows, columns = grid[-2:]
    y = (torch.arange(rows, device=truth.device) + 0.5) / rows - 0.5
    x = (torch.arange(columns, device=truth.device) + 0.5) / columns - 0.5
    distance = (y[:, None].square() + x[None, :].square()).flatten()
    return nearest(truth, distance.repeat(truth.shape[1] // len(distance)).expand(truth.shape))


def central_tokens(truth: Tensor, places: Tensor) -> Tensor:
    """As `centred_blob` where tokens lie in no grid: those nearest the mean of all places (B, T, k).

    Tokens that lie nowhere (NaN: padding) are the farthest.
    """
    distance = (places - places.nanmean(1, keepdim=True)).norm(dim=-1)
    return nearest(truth, distance.nan_to_num(torch.inf))


def nearest(truth: Tensor, distance: Tensor) -> Tensor:
    """A map (B, T) that is 1 at as many tokens as each item's object has, those of the least distance (B, T)."""
    rank = distance.argsort(dim=1, stable=True).argsort(dim=1)
    falling = 0.05 * (1 - rank / rank.shape[1])  # below every threshold, in the order of distance
    return torch.where(rank < truth.sum(1, keepdim=True), torch.ones_like(falling), falling)


def _seen(truth: Tensor, padded: Tensor | None) -> Tensor:
    if truth.dtype != torch.bool:
        raise ValueError(f"a true mask is bool over tokens, got {truth.dtype}: see mask_of_tokens")
    return torch.ones_like(truth) if padded is None else ~padded


def _has_both(truth: Tensor, seen: Tensor) -> Tensor:
    return (truth & seen).any(1) & (~truth & seen).any(1)


def _over_something(part: Tensor, whole: Tensor, counts: Tensor) -> Tensor:
    return (part / whole.clamp_min(1)).masked_fill(~counts, float("nan"))
