"""Which shapes are nearly equal, so that none of them lies in training while its like lies in the test.

A shape's signature are its distances from fixed points of space (basis point sets, Prokudin et al., arXiv 1908.09186).
Two samplings of one surface differ by some noise; shapes are called near where they differ by no more than all but one
in a hundred pairs of samplings of one surface do. Groups are what chains of near shapes join.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lmgraft.data.files import as_names
from lmgraft.data.holdout import name_hashes
from lmgraft.data.points.meshes import Array

_BASIS, _SEED = 256, 0
_AT_ONCE = 1024
Index = npt.NDArray[np.int64]


def signatures(clouds: Array) -> Tensor:
    """(N, 256): how far each of 256 fixed points of the unit ball is from the nearest of a cloud's points (n, 3)."""
    draw = np.random.Generator(np.random.Philox(_SEED))
    ways = draw.standard_normal((_BASIS, 3))
    basis = ways / np.linalg.norm(ways, axis=1, keepdims=True) * np.cbrt(draw.random((_BASIS, 1)))
    fixed = torch.from_numpy(basis.astype(np.float32))
    return torch.stack([torch.cdist(fixed, torch.from_numpy(cloud)).amin(1) for cloud in clouds])


def differences(one: Tensor, other: Tensor) -> Tensor:
    """(N, M): root mean square differences of signatures (N, 256) and (M, 256)."""
    gaps: Tensor = torch.cdist(one, other) / one.shape[1] ** 0.5
    return gaps


def noise(once: Tensor, again: Tensor) -> float:
    """What all but one in a hundred pairs of samplings of one surface differ by at most."""
    return float((once - again).square().mean(1).sqrt().quantile(0.99))


def near_groups(shapes: Tensor, limit: float) -> Index:
    """(N,) the first shape of each one's group, joined by chains of differences of at most `limit`."""
    parent = np.arange(len(shapes))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = int(parent[i])
        return i

    for first in range(0, len(shapes), _AT_ONCE):
        rows, columns = torch.nonzero(differences(shapes[first : first + _AT_ONCE], shapes) <= limit, as_tuple=True)
        for i, j in zip((rows + first).tolist(), columns.tolist(), strict=True):
            a, b = root(i), root(j)
            parent[max(a, b)] = min(a, b)
    return np.array([root(i) for i in range(len(shapes))], np.int64)


@dataclass(frozen=True)
class Nearness:
    """What was measured of the shapes of two splits: for the record of a set."""

    least: float
    """The least difference of a shape of one from one of the other."""
    median: float
    """The median over the shapes of one, of the least difference from the other."""


def between(one: Tensor, other: Tensor) -> Nearness:
    """How near the shapes of two splits come to each other."""
    least = torch.cat([differences(part, other).amin(1) for part in torch.split(one, _AT_ONCE)])
    return Nearness(float(least.min()), float(least.median()))


def split_groups(
    groups: Index, labels: Index, names: Sequence[str], shares: Mapping[str, float]
) -> npt.NDArray[np.str_]:
    """(N,) "train" or the name of a share, whole groups at a time, so that each class has about its share of each.

    Groups are taken in the order of a hash of their first shape's name; one that is too large for a share is for
    training.

    Args:
        groups: (N,) as `near_groups` gives them.
        labels: (N,).
        names: Of the shapes; they fix the split.
        shares: Name -> share of each class's shapes.
    """
    split = np.full(len(groups), "train", f"<U{max(map(len, ('train', *shares)))}")
    hashes = name_hashes(as_names(list(names)))
    for label in np.unique(labels):
        of_class = np.flatnonzero(labels == label)
        wanted = {name: share * len(of_class) for name, share in shares.items()}
        for group in sorted(set(groups[of_class].tolist()), key=lambda g: hashes[g]):
            members = np.flatnonzero(groups == group)
            if labels[group] != label:
                continue  # a group of several classes is its first shape's
            for name in shares:
                if len(members) <= wanted[name]:
                    split[members] = name
                    wanted[name] -= len(members)
                    break
    return split
