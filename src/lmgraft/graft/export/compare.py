"""Does a program compute what the model computes? Inputs to try, and how far results lie apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lmgraft.errors import ExportError

TOLERANCE = 1e-4
"""A program whose output differs more from the model's, ||a - b|| / ||b||, is not written."""

Inputs = tuple[Tensor, ...]
Axes = Sequence[Mapping[int, str]]
"""Of each input, the axes that take any size, and their names."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """How one input came out."""

    inputs: str
    """"example", or "random" of the same mean and spread."""
    batch: int
    max_abs_error: float
    relative_error: float
    """||a - b|| / ||b||, of the worst output."""


def compare(
    run: Callable[[Inputs], Sequence[Tensor]], model: nn.Module, example: Inputs, axes: Axes
) -> tuple[Check, ...]:
    """`run` beside the eager `model`, on the example and on random inputs, of other sizes too where `axes` allow it.

    Raises:
        ExportError: If an output differs by more than `TOLERANCE`, or by shape.
    """
    given = len(example[0])
    tried = [("example", example)]
    for batch in sorted({1, 3, given} - {given}) if any(axes) else [given]:
        pairs = zip(example, axes, strict=True)
        tried.append(("random", tuple(_random_like(_resized(x, named, batch), batch) for x, named in pairs)))
    checks = tuple(_check(run, model, name, inputs) for name, inputs in tried)
    # Written so that a NaN fails too.
    failed = next((check for check in checks if not check.relative_error <= TOLERANCE), None)
    if failed is not None:
        raise ExportError(
            f"the program's output differs from the model's by {failed.relative_error:.1e} "
            f"({failed.inputs} input, batch {failed.batch}; at most {TOLERANCE:.0e} is accepted)",
            "export in float32 (model.float()), and check that the model gives finite numbers; "
            "without the check (check=False, --no-check) it is written as it is",
        )
    return checks


def _check(run: Callable[[Inputs], Sequence[Tensor]], model: nn.Module, name: str, inputs: Inputs) -> Check:
    with torch.no_grad():
        expected = tensors_in(model(*inputs))
    outputs = run(inputs)
    shapes, wanted = [tuple(t.shape) for t in outputs], [tuple(t.shape) for t in expected]
    if shapes != wanted:
        raise ExportError(
            f"the program gives outputs of shape {shapes}, the model {wanted} ({name} input, batch {len(inputs[0])})",
            "export with fixed sizes (dynamic_batch=False)",
        )
    pairs = [(a.detach().cpu().double(), b.cpu().double()) for a, b in zip(outputs, expected, strict=True)]
    return Check(
        inputs=name,
        batch=len(inputs[0]),
        max_abs_error=max(float((a - b).abs().max()) for a, b in pairs),
        relative_error=max(_relative(a, b) for a, b in pairs),
    )


def tensors_in(output: Any) -> list[Tensor]:
    """The tensors of a model's output, in the order in which a program returns them."""
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def _relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm()) if not torch.equal(a, b) else 0.0


def _resized(x: Tensor, named: Mapping[int, str], more: int) -> Tensor:
    """With axes other than the batch longer by so much, what is there repeated."""
    for axis in (axis for axis in named if axis):
        x = x.index_select(axis, torch.arange(x.shape[axis] + more, device=x.device) % x.shape[axis])
    return x


def _random_like(x: Tensor, batch: int) -> Tensor:
    generator = torch.Generator().manual_seed(batch)
    if not x.is_floating_point():  # indices or masks: rows of the example, which are sure to be in range
        return x[torch.randint(len(x), (batch,), generator=generator).to(x.device)]
    drawn = torch.randn(batch, *x.shape[1:], generator=generator)
    wide = x.detach().float().cpu()
    spread = float(wide.std(correction=0)) or 1.0
    return (drawn * spread + wide.mean()).to(device=x.device, dtype=x.dtype)
