"""A plain encoder made as large as another arm costs.

To build a recipe's model is to ask here first, so this room knows `build_model` only as it is handed in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import yaml
from torch import nn

from lmgraft.errors import HostError, RecipeError
from lmgraft.recipes.arms import ARMS
from lmgraft.recipes.flops import flops_of
from lmgraft.recipes.recipe import Recipe
from lmgraft.registry import DEPTHS

Build = Callable[[Recipe], nn.Module]
"""`build_model`."""


@dataclass(frozen=True, kw_only=True)
class EqualFlops:
    """An encoder whose training step costs about what another arm's does."""

    kwargs: dict[str, Any]
    """To be laid over the recipe's backbone.kwargs."""
    train: float
    """Operations an item of a training step of this encoder."""
    target: float
    """Those of the other arm."""

    @property
    def ratio(self) -> float:
        """What was reached: train / target."""
        return self.train / self.target


def larger_encoder(recipe: Recipe, build: Build) -> dict[str, Any]:
    """Arguments that the recipe's arm lays over backbone.kwargs: none, those of the recipe, or those it chooses."""
    if ARMS[recipe.arm].equal_flops is None:
        return {}
    return dict(recipe.backbone.equal_flops) or dict(nearest_encoder(recipe, build).kwargs)


def settled(recipe: Recipe, build: Build) -> Recipe:
    """The recipe with what its arm chooses written into backbone.equal_flops, so that no run of it chooses again."""
    chosen = larger_encoder(recipe, build)
    if chosen == recipe.backbone.equal_flops or not chosen:
        return recipe
    content = yaml.safe_load(recipe.yaml)
    content["backbone"]["equal_flops"] = chosen
    text = yaml.safe_dump(content, sort_keys=False)
    return replace(recipe, backbone=replace(recipe.backbone, equal_flops=chosen), yaml=text)


def nearest_encoder(recipe: Recipe, build: Build) -> EqualFlops:
    """The depth at which a plain encoder's training step costs nearest to that of the arm it is compared with.

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
    key = (recipe.yaml, data.batch_size, repr(data.model_arguments()))
    if key not in _chosen:
        _check_it_can_grow(recipe)
        target = flops_of(build(replace(recipe, arm=other)), recipe).train
        depth, train = _nearest(lambda depth: _train_flops(recipe, depth, build), target, recipe)
        _chosen[key] = EqualFlops(kwargs=_of_depth(recipe, depth), train=train, target=target)
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


def _of_depth(recipe: Recipe, depth: int) -> dict[str, Any]:
    return {DEPTHS.get(recipe.backbone.factory, "depth"): depth}


def _train_flops(recipe: Recipe, depth: int, build: Build) -> float:
    backbone = replace(recipe.backbone, kwargs=recipe.backbone.kwargs | _of_depth(recipe, depth))
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
