"""What a recipe's model costs in counted operations, and the plain encoder that costs as much."""

from __future__ import annotations

from lmgraft.recipes.build import build_model
from lmgraft.recipes.equal_flops import EqualFlops, nearest_encoder
from lmgraft.recipes.flops import FlopCount, flops_of
from lmgraft.recipes.recipe import Recipe


def count_flops(recipe: Recipe, *, batch_size: int | None = None) -> FlopCount:
    """What a step of the recipe's model takes; builds the model.

    Args:
        recipe: With its data set up, as far as they must be to know what the model is to put out.
        batch_size: Items of a step; None for the recipe's.

    Raises:
        LmgraftError: If the model cannot be built.
    """
    return flops_of(build_model(recipe), recipe, batch_size=batch_size)


def equal_flops(recipe: Recipe) -> EqualFlops:
    """What the recipe's arm makes larger in its encoder, and how near that comes to the other arm's operations.

    Raises:
        RecipeError: If it is no such arm, or the encoder cannot grow.
    """
    return nearest_encoder(recipe, build_model)
