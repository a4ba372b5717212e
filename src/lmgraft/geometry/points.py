"""Farthest point sampling, nearest neighbours and groups, over whole batches and without extensions.

The only loop is over the points that are chosen one after the other; `torch.compile` unrolls it.
"""

from __future__ import annotations

import torch
from torch import Tensor

NEAR_ORIGIN = 1e-3
"""Squared norm up to which pointnet2's CUDA kernel passes a point over."""


@torch.no_grad()
def farthest_points(points: Tensor, count: int, *, skip_near_origin: bool = False) -> Tensor:
    """Choose points one after the other, each as far as possible from those chosen before (arXiv 1706.02413).

    The first point of the cloud comes first. The order is nested: the first k are what `count=k` gives. Of a cloud
    with fewer than `count` different points some come again.

    Args:
        points: (B, N, 3), N at least 1.
        count: How many.
        skip_near_origin: Pass over points whose squared norm is at most 0.001, as the kernel of pointnet2 does with
            which Point-BERT was trained; the first point is chosen all the same.

    Returns:
        (B, count) int64.
    """
    # Axis by axis (3, B, N): a sum over rows of three numbers takes several times as long.
    axes = points.float().permute(2, 0, 1).contiguous()
    far = axes.new_full(axes.shape[1:], torch.inf)
    if skip_near_origin:
        far = far.masked_fill(axes.square().sum(0) <= NEAR_ORIGIN, -1.0)
    chosen = torch.zeros(len(points), dtype=torch.int64, device=points.device)
    order = [chosen]
    for _ in range(count - 1):
        last = axes.gather(2, chosen[None, :, None].expand(len(axes), -1, 1))
        far = torch.minimum(far, (axes - last).square().sum(0))
        chosen = far.argmax(1)
        order.append(chosen)
    return torch.stack(order, 1)


@torch.no_grad()
def nearest_points(points: Tensor, centres: Tensor, count: int) -> Tensor:
    """The `count` points nearest to each centre, in no order.

    Args:
        points: (B, N, 3), N at least `count`.
        centres: (B, G, 3).

    Returns:
        (B, G, count) int64.
    """
    # By differences: squares of norms would lose the digits that tell near points apart.
    far = torch.cdist(centres.float(), points.float(), compute_mode="donot_use_mm_for_euclid_dist")
    return far.topk(count, dim=-1, largest=False, sorted=False).indices


def take_points(values: Tensor, index: Tensor) -> Tensor:
    """What `values` (B, N, C) holds at `index` (B, ...): (B, ..., C)."""
    flat = index.flatten(1).unsqueeze(-1).expand(-1, -1, values.shape[-1])
    return values.gather(1, flat).reshape(*index.shape, values.shape[-1])


def group_index(points: Tensor, num_groups: int, group_size: int, *, skip_near_origin: bool = False) -> Tensor:
    """Which points make each group, (B, G, K) int64; see `group_points`."""
    return _groups(points, num_groups, group_size, skip_near_origin)[1]


def group_points(
    points: Tensor, num_groups: int, group_size: int, *, skip_near_origin: bool = False
) -> tuple[Tensor, Tensor]:
    """Groups of neighbours around far-apart centres, as Point-BERT's tokens are made of.

    Args:
        points: (B, N, 3), N at least `group_size`.
        num_groups: Centres G, by `farthest_points`.
        group_size: Points K of a group; groups overlap.
        skip_near_origin: See `farthest_points`.

    Returns:
        Groups (B, G, K, 3), relative to their centres, and centres (B, G, 3).
    """
    centres, index = _groups(points, num_groups, group_size, skip_near_origin)
    return take_points(points, index) - centres.unsqueeze(2), centres


def _groups(points: Tensor, num_groups: int, group_size: int, skip_near_origin: bool) -> tuple[Tensor, Tensor]:
    centres = take_points(points, farthest_points(points, num_groups, skip_near_origin=skip_near_origin))
    return centres, nearest_points(points, centres, group_size)


_PAIRS = 1 << 26
"""Pairs of centre and point whose distances are held at a time."""


@torch.no_grad()
def ball_points(points: Tensor, centres: Tensor, radius: float, count: int) -> Tensor:
    """The first `count` points, in the cloud's order, that are nearer to each centre than `radius` (arXiv 1706.02413).

    As pointnet2's CUDA kernel has it: where there are fewer, the first one comes again; where there is none, the
    cloud's first point stands for all.

    Args:
        points: (B, N, 3).
        centres: (B, G, 3).
        radius: In the points' own unit.
        count: K.

    Returns:
        (B, G, K) int64.
    """
    at_once = max(1, _PAIRS // max(1, points.shape[0] * points.shape[1]))
    # The k-th point inside is where the running count of those inside first reaches k.
    wanted = torch.arange(1, count + 1, device=points.device, dtype=torch.int32)
    parts = []
    for first in range(0, centres.shape[1], at_once):
        some = centres[:, first : first + at_once].float()
        far = torch.cdist(some, points.float(), compute_mode="donot_use_mm_for_euclid_dist")
        inside = (far < radius).cumsum(-1, dtype=torch.int32)
        index = torch.searchsorted(inside, wanted.expand(*inside.shape[:2], -1).contiguous())
        index[..., 0].masked_fill_(index[..., 0] == points.shape[1], 0)
        parts.append(torch.where(index == points.shape[1], index[..., :1], index))
    return torch.cat(parts, 1)


def interpolate(values: Tensor, known: Tensor, places: Tensor, neighbours: int = 3) -> Tensor:
    """Values at places, each the mean of those of the nearest known points, weighed by 1 / distance.

    Args:
        values: (B, G, C), of the known points.
        known: (B, G, 3), where they lie.
        places: (B, N, 3).
        neighbours: How many count, or all where there are fewer.

    Returns:
        (B, N, C).
    """
    index = nearest_points(known, places, min(neighbours, known.shape[1]))
    apart = torch.linalg.vector_norm(take_points(known, index) - places.unsqueeze(2), dim=-1)
    weights = 1 / (apart + 1e-8)
    weights = (weights / weights.sum(-1, keepdim=True)).to(values.dtype)
    out: Tensor = (take_points(values, index) * weights.unsqueeze(-1)).sum(2)
    return out
