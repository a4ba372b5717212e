"""Floating-point operations of a recipe's model, counted; and a plain encoder made as large as another arm costs.

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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import Parameter
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from lmgraft.errors import HostError, RecipeError
from lmgraft.graft import find_graft
from lmgraft.graft.layer import baked
from lmgraft.recipes.arms import ARMS
from lmgraft.recipes.recipe import Recipe
from lmgraft.training.features import OnTokens, encode, freeze_encoder

Build = Callable[[Recipe], nn.Module]
"""`build_model`, given to those whom it calls."""


@dataclass(frozen=True, kw_only=True)
class FlopCount:
    """Floating-point operations for each image."""

    train: float
    """Of a training step, forward and backward; from stored tokens on where the encoder is frozen."""
    evaluation: float
    """Of an evaluation, from the image to the logits."""
    batch_size: int
    """That was counted: the graft's form, and what images share in it, depend on it."""


@dataclass(frozen=True, kw_only=True)
class EqualFlops:
    """An encoder whose training step costs about what another arm's does."""

    kwargs: dict[str, Any]
    """To be laid over the recipe's backbone.kwargs."""
    train: float
    """Operations an image of a training step of this encoder."""
    target: float
    """Those of the other arm."""

    @property
    def ratio(self) -> float:
        """What was reached: train / target."""
        return self.train / self.target


def count_flops(recipe: Recipe, *, batch_size: int | None = None) -> FlopCount:
    """What a step of the recipe's model takes; builds the model.

    Args:
        recipe: With its data set up, as far as they must be to know the number of classes.
        batch_size: Images of a step; None for the recipe's.

    Raises:
        LmgraftError: If the model cannot be built.
    """
    from lmgraft.recipes.run import build_model  # it needs this module

    return flops_of(build_model(recipe), recipe, batch_size=batch_size)


def flops_of(model: nn.Module, recipe: Recipe, *, batch_size: int | None = None) -> FlopCount:
    """As `count_flops`, of the recipe's model where it is at hand; the model stays as it is."""
    batch = batch_size or recipe.data.batch_size
    shape = (batch, recipe.data.in_chans, *recipe.data.img_size)
    twin = copy.deepcopy(model, {id(t): t for t in (*model.parameters(), *model.buffers())})
    with _fakes() as mode, sdpa_kernel(SDPBackend.MATH):
        _fake_tensors(twin, mode)
        images = torch.empty(shape)
        trained: nn.Module = twin.train()
        inputs = images
        if recipe.features.cached:
            inputs, trained = encode(twin, images), OnTokens(freeze_encoder(twin))
        with FlopCounterMode(display=False) as train, torch.enable_grad():
            out = [t for t in tree_leaves(trained(inputs)) if isinstance(t, Tensor) and t.is_floating_point()]
            torch.autograd.backward([t.float().square().mean() for t in out])
        twin.eval()
        with torch.no_grad(), _folds_ready(twin), FlopCounterMode(display=False) as evaluation:
            twin(images)
    return FlopCount(
        train=train.get_total_flops() / batch,
        evaluation=evaluation.get_total_flops() / batch,
        batch_size=batch,
    )


def larger_encoder(recipe: Recipe, build: Build) -> dict[str, Any]:
    """Arguments that the recipe's arm lays over backbone.kwargs: none, those of the recipe, or those it chooses."""
    if ARMS[recipe.arm].equal_flops is None:
        return {}
    return dict(recipe.backbone.equal_flops) or dict(equal_flops(recipe, build).kwargs)


def settled(recipe: Recipe, build: Build) -> Recipe:
    """The recipe with what its arm chooses written into backbone.equal_flops, so that no run of it chooses again."""
    chosen = larger_encoder(recipe, build)
    if chosen == recipe.backbone.equal_flops or not chosen:
        return recipe
    content = yaml.safe_load(recipe.yaml)
    content["backbone"]["equal_flops"] = chosen
    text = yaml.safe_dump(content, sort_keys=False)
    return replace(recipe, backbone=replace(recipe.backbone, equal_flops=chosen), yaml=text)


def equal_flops(recipe: Recipe, build: Build) -> EqualFlops:
    """The `depth` at which a plain encoder's training step costs nearest to that of the arm it is compared with.

    A function of the recipe alone: only counted operations decide, no times.

    Args:
        recipe: Its arm names the other arm; its backbone.kwargs are that arm's.
        build: `build_model`.

    Raises:
        RecipeError: If the encoder has no `depth` or begins with pretrained weights, or is not trained.
    """
    other = ARMS[recipe.arm].equal_flops
    if other is None:
        raise RecipeError(f"arm {recipe.arm} is not made as large as another", "choose arm plain_equal_flops")
    data = recipe.data
    key = (recipe.yaml, data.batch_size, data.num_classes, data.in_chans, data.img_size)
    if key not in _chosen:
        _check_it_can_grow(recipe)
        target = flops_of(build(replace(recipe, arm=other)), recipe).train  # type: ignore[arg-type]
        depth, train = _nearest(lambda depth: _train_flops(recipe, depth, build), target, recipe)
        _chosen[key] = EqualFlops(kwargs={"depth": depth}, train=train, target=target)
    return _chosen[key]


_chosen: dict[tuple[Any, ...], EqualFlops] = {}
"""A run builds its model several times."""


def _check_it_can_grow(recipe: Recipe) -> None:
    if recipe.backbone.kwargs.get("pretrained"):
        raise RecipeError(
            f"arm {recipe.arm} with backbone.kwargs.pretrained: there are no pretrained weights of a deeper encoder",
            "leave the arm out, or set backbone.kwargs.pretrained to false in all arms",
        )
    if recipe.features.cached:
        raise RecipeError(
            f"arm {recipe.arm} with features.cached: a deeper encoder would not be trained", "leave the arm out"
        )


def _train_flops(recipe: Recipe, depth: int, build: Build) -> float:
    backbone = replace(recipe.backbone, kwargs=recipe.backbone.kwargs | {"depth": depth})
    return flops_of(build(replace(recipe, arm="plain", backbone=backbone)), recipe).train


def _nearest(count: Callable[[int], float], target: float, recipe: Recipe) -> tuple[int, float]:
    """The depth, 1 or more, whose count is nearest to `target`, and that count; layers cost alike."""
    try:
        first, second = count(1), count(2)
    except HostError as error:
        raise _no_depth(recipe, error.message) from error
    if not second > first:
        raise _no_depth(recipe, "depth=2 costs no more than depth=1")
    depth = max(1, round((target - first) / (second - first)) + 1)
    counts = {d: count(d) for d in (depth - 1, depth, depth + 1) if d >= 1}
    found = min(counts, key=lambda d: (abs(counts[d] - target), d))
    return found, counts[found]


def _no_depth(recipe: Recipe, why: str) -> RecipeError:
    return RecipeError(
        f"arm {recipe.arm} chooses a depth, and {recipe.backbone.name!r} takes none ({why})",
        "say in the recipe how it is made larger, for instance backbone.equal_flops: {embed_dim: 256}, and compare "
        "with lmgraft.recipes.cost.count_flops",
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
