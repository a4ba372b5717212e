"""What a graft does in a call, watched from outside; and a graft made to follow a given plan.

Both lie in the instance's own `__dict__`, over the methods of its class, and are taken away again:
what is watched or timed is the graft's real way, with its caches, mappers and residual.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from lmgraft.contracts import Reads
from lmgraft.graft import GraftLayer
from lmgraft.graft.forms.compute import Compute
from lmgraft.graft.forms.plan import layer_problems
from lmgraft.graft.forms.problem import LayerPlan, Problem


@dataclass
class Call:
    """One call of a graft."""

    x: Tensor
    """(B, T, V), as the host gave it."""
    mask: Tensor | None
    reads: Reads
    received: Tensor | None = None
    problems: list[Problem] = field(default_factory=list)
    """Of each layer, as the planner saw them; empty where it was not asked."""
    plans: tuple[LayerPlan, ...] = ()
    """One for each layer; empty for the dense form."""


@contextmanager
def observed(inserted: GraftLayer) -> Iterator[list[Call]]:
    """A list that grows by a `Call` each time `inserted` runs inside."""
    calls: list[Call] = []

    def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x, mask = (*args, kwargs.get("key_padding_mask"))[:2]
        calls.append(Call(x, mask, kwargs.get("reads"), kwargs.get("received")))

    compute = inserted.compute

    def plan(*args: Any) -> tuple[LayerPlan, ...]:
        calls[-1].plans = Compute.plan(compute, *args)
        return calls[-1].plans

    def problem(*args: Any) -> Problem:
        whole = Compute.problem(compute, *args)
        calls[-1].problems = layer_problems(whole, len(inserted.block.layers))
        return whole

    handle = inserted.register_forward_pre_hook(begin, with_kwargs=True)
    compute.__dict__.update(plan=plan, problem=problem)
    try:
        yield calls
    finally:
        handle.remove()
        for name in ("plan", "problem"):
            compute.__dict__.pop(name, None)


@contextmanager
def following(inserted: GraftLayer, plans: Sequence[LayerPlan] | None) -> Iterator[None]:
    """Inside, `inserted` computes its block by `plans`, or in the dense form for None."""
    config = inserted.config
    inserted.config = replace(config, form="dense" if plans is None else "auto")
    if plans is not None:
        inserted.compute.__dict__["plan"] = lambda *_: tuple(plans)
    try:
        yield
    finally:
        inserted.config = config
        inserted.compute.__dict__.pop("plan", None)
