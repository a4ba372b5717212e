"""Floating-point operations of a model, counted.

Counted are matrix products and convolutions, two operations a multiply-add, forward and backward, as
`torch.utils.flop_counter` sees them dispatched; elementwise work, norms, softmax and the optimiser's step
are not. Attention is run by its plain products (the fused CPU kernel is not counted at all, and fused
backward passes recompute).

Nothing is multiplied: tensors are fake, with shapes and no numbers, so that the recipe's whole batch is
counted in a second. The graft is counted in the form that its planner chooses for that batch on a CPU in
float32, whatever machine counts: the same recipe has the same count everywhere. On a GPU, in 16 bits or
with another batch the planner may choose a form of other cost.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import Parameter
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from lmgraft.graft import find_graft
from lmgraft.graft.layer import baked
from lmgraft.recipes.recipe import Recipe
from lmgraft.training.features import OnTokens, encode, freeze_encoder


@dataclass(frozen=True, kw_only=True)
class FlopCount:
    """Floating-point operations for each item."""

    train: float
    """Of a training step, forward and backward; from stored tokens on where the encoder is frozen."""
    evaluation: float
    """Of an evaluation, from the item to the model's output."""
    batch_size: int
    """That was counted: the graft's form, and what items share in it, depend on it."""


def flops_of(model: nn.Module, recipe: Recipe, *, batch_size: int | None = None) -> FlopCount:
    """What a step of the recipe's model takes; the model stays as it is.

    Args:
        recipe: With its data set up, as far as they must be to know what the model is to put out.
        batch_size: Items of a step; None for the recipe's.
    """
    batch = batch_size or recipe.data.batch_size
    example = recipe.data.typical(batch)
    twin = copy.deepcopy(model, {id(t): t for t in (*model.parameters(), *model.buffers())})
    with _fakes() as mode, sdpa_kernel(SDPBackend.MATH):
        _fake_tensors(twin, mode)
        task = recipe.task(twin)
        items, inputs = (
            tree_map_only(Tensor, mode.from_tensor, drawn)
            for drawn in (task.inputs(example), task.training_inputs(example))
        )
        trained: nn.Module = twin.train()
        if recipe.features.cached:
            inputs, trained = (encode(twin, *items),), OnTokens(freeze_encoder(twin))
        with FlopCounterMode(display=False) as train, torch.enable_grad():
            out = [t for t in tree_leaves(trained(*inputs)) if isinstance(t, Tensor) and t.requires_grad]
            torch.autograd.backward([t.float().square().mean() for t in out])
        twin.eval()
        with torch.no_grad(), _folds_ready(twin), FlopCounterMode(display=False) as evaluation:
            twin(*items)
    return FlopCount(
        train=train.get_total_flops() / batch,
        evaluation=evaluation.get_total_flops() / batch,
        batch_size=batch,
    )


@contextmanager
def _fakes() -> Iterator[FakeTensorMode]:
    with warnings.catch_warnings(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        # The graft remembers by address what was read; it can do without where there is none.
        warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")
        yield mode


@contextmanager
def _folds_ready(model: nn.Module) -> Iterator[None]:
    """Inside, folds that an evaluation keeps from batch to batch cost nothing."""
    inserted = find_graft(model)
    posed = [] if inserted is None else inserted.problems(torch.empty(1, 2, inserted.host.embed_dim))
    with baked(model) if posed and posed[0].folds_ready else nullcontext():
        yield


def _fake_tensors(model: nn.Module, mode: FakeTensorMode) -> None:
    """Put fake tensors in the place of the real ones, which are left alone: other models may hold them."""
    made: dict[int, Tensor] = {}

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            like = mode.from_tensor(tensor.detach())
            made[id(tensor)] = Parameter(like, tensor.requires_grad) if isinstance(tensor, Parameter) else like
        return made[id(tensor)]

    for module in model.modules():
        for name, parameter in module._parameters.items():
            module._parameters[name] = None if parameter is None else fake(parameter)  # type: ignore[assignment]
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else fake(buffer)
