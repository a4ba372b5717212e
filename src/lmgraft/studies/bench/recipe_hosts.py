"""A recipe's encoder as one of the benchmark: fed a batch of its training items, with its task's loss.

Knows no family; what a recipe says of arm, seed and optimiser counts for nothing here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from torch import Tensor

from lmgraft.data.base import Data, on_device
from lmgraft.errors import HostError
from lmgraft.graft.hosts import find_host
from lmgraft.recipes import Recipe, build_model, load_recipe
from lmgraft.recipes.build import host_spec, set_up_data
from lmgraft.studies.bench.hosts import BenchHost, Draw
from lmgraft.tasks.base import Task

_WIRING = ("at", "reads", "residual", "read_token", "budget", "budget_rule", "precision")
"""Of a recipe's `graft`, what holds for any block."""


def recipe_host(name: str) -> BenchHost:
    """The plain encoder of a recipe, by name or path, untrained, and its training items.

    Raises:
        LmgraftError: If there is no such recipe, its data cannot be had, its step calls the model several times, or
            its encoder is none that blocks follow.
    """
    recipe = _with_data(name)
    model = build_model(recipe)
    host, task = find_host(model), recipe.task(model)
    if host is None:
        raise HostError(f"the encoder of {name} is none that a block can follow", "lmgraft.hosts() lists those")
    if type(task).outputs is not Task.outputs:
        raise HostError(f"a step of {name} calls its model several times", "give a recipe whose task calls it once")
    wiring = {key: getattr(recipe.graft, key) for key in _WIRING}
    return BenchHost(
        model=model,
        draw=draw_items(task, lambda batch: _first_items(recipe.data, batch)),
        depth=len(host.layers),
        graft=wiring | {"host_spec": host_spec(recipe)},
    )


@cache
def _with_data(name: str) -> Recipe:
    """Every arm of a cell asks for it, and data may take long to be found and checked."""
    recipe = load_recipe(name, ["--arm", "plain"])
    recipe.data.num_workers = 0
    set_up_data(recipe)
    return recipe


def draw_items(task: Task, items: Callable[[int], Any]) -> Draw:
    """Inputs and loss of a task, for so many items as `items` gives."""

    def draw(batch: int, device: str) -> tuple[tuple[Any, ...], Callable[[Any], Tensor]]:
        drawn = on_device(items(batch), device)
        return task.inputs(drawn), lambda out: task.loss(out, drawn)

    return draw


def _first_items(data: Data, count: int) -> Any:
    """The first items of the first epoch."""
    data.batch_size = count
    return next(iter(data.loader("train")))
