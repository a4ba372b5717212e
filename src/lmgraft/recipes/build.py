"""A recipe as things that train: its model, its data set up, its task with optimiser and schedule.

Knows no run folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lmgraft.checkpoint.cache import lock
from lmgraft.errors import RecipeError
from lmgraft.recipes.equal_flops import larger_encoder
from lmgraft.recipes.features import network, wrap
from lmgraft.recipes.grafted import graft_arm
from lmgraft.recipes.recipe import BackboneConfig, Recipe
from lmgraft.recipes.record import is_pretrained
from lmgraft.registry import FACTORIES, load_object
from lmgraft.tasks.base import Task
from lmgraft.training.features import OnTokens
from lmgraft.training.fit import several_processes
from lmgraft.training.optim import make_optimizer, parameter_groups
from lmgraft.training.schedule import make_schedule


def build_model(recipe: Recipe, initial: bool = True) -> nn.Module:
    """The arm's model with its initial weights: shared tensors are equal in all arms of a seed.

    Args:
        initial: False where trained weights are loaded into it: pretrained ones are not fetched then.
    """
    encoder = build_encoder(recipe, initial)
    return graft_arm(encoder, recipe.arm, recipe.graft, recipe.seed, host_spec=host_spec(recipe))


def build_encoder(recipe: Recipe, initial: bool = True) -> nn.Module:
    """The encoder of the arm's model by itself, with its initial weights.

    Args:
        initial: As in `build_model`.

    Raises:
        LmgraftError: If it cannot be made so, or pretrained weights cannot be had.
    """
    arguments = _arguments(recipe)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return _make(recipe.backbone, arguments if initial else _without_weights(recipe, arguments))


def _arguments(recipe: Recipe) -> dict[str, Any]:
    arguments = recipe.data.model_arguments()
    return arguments | recipe.backbone.kwargs | larger_encoder(recipe, build_model)


def _without_weights(recipe: Recipe, arguments: dict[str, Any]) -> dict[str, Any]:
    return arguments | ({"pretrained": False} if is_pretrained(recipe) else {})


def host_spec(recipe: Recipe) -> dict[str, Any]:
    """How the recipe's encoder is made again, without weights from elsewhere."""
    rebuilt = _without_weights(recipe, _arguments(recipe))
    return {"factory": recipe.backbone.factory, "name": recipe.backbone.name, "kwargs": rebuilt}


def _make(backbone: BackboneConfig, arguments: dict[str, Any]) -> nn.Module:
    """The encoder by itself.

    Raises:
        RecipeError: If nothing of the factory's name can be imported.
    """
    name = backbone.factory
    if "." not in name:
        model: nn.Module = FACTORIES.find(name)(backbone.name, arguments)
        return model
    module, _, attribute = name.rpartition(".")
    try:
        factory = load_object(f"{module}:{attribute}")
    except (ImportError, AttributeError) as error:
        raise RecipeError(
            f"backbone.factory={name} cannot be imported: {error}",
            "give the dotted path of a class or function; the current folder is looked in too",
        ) from None
    made: nn.Module = factory(**arguments)
    return made


def set_up_data(recipe: Recipe) -> None:
    """Find, check and split the recipe's data; several processes do it one after the other.

    Raises:
        LmgraftError: If the data cannot be had.
    """
    recipe.data.seed = recipe.seed
    with lock("prepare-data") if several_processes() else nullcontext():
        recipe.data.prepare_data()  # the first process fetches, the others find
    recipe.data.setup()


def build_task(recipe: Recipe, retries: Sequence[dict[str, Any]] = (), initial: bool = True) -> Task:
    """The recipe's task around its model, which knows how to make optimiser and schedule.

    Args:
        retries: Restarts at a lower learning rate so far.
        initial: As in `build_model`.
    """
    cuts = [retry["from_step"] for retry in retries]
    task = recipe.task(build_model(recipe, initial), partial(_optimizer, recipe), partial(_schedule, recipe, cuts))
    wrap(recipe, task)
    if initial:
        parameter_groups(network(task), recipe.optim)  # its mistakes are errors before tokens are stored
    return task


def _optimizer(recipe: Recipe, model: nn.Module) -> Optimizer:
    if isinstance(model, OnTokens):
        model = model.model  # whose names recipes know
    return make_optimizer(model, recipe.optim.for_batch(_items_per_step(recipe)))


def _schedule(recipe: Recipe, cuts: list[int], optimizer: Optimizer, total_steps: int) -> LRScheduler:
    config = recipe.optim.for_batch(_items_per_step(recipe))
    return make_schedule(optimizer, total_steps, config, epochs=recipe.train.epochs, cuts=cuts)


def _items_per_step(recipe: Recipe) -> int:
    """Over all processes and accumulated batches; 1 process before there is a trainer."""
    trainer = recipe.data.trainer
    return recipe.data.batch_size * recipe.train.accumulate * (1 if trainer is None else trainer.world_size)
