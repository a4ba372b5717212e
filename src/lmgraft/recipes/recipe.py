"""Reading a recipe: YAML and overrides against the signatures, with errors that name the key."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING, Any, Literal

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace, set_parsing_settings
from torch import nn

from lmgraft.contracts import Metric
from lmgraft.data.base import Data
from lmgraft.errors import LmgraftError, RecipeError
from lmgraft.graft import GraftConfig
from lmgraft.recipes.arms import ARMS
from lmgraft.recipes.named import find_named, list_named
from lmgraft.registry import MOVED, load_object, suggest
from lmgraft.tasks.base import MakeOptimizer, MakeSchedule, Task
from lmgraft.training.features import FeatureConfig
from lmgraft.training.fit import TrainConfig
from lmgraft.training.optim import OptimConfig

set_parsing_settings(docstring_parse_attribute_docstrings=True)

if TYPE_CHECKING:
    ArmName = str
else:
    ArmName = Literal[tuple(ARMS)]
GIVEN_AT_RUN_TIME = {"model", "data", "optimizer", "schedule"}
"""Arguments of a task that no recipe has."""
_DEFAULT_TASK = "lmgraft.tasks.classification.Classification"
_SHORT = {"--llm": "--graft.llm", "--layer": "--graft.layer"}


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """The encoder; what follows from the data (of images channels, size and classes) is given to it besides."""

    factory: str = "timm"
    """The library that makes it, or the dotted path of a class or function of your own, called with keywords."""
    name: str = "vit_tiny_patch16_224"
    """The encoder's name in that library; unused where factory is a path."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Its further arguments."""
    equal_flops: dict[str, Any] = field(default_factory=dict)
    """Arguments laid over `kwargs` in arm plain_equal_flops; where empty, a run chooses depth and notes it here."""


def _never_trained(*_: Any) -> Any:
    raise AssertionError("this task was made without an optimiser")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A checked recipe: everything a run needs."""

    seed: int
    arm: ArmName
    backbone: BackboneConfig
    graft: GraftConfig
    data: Data
    task_class: type[Task]
    task_options: dict[str, Any]
    optim: OptimConfig
    train: TrainConfig
    features: FeatureConfig
    yaml: str
    """The resolved recipe, all defaults filled in."""

    def task(
        self, model: nn.Module, optimizer: MakeOptimizer = _never_trained, schedule: MakeSchedule = _never_trained
    ) -> Task:
        """The recipe's task around a model; without an optimiser it can do all but `configure_optimizers`."""
        return self.task_class(model, self.data, optimizer, schedule, **self.task_options)

    def metric(self, name: str | None = None) -> Metric:
        """The metric of this name that the task may have, or its first one; files are not looked at.

        Raises:
            RecipeError: If the task has none of this name.
        """
        metrics = {metric.name: metric for metric in self.task_class.metrics()}
        name = next(iter(metrics)) if name is None else name
        if name not in metrics:
            raise RecipeError(f"{self.task_class.__name__} has no metric {name!r}", suggest(name, metrics))
        return metrics[name]


def recipe_parser(prog: str = "lmgraft train") -> ArgumentParser:
    """The schema of a recipe: the typed signatures, nothing else."""
    parser = ArgumentParser(
        prog=prog, exit_on_error=False, allow_abbrev=False, usage="%(prog)s RECIPE [options]", add_help=True
    )
    parser.add_argument("--seed", type=int, default=0, help="Seed of initial weights, order and every draw.")
    parser.add_argument("--arm", type=ArmName, default="llm", help="What is grafted: " + "; ".join(
        f"{name} ({arm.question})" for name, arm in ARMS.items()
    ))  # fmt: skip
    parser.add_class_arguments(GraftConfig, "graft")
    parser.add_class_arguments(BackboneConfig, "backbone")
    parser.add_subclass_arguments(Data, "data", required=True)
    parser.add_subclass_arguments(
        Task, "task", skip=GIVEN_AT_RUN_TIME, instantiate=False, default={"class_path": _DEFAULT_TASK}
    )
    parser.add_class_arguments(OptimConfig, "optim")
    parser.add_class_arguments(TrainConfig, "train")
    parser.add_class_arguments(FeatureConfig, "features")
    return parser


def list_recipes() -> list[str]:
    """Names of the recipes that come with lmgraft."""
    return list_named(resources.files("lmgraft.recipes"))


def find_recipe(name: str) -> str:
    """The YAML text of a recipe by name or path, or with "_debug" behind it of its debug variant; see `find_named`."""
    root = resources.files("lmgraft.recipes")
    return with_debug(name, lambda name: find_named(name, root, "recipe"), lambda name: find_recipe(name))


def with_debug(
    name: str, find: Callable[[str], str], find_base: Callable[[str], str], ties: Sequence[Tie] | None = None
) -> str:
    """The YAML text of `name`; with `DEBUG` behind it, that file with its `debug` key laid over it.

    Args:
        find: Gives the text of a file by its name.
        find_base: Gives that of a base.
        ties: See `compose`.

    Raises:
        RecipeError: If there is no such file, or it has no debug variant.
    """
    if not name.endswith(DEBUG):
        return find(name)
    name = name.removesuffix(DEBUG)
    return compose(find(name), name, find_base, (_CLASS,) if ties is None else ties, debug=True)


DEBUG = "_debug"
"""Behind a recipe's or study's name: it is cut down to seconds, as its `debug` key says."""


@dataclass(frozen=True)
class Tie:
    """Where `key` changes, the base's `dropped` goes: it belongs to what is no longer there."""

    key: str
    dropped: str
    default: Any = None
    """What the key is in a base without it."""


_CLASS = Tie("class_path", "init_args")


def compose(
    text: str,
    where: str = "recipe",
    find: Callable[[str], str] = find_recipe,
    ties: Sequence[Tie] = (_CLASS,),
    debug: bool = False,
) -> str:
    """The YAML text with the recipe it `extends`, or several, laid under it, key by key, and without its `debug`.

    Args:
        text: YAML.
        where: What the text is called in errors.
        find: Gives the text of a base by its name.
        ties: Keys of a base that go with another one's value; of recipes, a class's arguments with the class.
        debug: Lay what stands under `debug` over it.

    Raises:
        RecipeError: If a base is unknown, recipes extend each other in a circle, or there is no debug variant.
    """
    content = _mapping(text, where)
    if content is None:
        return text
    content = _on_bases(content, (where,), find, ties)
    cut_down = content.pop("debug", None)
    if debug:
        if not isinstance(cut_down, dict):
            raise RecipeError(f"{where} has no debug variant", "add keys under `debug:` that cut it down to seconds")
        content = _laid_over(content, _on_bases(cut_down, (where,), find, ties), ties)
    whole: str = yaml.safe_dump(_under_present_names(content), sort_keys=False)
    return whole


def _under_present_names(value: Any) -> Any:
    """The content with the present paths of classes that have moved."""
    if isinstance(value, dict):
        return {key: _under_present_names(item) for key, item in value.items()}
    return MOVED.get(value, value) if isinstance(value, str) else value


def as_it_was(text: str) -> str:
    """The YAML text of a run's recipe with the keys of its data that are younger than it, as they were without them."""
    content = _mapping(text, "recipe")
    data = (content or {}).get("data")
    if content is None or not isinstance(data, dict) or not isinstance(data.get("class_path"), str):
        return text
    try:
        data_class = _load_class(_under_present_names(data["class_path"]))
    except (ImportError, AttributeError, ValueError):
        return text  # the parser says what is wrong
    data["init_args"] = {**getattr(data_class, "before", {}), **(data.get("init_args") or {})}
    whole: str = yaml.safe_dump(content, sort_keys=False)
    return whole


def _on_bases(
    content: dict[str, Any], names: tuple[str, ...], find: Callable[[str], str], ties: Sequence[Tie]
) -> dict[str, Any]:
    wanted = content.pop("extends", [])
    merged: dict[str, Any] = {}
    for name in wanted if isinstance(wanted, list) else [str(wanted)]:
        if name in names:
            raise RecipeError(f"recipes extend each other in a circle: {' -> '.join([*names, name])}")
        base = _mapping(find(name), name)
        if base is None:
            raise RecipeError(f"{names[-1]}: it extends {name}, which holds no keys", "extend a recipe")
        merged = _laid_over(merged, _on_bases(base, (*names, name), find, ties), ties)
    return _laid_over(merged, content, ties)


class _Once(yaml.SafeLoader):  # type: ignore[misc]
    """YAML takes the last of two equal keys without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    line = key.start_mark.line + 1
                    raise RecipeError(f"{key.value!r} comes twice in one mapping, again in line {line}")
                seen.add((key.tag, key.value))
        return dict(super().construct_mapping(node, deep))


def _mapping(text: str, where: str) -> dict[str, Any] | None:
    """None where the text is no mapping: the parser then says what is wrong with it.

    Raises:
        RecipeError: If a key comes twice.
    """
    try:
        content = yaml.load(text, _Once)
    except yaml.YAMLError:
        return None
    except RecipeError as error:
        raise RecipeError(f"{where}: {error.message}", "leave one of them out") from None
    return content if isinstance(content, dict) else None


def _laid_over(base: dict[str, Any], top: dict[str, Any], ties: Sequence[Tie]) -> dict[str, Any]:
    merged = dict(base)
    for tie in ties:
        if tie.key in top and top[tie.key] != base.get(tie.key, tie.default):
            merged.pop(tie.dropped, None)
    for key, value in top.items():
        below = merged.get(key)
        merged[key] = _laid_over(below, value, ties) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by name or path and lay `overrides` over it.

    Args:
        name: As `list_recipes` gives it, or a path to a YAML file.
        overrides: Command-line style: ["--graft.layer", "3", "--data.root=DIR"].

    Raises:
        RecipeError: If a key is unknown or a value does not fit its type.
    """
    return parse_recipe(find_recipe(name), overrides, where=name)


def parse_recipe(text: str, overrides: Sequence[str] = (), where: str = "recipe") -> Recipe:
    """As `load_recipe`, from the YAML text."""
    parser = recipe_parser()
    arguments = [_long_form(argument) for argument in overrides]
    try:
        from_file = parser.parse_string(compose(text, where), defaults=True)
        config = parser.parse_args(arguments, namespace=from_file) if arguments else from_file
        plain = parser.dump(config, skip_unset=False)
        built = parser.instantiate(config)
    except LmgraftError:
        raise
    except (ArgumentError, TypeError, ValueError) as error:
        cause = error
        while cause is not None and not isinstance(cause, LmgraftError):
            cause = cause.__cause__ or cause.__context__  # type: ignore[assignment]
        if isinstance(cause, LmgraftError):
            raise cause from None
        raise RecipeError(f"{where}: {tidy(str(error), parser)}", "lmgraft train --help lists every key") from None
    return _recipe(built, plain)


def _long_form(argument: str) -> str:
    if argument in MOVED:  # the value of an option
        return MOVED[argument]
    name, equals, value = argument.partition("=")
    return _SHORT.get(name, name) + equals + MOVED.get(value, value)


def _recipe(built: Namespace, text: str) -> Recipe:
    task = built.task
    return Recipe(
        seed=built.seed,
        arm=built.arm,
        backbone=built.backbone,
        graft=built.graft,
        data=built.data,
        task_class=_load_class(task.class_path),
        task_options=dict(task.get("init_args") or {}),
        optim=built.optim,
        train=built.train,
        features=built.features,
        yaml=text,
    )


def _load_class(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return load_object(f"{module}:{name}")


_UNKNOWN = re.compile(r"(?:accept option|Option|unrecognized arguments:) '?(?:--)?([A-Za-z_.]+)'?")


def tidy(message: str, parser: ArgumentParser) -> str:
    """jsonargparse's message without its noise, and with the nearest key where one is misspelt."""
    text = re.sub(r"\s+", " ", message).strip()
    text = re.sub(r"Does not validate against any of the Union subtypes.*?Errors: - ", "", text)
    text = re.sub(r" - Expected a <class 'NoneType'>.*", "", text)
    text = re.sub(
        r"typing\.Literal|typing\.|<class '([^']*)'>", lambda m: m[1] or ("one of " if "Literal" in m[0] else ""), text
    )
    unknown = _UNKNOWN.search(text)
    return f"{text}. {suggest(unknown[1].rpartition('.')[2], _known_keys(parser))}" if unknown else text


def _known_keys(parser: ArgumentParser) -> set[str]:
    """The last parts of all keys: of the groups, and of the data sets' and tasks' own arguments."""
    keys = {action.dest.rpartition(".")[2] for action in parser._actions}
    pending: list[type] = [Data, Task]
    while pending:
        cls = pending.pop()
        of_class = ArgumentParser(exit_on_error=False, add_help=False)
        of_class.add_class_arguments(cls, skip=GIVEN_AT_RUN_TIME & set(inspect.signature(cls).parameters))
        keys |= {action.dest for action in of_class._actions}
        pending += cls.__subclasses__()
    return keys
