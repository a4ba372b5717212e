"""Named YAML configurations, checked against typed signatures before anything runs.

A recipe is one YAML file; a `debug` sibling of it runs in seconds. Here a recipe becomes a
model, data and a task, and a run folder can be trained, resumed and evaluated.
"""

from typing import TYPE_CHECKING

from lmgraft.recipes.arms import ARMS
from lmgraft.recipes.composing import list_recipes
from lmgraft.recipes.recipe import Recipe, load_recipe, recipe_parser
from lmgraft.registry import lazily
from lmgraft.versions import check_versions

if TYPE_CHECKING:
    from lmgraft.recipes.build import build_model
    from lmgraft.recipes.result import Result, read_result
    from lmgraft.recipes.run import evaluate_run, load_trained, train_run

__all__ = [
    "ARMS",
    "Recipe",
    "Result",
    "build_model",
    "evaluate_run",
    "list_recipes",
    "load_recipe",
    "load_trained",
    "read_result",
    "recipe_parser",
    "train_run",
]

check_versions("image")

_RUN = ("evaluate_run", "load_trained", "train_run")  # with Lightning, which takes seconds to import
__getattr__ = lazily(
    __name__,
    dict.fromkeys(_RUN, f"{__name__}.run")
    | dict.fromkeys(("Result", "read_result"), f"{__name__}.result")
    | {"build_model": f"{__name__}.build"},
)
