"""The clouds of one split, as training or as evaluation shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lmgraft.data.base import at_least_one
from lmgraft.data.draws import uniforms
from lmgraft.data.labelled import LabelledSet
from lmgraft.data.loader import Draw, Fault, Reported, in_turn
from lmgraft.data.points.meshes import Array
from lmgraft.data.points.table import CloudTable
from lmgraft.errors import DataError

Turn = Literal["none", "x", "y", "z", "any"]


class PointBatch(NamedTuple):
    """A `LabelledBatch` of clouds whose every point is known to belong to the object, or not."""

    inputs: Tensor
    """(B, N, 3)."""
    labels: Tensor
    index: Tensor  # type: ignore[assignment] # of tuples it is a method
    group: Tensor
    truth: Tensor
    """(B, N) bool, True where a point belongs to the object."""


_POOLS = {1024: 1200, 2048: 2400, 4096: 4800, 8192: 8192}


@dataclass(frozen=True, kw_only=True)
class Shown:
    """How clouds are shown: the keys of every point data set."""

    points: int = 1024
    """Points of a cloud as the model sees it."""
    pool: int | None = None
    """Points, by farthest point sampling, of which training shows a random part; None: Point-BERT's 1200 of 1024, 2400
    of 2048, 4800 of 4096, 8192 of 8192, and otherwise a sixth more than `points`."""
    scale: tuple[float, float] = (2 / 3, 3 / 2)
    """Factors of each axis in training, drawn evenly between these."""
    shift: float = 0.2
    """Largest shift along each axis in training."""
    turn: Turn = "none"
    """Axis about which training turns each cloud by a random angle; any: a random rotation."""
    votes: int = 1
    """How often a test cloud is shown, each time another random part, scaled and shifted as in training; outputs are
    averaged. 1: once, by farthest point sampling, as the paper's figures are."""
    skip_near_origin: bool = False
    """Sample as the CUDA kernel of pointnet2, which passes over points near the origin."""

    def __post_init__(self) -> None:
        at_least_one(points=self.points, votes=self.votes)
        if self.pool is not None and self.pool < self.points:
            raise DataError(f"data.pool={self.pool} is below data.points={self.points}", "make it at least as large")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise DataError(f"data.scale={list(self.scale)}", "give two positive factors, the smaller one first")
        if self.shift < 0:
            raise DataError(f"data.shift={self.shift} must not be negative")

    @property
    def kept(self) -> int:
        """Points of a cloud that are kept in memory."""
        return _POOLS.get(self.points, -(-self.points * 7 // 6)) if self.pool is None else self.pool


class CloudSet(LabelledSet):
    """Some clouds of a table.

    Args:
        table: All clouds of the source.
        index: Which of them, in order.
        labels: (N,) classes of all clouds.
        names: Where each cloud lies, for messages.
        shown: How they are shown.
        draws: "train": random parts, changed at random, an unreadable cloud replaced by the next; "votes": the same,
            several times, but an unreadable cloud is all zero; "none": the first points, without any draw.
        seed: Of the draws.
        groups: (N,) which of all clouds belong together; None: each by itself.
    """

    def __init__(
        self,
        table: CloudTable,
        index: npt.NDArray[np.int64],
        labels: npt.NDArray[np.int64],
        names: Sequence[str],
        shown: Shown,
        *,
        draws: Literal["train", "votes", "none"] = "none",
        seed: int = 0,
        groups: npt.NDArray[np.int64] | None = None,
    ) -> None:
        self.table, self.names, self.shown, self.draws, self.seed = table, names, shown, draws, seed
        self.replaces = draws == "train"
        self.indices = torch.from_numpy(np.asarray(index, np.int64))
        self.labels = torch.from_numpy(labels[index])
        self._groups = self.indices if groups is None else torch.from_numpy(groups[index])

    @property
    def groups(self) -> Tensor:  # type: ignore[override]
        return self._groups

    def place(self, index: int) -> str:
        return self.names[index]

    def __getitems__(self, draws: list[Draw]) -> Reported:
        faults: list[Fault] = []
        samples = [self._readable(draw.sample, faults) for draw in draws]
        epochs = [draw.epoch for draw in draws]
        if self.draws == "votes":
            samples = [sample for sample in samples for _ in range(self.shown.votes)]
            epochs = list(range(self.shown.votes)) * len(draws)
        which = torch.tensor(samples, dtype=torch.int64)
        source = self.indices[which].numpy()
        clouds = self.table.points[source]
        clouds = clouds[:, : self.shown.points] if self.draws == "none" else self._drawn(clouds, epochs, source)
        batch = self.labelled(torch.from_numpy(np.ascontiguousarray(clouds[..., :3])), which)
        if clouds.shape[2] == 3:
            return Reported(batch, tuple(faults))
        return Reported(PointBatch(*batch, torch.from_numpy(clouds[..., 3] > 0)), tuple(faults))

    def _readable(self, sample: int, faults: list[Fault]) -> int:
        for candidate in in_turn(sample, len(self), len(self) if self.replaces else 1):
            source = int(self.indices[candidate])
            if source not in self.table.reasons:
                return candidate
            faults.append(Fault(self.names[source], self.table.reasons[source]))
        return sample

    def _drawn(self, clouds: Array, epochs: list[int], source: npt.NDArray[np.int64]) -> Array:
        """Random parts (B, points, C) of pools, turned, scaled and shifted."""
        shown, pool = self.shown, clouds.shape[1]
        drawn = uniforms(self.seed, epochs, source, pool + 9)
        if shown.points < pool:
            chosen = np.argpartition(drawn[:, 9:], shown.points - 1, axis=1)[:, : shown.points]
            clouds = np.take_along_axis(clouds, chosen[..., None], 1)
        xyz = clouds[..., :3].astype(np.float64)
        if shown.turn != "none":
            xyz = xyz @ turns(drawn[:, 6:9], shown.turn)
        low, high = shown.scale
        xyz = xyz * (low + (high - low) * drawn[:, None, :3]) + shown.shift * (2 * drawn[:, None, 3:6] - 1)
        return np.concatenate([xyz.astype(np.float32), clouds[..., 3:]], 2)


def turns(drawn: npt.NDArray[np.float64], turn: Turn) -> npt.NDArray[np.float64]:
    """Rotations (B, 3, 3) from uniform numbers (B, 3): about an axis by any angle, or any (Shoemake's quaternions)."""
    angle = 2 * np.pi * drawn
    if turn == "any":
        low, high = np.sqrt(1 - drawn[:, 0]), np.sqrt(drawn[:, 0])
        x, y = low * np.sin(angle[:, 1]), low * np.cos(angle[:, 1])
        z, w = high * np.sin(angle[:, 2]), high * np.cos(angle[:, 2])
        rows = [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
        return np.stack([np.stack(row, -1) for row in rows], 1)
    a, b = (axis for axis in range(3) if axis != "xyz".index(turn))
    rotation = np.tile(np.eye(3), (len(drawn), 1, 1))
    rotation[:, a, a] = rotation[:, b, b] = np.cos(angle[:, 0])
    rotation[:, a, b], rotation[:, b, a] = -np.sin(angle[:, 0]), np.sin(angle[:, 0])
    return rotation
