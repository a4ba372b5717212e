"""Folds that are kept between calls, where and as long as that is safe.

Kept only when no gradient can flow to any tensor in them: autograd is off, or neither mapper nor
block is trained. Thrown away when
- the mapper's values differ from a snapshot (optimisers, and `.data` writes as EMA code makes
  them, which bump no version),
- any tensor in them was replaced, resized, moved, cast, or changed in place under autograd's eyes,
- a sample of a large frozen weight's values, or any value of a small one, differs,
- the graft switches mode, is moved, or loads a state dict (`FoldCache.clear`).

Folds are made outside inference mode, since a tensor made inside breaks later autograd; where the
mapper itself is such a tensor, nothing is kept. A set of folds is one tuple put in place in one
assignment: threads see an old or a new one, each whole. Copies start empty; nothing in here is in
a state dict.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lmgraft.graft.forms.affine import Affine, Fold

_SAMPLE = 1 << 12


@dataclass(frozen=True)
class Folds:
    """The affine map and the folds of those projections that a plan needs."""

    map: Affine
    projections: dict[str, Fold]
    """By "q", "k", "v"."""


@dataclass(frozen=True)
class _Kept:
    marks: tuple[Any, ...]
    snapshots: tuple[Tensor, ...]
    folds: Folds


class FoldCache:
    """At most one set of folds."""

    def __init__(self) -> None:
        self._kept: _Kept | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> FoldCache:
        return FoldCache()

    def __reduce__(self) -> tuple[type[FoldCache], tuple[()]]:
        return FoldCache, ()

    def clear(self) -> None:
        self._kept = None

    def get(
        self,
        trained: Sequence[Tensor],
        frozen: Sequence[Tensor],
        make: Callable[[], Folds],
    ) -> Folds:
        """The kept folds if they are those of today's tensors, else new ones.

        Args:
            trained: Tensors in the folds that somebody may write at any time: compared in full.
            frozen: Tensors that only stray writes change: large ones are compared by a sample.
            make: Computes the folds of every projection.
        """
        if torch._C._are_functorch_transforms_active() or any(
            type(t) not in (Tensor, nn.Parameter) or t.is_inference() for t in trained
        ):
            return make()  # under a transform, a fake tensor, or an inference tensor
        marks = tuple((id(t), t.data_ptr(), t.dtype, t.shape, version(t)) for t in (*trained, *frozen))
        values = (*trained, *(sample(t) for t in frozen))
        kept = self._kept
        if kept is not None and kept.marks == marks and all_equal(kept.snapshots, values):
            return kept.folds
        with torch.inference_mode(False), torch.no_grad():
            snapshots = tuple(v.detach().clone() for v in values)
            folds = packed(make())
        self._kept = _Kept(marks, snapshots, folds)
        return folds


def packed(folds: Folds) -> Folds:
    """The same folds in memory of their own: fresh ones are views, and would keep what they were cut from."""
    projections = {
        name: Fold(f.weight.contiguous(), None if f.bias is None else f.bias.clone())
        for name, f in folds.projections.items()
    }
    return Folds(folds.map, projections)


def version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def sample(tensor: Tensor) -> Tensor:
    flat = tensor.detach().reshape(-1)
    return flat[:: max(1, flat.numel() // _SAMPLE)]


def all_equal(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
