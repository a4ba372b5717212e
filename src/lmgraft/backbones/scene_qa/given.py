"""Objects that are given in place of detected ones: proposals out of points that say which object they are of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmgraft.backbones.scene_qa.vote_net import Proposals
from lmgraft.errors import HostError

GIVEN = 2
"""The last features of a point: the number of its object and that object's class, both -1 where it is of none."""
MOST = 64
"""Objects of a room; what comes behind is none."""
_SAMPLES = 32  # points of an object that stand for it
_SURE = 20.0  # logit of what is given


class GivenObjects(nn.Module):
    """Points (B, N, 3 + F) to `Proposals`, one for each object; nothing is learnt.

    An object's box is the smallest around its points. There are 64 proposals, most of which are no object.

    Args:
        num_features: F, with `GIVEN`.
        mean_sizes: (C, 3), of each class, metres.

    Raises:
        HostError: If points have no such features.
    """

    mean_sizes: Tensor

    def __init__(self, num_features: int, mean_sizes: Sequence[Sequence[float]]) -> None:
        super().__init__()
        if num_features < GIVEN:
            raise HostError(
                f"given_objects, and points of {num_features} features", "data.given_objects: true adds what it reads"
            )
        self.num_features = num_features
        self.register_buffer("mean_sizes", torch.tensor([list(size) for size in mean_sizes], dtype=torch.float32))

    @torch.no_grad()
    def forward(self, cloud: Tensor) -> Proposals:
        """
        Raises:
            HostError: If the points have other features.
        """
        if cloud.dim() != 3 or cloud.shape[2] != 3 + self.num_features:
            raise HostError(
                f"points {tuple(cloud.shape)}",
                f"this model takes x, y, z and {self.num_features} features of each point, the "
                "last two a point's object and its class",
            )
        places, number, kind = cloud[..., :3].float(), cloud[..., -2].long(), cloud[..., -1].long()
        number = number.where((number >= 0) & (number < MOST), MOST)  # what is of none goes to a place behind
        of = number[..., None].expand_as(places)
        blank = places.new_zeros(len(places), MOST + 1, 3)
        low = blank.scatter_reduce(1, of, places, "amin", include_self=False)[:, :MOST]
        high = blank.scatter_reduce(1, of, places, "amax", include_self=False)[:, :MOST]
        counts = blank[..., 0].long().scatter_add_(1, number, torch.ones_like(number))
        classes = counts.new_zeros(counts.shape).scatter_(1, number, kind)[:, :MOST].clamp_min(0)
        there = (counts[:, :MOST, None] > 0).float()
        scores = _SURE * F.one_hot(classes, len(self.mean_sizes)).float()
        residuals = (high - low) / self.mean_sizes[classes] - 1
        none, centres = torch.zeros_like(there), (low + high) / 2
        return Proposals(
            seeds=places,
            seed_index=torch.arange(cloud.shape[1], device=cloud.device).expand(len(cloud), -1),
            votes=places,
            bases=centres,
            gathered=members(number, counts),
            features=none,
            objectness=_SURE * torch.cat([1 - 2 * there, 2 * there - 1], -1),
            centres=centres,
            heading_scores=none,
            heading_residuals=none,
            size_scores=scores,
            size_residuals=residuals[:, :, None].expand(-1, -1, len(self.mean_sizes), -1),
            classes=scores,
        )


def members(number: Tensor, counts: Tensor) -> Tensor:
    """(B, 64, 32) int64 points of each object, the first ones, again and again where it has fewer.

    Args:
        number: (B, N) int64, the object of each point; 64 for none.
        counts: (B, 65) how many points each has.
    """
    order = number.argsort(dim=1, stable=True)
    first = (counts.cumsum(1) - counts)[:, :MOST, None]
    place = first + torch.arange(_SAMPLES, device=number.device) % counts[:, :MOST, None].clamp(1, _SAMPLES)
    points: Tensor = order.gather(1, place.clamp_max(number.shape[1] - 1).flatten(1))
    return points.view_as(place)
