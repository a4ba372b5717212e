"""VoteNet (Qi et al., arXiv 1904.09664) in plain PyTorch: seeds vote for centres of objects, and votes make proposals.

Boxes lie along the axes: there is one bin of headings, as for ScanNet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmgraft.backbones.refusals import construct
from lmgraft.backbones.scene_qa.point_net import Level, PointNet, SetAbstraction, units
from lmgraft.errors import HostError
from lmgraft.geometry.points import take_points

_HEAD = (2, 3, 2)
"""Numbers of a proposal before sizes and classes: objectness, centre, the heading's score and residual."""
_PUBLISHED = (
    Level(2048, 0.2, 64, (64, 64, 128)),
    Level(1024, 0.4, 32, (128, 128, 256)),
    Level(512, 0.8, 16, (128, 128, 256)),
    Level(256, 1.2, 16, (128, 128, 256)),
)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How large a detector is; the defaults are VoteNet's, as SQA3D has them.

    Raises:
        HostError: If a value cannot be.
    """

    levels: tuple[Level, ...] = _PUBLISHED
    """Set abstractions: centres, radius in metres, points of a ball, widths. The second one's centres are the seeds."""
    width: int = 256
    """Of seeds and votes."""
    proposals: int = 256
    """P."""
    radius: float = 0.3
    """Metres around a proposal in which votes are gathered."""
    samples: int = 16
    """Votes of a proposal."""
    proposal_width: int = 128
    """Of a proposal's features."""
    skip_near_origin: bool = False
    """Choose centres as pointnet2's CUDA kernel does, which passes over points near the origin."""

    def __post_init__(self) -> None:
        for number, level in enumerate(self.levels):
            if min(level.centres, level.samples, *level.widths) < 1 or level.radius <= 0 or len(level.widths) < 2:
                raise HostError(
                    f"detector.levels[{number}] of backbone.kwargs is {tuple(level)}",
                    "centres, radius, points of a ball and two widths or more, all above 0",
                )
        centres = [level.centres for level in self.levels]
        if centres != sorted(centres, reverse=True):
            raise HostError(
                f"detector.levels of backbone.kwargs have {', '.join(map(str, centres))} centres",
                "each level chooses its centres among those of the one before, so that it has no more",
            )
        if len(self.levels) < 2 or self.proposals > self.levels[1].centres:
            raise HostError(
                f"{self.proposals} proposals of {len(self.levels)} levels cannot be made",
                "detector has two levels or more, and no more proposals than the second level has centres",
            )
        if min(self.width, self.proposals, self.samples, self.proposal_width) < 1 or self.radius <= 0:
            raise HostError("all sizes of backbone.kwargs.detector are above 0")

    @classmethod
    def of(cls, values: dict[str, Any]) -> Sizes:
        """Of plain data, as recipes have it.

        Raises:
            HostError: If a key is unknown or a value cannot be.
        """
        return construct(cls._of, "backbone.kwargs.detector", values)

    @classmethod
    def _of(cls, levels: Sequence[Any] | None = None, **others: Any) -> Sizes:
        if levels is None:
            return cls(**others)
        return cls(levels=tuple(Level(n, r, k, tuple(widths)) for n, r, k, widths in levels), **others)


class Proposals(NamedTuple):
    """What a detector says of rooms; P proposals, S seeds, C classes, each with a mean size."""

    seeds: Tensor
    """(B, S, 3) points, metres."""
    seed_index: Tensor
    """(B, S) int64, which points they are."""
    votes: Tensor
    """(B, S, 3) where each seed says that its object's centre is."""
    bases: Tensor
    """(B, P, 3) votes around which proposals are made."""
    gathered: Tensor
    """(B, P, K) int64, the seeds whose votes a proposal is made of."""
    features: Tensor
    """(B, P, V)"""
    objectness: Tensor
    """(B, P, 2) logits: nothing, an object."""
    centres: Tensor
    """(B, P, 3)"""
    heading_scores: Tensor
    """(B, P, 1) logits of the one bin."""
    heading_residuals: Tensor
    """(B, P, 1) in half turns of the bin: times pi, in radians."""
    size_scores: Tensor
    """(B, P, C) logits of whose mean size it has."""
    size_residuals: Tensor
    """(B, P, C, 3) what is to be added to each mean size, as a share of it."""
    classes: Tensor
    """(B, P, C) logits."""

    @property
    def is_object(self) -> Tensor:
        """(B, P) bool."""
        return self.objectness[..., 1] > self.objectness[..., 0]

    def boxes(self, mean_sizes: Tensor) -> Tensor:
        """(B, P, 6): centre and size in metres, of mean sizes (C, 3); no size is negative."""
        best = self.size_scores.argmax(-1, keepdim=True)
        residual = self.size_residuals.gather(2, best[..., None].expand(-1, -1, -1, 3))[:, :, 0]
        sizes = mean_sizes[best[..., 0]] * (1 + residual)
        return torch.cat([self.centres, sizes.clamp_min(0)], -1)


class Voting(nn.Module):
    """Each seed's vote: where its object's centre is, and the vote's features, of length 1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.units, self.out = units(width, (width, width)), nn.Linear(width, 3 + width)

    def forward(self, seeds: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Seeds (B, S, 3) and features (B, S, C) to votes of the same shapes."""
        out = self.out(self.units(features))
        return seeds + out[..., :3], F.normalize(features + out[..., 3:], dim=-1)


class Detector(nn.Module):
    """Points (B, N, 3 + F) to `Proposals`.

    Args:
        num_features: F.
        mean_sizes: (C, 3), of each class, metres.
        sizes: Of its parts.

    Raises:
        HostError: If there is no class, or a mean size is not above 0.
    """

    mean_sizes: Tensor

    def __init__(self, num_features: int, mean_sizes: Sequence[Sequence[float]], sizes: Sizes) -> None:
        super().__init__()
        if not mean_sizes or any(len(size) != 3 or min(size) <= 0 for size in mean_sizes):
            raise HostError(
                f"backbone.kwargs.mean_sizes of {len(mean_sizes)} classes",
                "three sizes above 0, in metres, of each class of objects",
            )
        self.num_features, self.sizes = num_features, sizes
        self.register_buffer("mean_sizes", torch.tensor([list(size) for size in mean_sizes], dtype=torch.float32))
        self.net = PointNet(num_features, sizes.levels, sizes.width, sizes.skip_near_origin)
        self.voting = Voting(self.net.width)
        width = sizes.proposal_width
        self.gather = SetAbstraction(
            self.net.width, sizes.proposals, sizes.radius, sizes.samples, (width,) * 3, sizes.skip_near_origin
        )
        classes = len(mean_sizes)
        self.parts = [*_HEAD[:2], 1, 1, classes, 3 * classes, classes]
        self.head = nn.Sequential(*units(width, (width, width)), nn.Linear(width, sum(self.parts)))

    def forward(self, cloud: Tensor) -> Proposals:
        """
        Raises:
            HostError: If the points have other features, or there are too few.
        """
        self.check(cloud)
        seeds, features, seed_index = self.net(cloud)
        votes, of_votes = self.voting(seeds, features)
        proposals, balls = self.gather(votes, of_votes)
        objectness, offset, heading, turned, size, sized, classes = self.head(proposals).split(self.parts, -1)
        return Proposals(
            seeds, seed_index, votes, balls.centres, balls.members, proposals, objectness, balls.centres + offset,
            heading, turned, size, sized.unflatten(-1, (-1, 3)), classes,
        )  # fmt: skip

    def check(self, cloud: Tensor) -> None:
        """Refuse what are no such points."""
        if cloud.dim() != 3 or cloud.shape[2] != 3 + self.num_features:
            raise HostError(
                f"points {tuple(cloud.shape)}",
                f"this model takes points (B, N, {3 + self.num_features}): x, y, z and {self.num_features} features",
            )
        if cloud.shape[1] < self.sizes.levels[0].centres:
            raise HostError(
                f"rooms of {cloud.shape[1]} points: the detector's first level has {self.sizes.levels[0].centres} "
                "centres",
                "raise data.points, or lower detector.levels in backbone.kwargs",
            )


def shares_of_proposals(proposals: Proposals, truth: Tensor) -> Tensor:
    """Which share of the seeds of each proposal a truth per point (B, N) is of: (B, P)."""
    of_seeds = truth.float().gather(1, proposals.seed_index)
    return take_points(of_seeds.unsqueeze(-1), proposals.gathered).squeeze(-1).mean(-1)
