"""Gradient coherence: how much of one item's gradient, or one minibatch's, others agree with.

With the gradients g_i of k of them, ||E g||² / E||g||²; the numerator without bias, as the mean of g_i·g_j over i ≠ j.
Both follow from g_i·g_i and g_i·s with s the sum of all, so that no more than two gradients are ever kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from lmgraft.analysis.student import t_quantile
from lmgraft.errors import RunError
from lmgraft.tasks.base import Task

FEWEST = 3
"""Gradients: of two, none can be left out."""


class Products(NamedTuple):
    """Of k gradients, in float64."""

    squares: Tensor
    """(k,) g_i·g_i."""
    with_sum: Tensor
    """(k,) g_i·s."""


def gradients_of(task: Task, batch: object) -> dict[str, Tensor]:
    """The gradient of a batch's loss flat: of the graft "mappers", of all else that is trained "encoder".

    The model's mode and what its parameters hold as gradients are left as they are.
    """
    trained = {name: p for name, p in task.model.named_parameters() if p.requires_grad}
    parts: dict[str, list[Tensor]] = {}
    if trained:
        loss = task.loss(task.outputs(batch), batch)
        every = torch.autograd.grad(loss, [*trained.values()], allow_unused=True)
        for name, gradient in zip(trained, every, strict=True):
            if gradient is not None:
                parts.setdefault("mappers" if name.startswith("graft.") else "encoder", []).append(
                    gradient.flatten().float()
                )
    return {part: torch.cat(gradients) for part, gradients in parts.items()}


def products(again: Callable[[], Iterable[Mapping[str, Tensor]]]) -> dict[str, Products]:
    """What coherence is made of, by part, from gradients that are gone through twice.

    Args:
        again: Gives the same gradients at each call, one after the other, each with the same parts.
    """
    total: dict[str, Tensor] = {}
    squares: dict[str, list[float]] = {}
    with_sum: dict[str, list[float]] = {}
    for gradients in again():
        for part, one in gradients.items():
            total[part] = total[part].add_(one) if part in total else one.clone()
            squares.setdefault(part, []).append(float(one @ one))
    for gradients in again():
        for part, one in gradients.items():
            with_sum.setdefault(part, []).append(float(one @ total[part]))
    wide = torch.float64
    return {
        part: Products(torch.tensor(squares[part], dtype=wide), torch.tensor(with_sum[part], dtype=wide))
        for part in total
    }


def summed(parts: Iterable[Products]) -> Products:
    """Of all parts together."""
    squares, with_sum = (torch.stack(values).sum(0) for values in zip(*parts, strict=True))
    return Products(squares, with_sum)


def coherence(of: Products) -> float:
    """1 if all gradients are equal, about 0 if they have nothing in common.

    Raises:
        RunError: If there are fewer than two, all are zero or one is not finite.
    """
    squares, with_sum = of
    if len(squares) < 2 or not (squares + with_sum).isfinite().all() or squares.sum() <= 0:
        raise RunError("the gradients are zero or not finite, or there is one alone", "look at the run")
    return float((with_sum.sum() - squares.sum()) / (squares.sum() * (len(squares) - 1)))


def coherence_interval(of: Products) -> tuple[float, float] | None:
    """The 95 % interval over gradients, by the jackknife, within -1 and 1; None of fewer than `FEWEST`.

    Where few gradients are much larger than all others it is too narrow.
    """
    squares, with_sum = of
    k = len(squares)
    if k < FEWEST:
        return None
    others = squares.sum() - squares
    common = with_sum.sum() - 2 * with_sum + squares - others
    without = common / (others * (k - 2))
    half = t_quantile(0.95, k - 1) * float(((k - 1) / k * (without - without.mean()).square().sum()).sqrt())
    value = coherence(of)
    return max(-1.0, value - half), min(1.0, value + half)
