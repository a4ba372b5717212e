"""Which block computes a call: the exact one, or its rounded twin where that was asked for.

The twin is used in eval mode, where no gradient can flow and nobody watches the block's modules;
never while a compiler, a tracer or a functorch transform looks on. Everything else is exact.

It is dropped for good when any weight of the block was replaced, moved, cast or changed (marks
and samples as in `cache.py`): an error that was measured for other weights says nothing. It is
part of no state dict, copy or pickle: copies are exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lmgraft.block import FrozenBlock
from lmgraft.block.rounded import HalfProjection, Int8Projection, round_block
from lmgraft.contracts import is_traced
from lmgraft.graft.forms.cache import all_equal, sample, version
from lmgraft.graft.forms.run import is_watched


@dataclass(frozen=True)
class _Twin:
    mode: str
    block: FrozenBlock
    marks: tuple[Any, ...]
    samples: tuple[Tensor, ...]


class Approximation:
    """At most one rounded twin of a graft's block."""

    def __init__(self) -> None:
        self._twin: _Twin | None = None
        self.calls = 0
        """How many calls the twin has computed."""
        self.paused = False
        """Exact for the moment, the twin kept."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Approximation:
        return Approximation()

    def __reduce__(self) -> tuple[type[Approximation], tuple[()]]:
        return Approximation, ()

    @property
    def mode(self) -> str | None:
        """What the twin is computed in; None where everything is exact."""
        twin = self._twin
        return None if twin is None else twin.mode

    def make(self, block: FrozenBlock, mode: str) -> None:
        """From now on, compute by a twin of `block` where that is allowed."""
        twin = round_block(block, mode)
        with torch.inference_mode(False), torch.no_grad():
            samples = tuple(sample(p).clone() for p in block.parameters())
        self._twin = _Twin(mode, twin, _marks(block), samples)

    def clear(self) -> None:
        self._twin = None

    def added_memory(self) -> int:
        """Bytes of rounded weights made so far."""
        twin = self._twin
        modules = () if twin is None else twin.block.modules()
        return sum(m.added_memory() for m in modules if isinstance(m, HalfProjection | Int8Projection))

    def block(self, graft: Any, block: FrozenBlock, x: Tensor) -> FrozenBlock:
        """`block` of `graft`, or its twin, for input `x`."""
        twin = self._twin
        if twin is None or self.paused or not _may_round(graft, block, x):
            return block
        if twin.marks != _marks(block) or not all_equal(twin.samples, [sample(p) for p in block.parameters()]):
            self.clear()
            return block
        self.calls += 1
        return twin.block


def _may_round(graft: Any, block: FrozenBlock, x: Tensor) -> bool:
    if is_traced() or torch._C._are_functorch_transforms_active():
        return False
    if graft.training or type(x) is not Tensor:
        return False
    if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in graft.parameters())):
        return False
    return not is_watched(block.modules())


def _marks(block: FrozenBlock) -> tuple[Any, ...]:
    return tuple((id(p), p.data_ptr(), p.device, p.dtype, p.shape, version(p)) for p in block.parameters())
