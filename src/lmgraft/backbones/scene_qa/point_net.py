"""PointNet++ (Qi et al., arXiv 1706.02413) in plain PyTorch: set abstraction and feature propagation.

Points lie in rows, (B, N, 3), and so do their features, (B, N, C).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmgraft.geometry.points import ball_points, farthest_points, interpolate, take_points


class Unit(nn.Module):
    """A linear map, a batch norm over all rows, and a ReLU: (..., C) to (..., out)."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(width, out, bias=False), nn.BatchNorm1d(out)

    def forward(self, x: Tensor) -> Tensor:
        return self.normed(self.linear(x))

    def normed(self, x: Tensor) -> Tensor:
        """What comes behind the linear map."""
        rows: Tensor = self.norm(x.reshape(-1, x.shape[-1]))
        return F.relu(rows, inplace=True).view(x.shape)


def units(width: int, widths: Sequence[int]) -> nn.Sequential:
    """One `Unit` behind the other."""
    return nn.Sequential(*(Unit(a, b) for a, b in zip([width, *widths], widths, strict=False)))


class Balls(NamedTuple):
    """Which points a set abstraction has gathered."""

    chosen: Tensor
    """(B, G) int64, the points that are the centres."""
    centres: Tensor
    """(B, G, 3)"""
    members: Tensor
    """(B, G, K) int64, the points around each of them."""


class SetAbstraction(nn.Module):
    """Points to fewer ones: each centre takes the maximum over the points of a ball around it.

    Args:
        width: C, of the points' features; 0 for none.
        centres: G, by farthest point sampling.
        radius: Of the balls, in metres.
        samples: K, points of a ball.
        widths: Of the units that each point passes, with its place relative to the centre / radius.
        skip_near_origin: See `farthest_points`.
    """

    def __init__(
        self,
        width: int,
        centres: int,
        radius: float,
        samples: int,
        widths: Sequence[int],
        skip_near_origin: bool = False,
    ) -> None:
        super().__init__()
        self.centres, self.radius, self.samples = centres, radius, samples
        self.skip_near_origin = skip_near_origin
        self.first, self.rest = Unit(3 + width, widths[0]), units(widths[0], widths[1:])

    def gather(self, points: Tensor) -> Balls:
        """The centres of points (B, N, 3) and what lies around them."""
        chosen = farthest_points(points, self.centres, skip_near_origin=self.skip_near_origin)
        centres = take_points(points, chosen)
        return Balls(chosen, centres, ball_points(points, centres, self.radius, self.samples))

    def forward(self, points: Tensor, features: Tensor) -> tuple[Tensor, Balls]:
        """Points (B, N, 3) with features (B, N, C) to features (B, G, widths[-1]) of the centres, and the balls."""
        balls = self.gather(points)
        around = (take_points(points, balls.members) - balls.centres.unsqueeze(2)) / self.radius
        weight = self.first.linear.weight
        of_place, of_features = weight[:, :3], weight[:, 3:]
        # A point is multiplied once, and not in each ball that it lies in.
        x = F.linear(around, of_place) + take_points(F.linear(features, of_features), balls.members)
        return self.rest(self.first.normed(x)).amax(2), balls


class FeaturePropagation(nn.Module):
    """Features of few points to more of them: interpolated, beside their own, and passed through units."""

    def __init__(self, width: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.units = units(width, widths)

    def forward(self, places: Tensor, features: Tensor, known: Tensor, values: Tensor) -> Tensor:
        """Places (B, N, 3) with features (B, N, C), and points (B, G, 3) with values (B, G, E), to (B, N, out)."""
        out: Tensor = self.units(torch.cat([interpolate(values, known, places), features], -1))
        return out


class Level(NamedTuple):
    """One set abstraction: centres, radius in metres, points of a ball, and widths of its units."""

    centres: int
    radius: float
    samples: int
    widths: tuple[int, ...]


class PointNet(nn.Module):
    """Points (B, N, 3 + F) to seeds: points of the second level, with what all levels know of them.

    Args:
        num_features: F.
        levels: Two or more, ever fewer and larger balls.
        width: Of a seed's features.
        skip_near_origin: See `farthest_points`.
    """

    def __init__(self, num_features: int, levels: Sequence[Level], width: int, skip_near_origin: bool = False) -> None:
        super().__init__()
        inputs = [num_features, *(level.widths[-1] for level in levels)]
        self.down = nn.ModuleList(
            SetAbstraction(before, *level, skip_near_origin) for before, level in zip(inputs, levels, strict=False)
        )
        self.up = nn.ModuleList()
        coarse = inputs[-1]
        for fine in inputs[-2:1:-1]:
            self.up.append(FeaturePropagation(coarse + fine, (width, width)))
            coarse = width
        self.width = coarse

    def forward(self, cloud: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Seeds (B, S, 3), their features (B, S, width), and which points they are, (B, S) int64."""
        points, features = cloud[..., :3], cloud[..., 3:]
        levels: list[tuple[Tensor, Tensor]] = []
        chosen = None
        for depth, level in enumerate(self.down):
            features, balls = level(points, features)
            points = balls.centres
            if depth < 2:
                chosen = balls.chosen if chosen is None else chosen.gather(1, balls.chosen)
            levels.append((points, features))
        assert chosen is not None
        known, values = levels.pop()
        for propagation in self.up:
            places, of_places = levels.pop()
            known, values = places, propagation(places, of_places, known, values)
        return known, values, chosen
