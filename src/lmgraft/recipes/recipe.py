"""Reading a recipe: YAML and overrides against the signatures, with errors that name the key."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_origin

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace, set_parsing_settings

from lmgraft.contracts import Metric
from lmgraft.errors import LmgraftError, RecipeError
from lmgraft.graft import GraftConfig
from lmgraft.recipes.arms import ARMS
from lmgraft.recipes.composing import CLASS, compose, find_recipe, laid_over, mapping_of, under_present_names
from lmgraft.recipes.options import (
    Option,
    alternatives,
    explained,
    keys_below,
    one_word,
    read_options,
    read_word,
    required_by,
    taken_by,
    type_of,
)
from lmgraft.registry import MOVED, load_object, suggest
from lmgraft.training.config import FeatureConfig, OptimConfig, TrainConfig

set_parsing_settings(docstring_parse_attribute_docstrings=True)

if TYPE_CHECKING:  # Lightning and what it imports take seconds, which a command's help is not to take
    from torch import nn

    from lmgraft.data.base import Data
    from lmgraft.tasks.base import MakeOptimizer, MakeSchedule, Task

    ArmName = str
else:
    ArmName = Literal[tuple(ARMS)]
GIVEN_AT_RUN_TIME = {"model", "data", "optimizer", "schedule"}
"""Arguments of a task that no recipe has."""
_DEFAULT_TASK = "lmgraft.tasks.classification.Classification"
_CLASSES = ("data", "task")
"""The groups of a recipe that name a class."""
_NAMES_A_CLASS = {name for group in _CLASSES for name in (group, f"{group}.class_path")}
"""Options whose value is a class."""
_OF_A_CLASS = ("class_path", "init_args")
_LARGEST_SEED = 2**32 - 1
_SHORT = {"llm": "graft.llm", "layer": "graft.layer"}


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


GROUPS: dict[str, Any] = {
    "graft": GraftConfig,
    "backbone": BackboneConfig,
    "optim": OptimConfig,
    "train": TrainConfig,
    "features": FeatureConfig,
}
"""The groups of a recipe whose keys are the fields of a dataclass."""


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

    def __post_init__(self) -> None:
        if not 0 <= self.seed <= _LARGEST_SEED:
            raise RecipeError(f"seed={self.seed} is not from 0 to {_LARGEST_SEED}")

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


@functools.cache
def recipe_parser(prog: str = "lmgraft train") -> ArgumentParser:
    """The schema of a recipe: the typed signatures, nothing else. Made once: it takes as long as a parse."""
    from lmgraft.data.base import Data
    from lmgraft.tasks.base import Task

    parser = ArgumentParser(prog=prog, exit_on_error=False, allow_abbrev=False, usage="%(prog)s RECIPE [options]")
    parser.add_argument("--seed", type=int, default=0, help="Seed of initial weights, order and every draw.")
    parser.add_argument("--arm", type=ArmName, default="llm", help="What is grafted: " + "; ".join(
        f"{name} ({arm.question})" for name, arm in ARMS.items()
    ))  # fmt: skip
    for key in ("graft", "backbone"):
        parser.add_class_arguments(GROUPS[key], key)
    parser.add_subclass_arguments(Data, "data", required=True)
    parser.add_subclass_arguments(
        Task, "task", skip=GIVEN_AT_RUN_TIME, instantiate=False, default={"class_path": _DEFAULT_TASK}
    )
    for key in ("optim", "train", "features"):
        parser.add_class_arguments(GROUPS[key], key)
    return parser


def as_it_was(text: str) -> str:
    """The YAML text of a run's recipe with the keys of its data that are younger than it, as they were without them."""
    content = mapping_of(text, "recipe")
    data = (content or {}).get("data")
    if content is None or not isinstance(data, dict) or not isinstance(data.get("class_path"), str):
        return text
    try:
        data_class = _load_class(under_present_names(data["class_path"]))
    except (ImportError, AttributeError, ValueError):
        return text  # the parser says what is wrong
    data["init_args"] = {**getattr(data_class, "before", {}), **(data.get("init_args") or {})}
    whole: str = yaml.safe_dump(content, sort_keys=False)
    return whole


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
    whole = compose(text, where)
    found = mapping_of(whole, where)
    options = [_in_full(option) for option in read_options(overrides)]
    content = _with_classes(found or {}, [option for option in options if option.key in _NAMES_A_CLASS])
    classes = {group: _class_of(content.get(group)) for group in _CLASSES}
    given: dict[str, Any] = {}
    try:
        for option in options:
            if option.key.partition(".")[0] in _CLASSES and option.key not in _NAMES_A_CLASS:
                content = _with_argument(content, option, _schema(classes))
        arguments = [
            _argument(option, _schema(classes), given, content)
            for option in options
            if option.key.partition(".")[0] not in _CLASSES
        ]
        parser = recipe_parser()
        # Of a text that is no mapping the parser says what is wrong.
        from_file = parser.parse_string(whole if found is None else yaml.safe_dump(content), defaults=True)
        config = parser.parse_args(arguments, namespace=from_file) if arguments else from_file
        plain = parser.dump(config, skip_unset=False)
        built = parser.instantiate(config)
    except (ArgumentError, TypeError, ValueError) as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, LmgraftError):
            cause = cause.__cause__ or cause.__context__
        if isinstance(cause, LmgraftError):
            raise cause from None
        schema = _schema(classes)
        what = explained(error, schema, _unfolded(content), given, lacking=_lacking(content, classes))
        raise RecipeError(f"{where}: {what}", "lmgraft train --help lists every key") from None
    return _recipe(built, plain)


def _in_full(option: Option) -> Option:
    """An option under its whole key, with the present path of a class that has moved."""
    words = [MOVED.get(word, word) for word in option.words[:1]] + option.words[1:]
    return Option(_SHORT.get(option.key, option.key), words)


def _with_classes(content: dict[str, Any], options: Sequence[Option]) -> dict[str, Any]:
    """The content with the classes that options name; another class's arguments are gone, as in a file."""
    for option in options:
        group, word = option.key.partition(".")[0], one_word(option, str)
        base = _group_of(content, group)
        if word.startswith("{"):
            top = under_present_names(read_word(option.key, word))
        else:
            short = "." not in word and str(base.get("class_path")).endswith(f".{word}")
            top = {"class_path": base["class_path"] if short else word}
        content = content | {group: laid_over(base, top, (CLASS,))}
    return content


def _with_argument(content: dict[str, Any], option: Option, schema: Mapping[str, Any]) -> dict[str, Any]:
    """The content with an option's value among the arguments of its class, which may lack it in the file."""
    group, _, rest = option.key.partition(".")
    keys = rest.removeprefix("init_args.").split(".")
    hint = type_of(".".join([group, *keys]), schema)
    value: Any = one_word(option, hint)
    within_mapping = len(keys) > 1 and keys_below(type_of(f"{group}.{keys[0]}", schema)) is None
    if str not in alternatives(hint) and (within_mapping or value.startswith("{")):
        value = read_word(option.key, value)
        if within_mapping and {get_origin(one) for one in alternatives(hint)} == {list} and not isinstance(value, list):
            value = [value]
    arguments = _put(_group_of(content, group), ["init_args", *keys], value, joined=bool(keys_below(hint)))
    return content | {group: arguments}


def _group_of(content: Mapping[str, Any], group: str) -> dict[str, Any]:
    """A class and its arguments as a mapping, however a recipe names it; the usual task where it names none."""
    there = content.get(group)
    usual = {"class_path": _DEFAULT_TASK} if group == "task" else {}
    return usual | (there if isinstance(there, dict) else {} if there is None else {"class_path": there})


def _put(mapping: dict[str, Any], path: Sequence[str], value: Any, joined: bool) -> dict[str, Any]:
    """The mapping with a value at a path; one that is itself a mapping may be joined with what is there."""
    first, *deeper = path
    below = mapping.get(first)
    below = below if isinstance(below, dict) else {}
    if deeper:
        value = _put(below, deeper, value, joined)
    elif joined and isinstance(value, dict):
        value = below | value
    return mapping | {first: value}


def _argument(option: Option, schema: Mapping[str, Any], given: dict[str, Any], content: Mapping[str, Any]) -> str:
    """An option of no class as one word that the parser understands; notes its value in `given`.

    Args:
        content: The file's, over which a key deep in a free mapping is laid.
    """
    group, _, rest = option.key.partition(".")
    value = one_word(option, type_of(option.key, schema))
    within: Any = value
    for part in reversed(rest.split(".") if rest else []):
        within = {part: within}
    given[group] = laid_over(given.get(group) or {}, within, ()) if isinstance(within, dict) else within
    first, _, deeper = rest.partition(".")
    if "." in deeper and keys_below(type_of(f"{group}.{first}", schema)) is None:
        # jsonargparse would put a value two keys below a free mapping in the place of all that lies beside it, as text.
        whole = laid_over(content.get(group) or {}, _loaded(given[group], group), ())[first]
        return f"--{group}.{first}={json.dumps(whole)}"
    return f"--{option.key}={value}"


def _loaded(words: Any, key: str) -> Any:
    """Nested mappings of words with what YAML reads in each word."""
    if isinstance(words, dict):
        return {name: _loaded(below, f"{key}.{name}") for name, below in words.items()}
    return read_word(key, words) if isinstance(words, str) else words


def _class_of(value: Any) -> str | None:
    """The path of the class that a recipe names, by itself or as `class_path`."""
    path = value.get("class_path") if isinstance(value, dict) else value
    return MOVED.get(path, path) if isinstance(path, str) else None


def _schema(classes: dict[str, str | None]) -> dict[str, Any]:
    """Key -> type of a recipe with these classes as `data` and `task`."""
    schema: dict[str, Any] = {"seed": int, "arm": ArmName, **GROUPS}
    for key, path in (classes | {"task": classes["task"] or _DEFAULT_TASK}).items():
        if path is None or "." not in path:
            schema[key] = dict  # jsonargparse knows which class is meant, or says that none is named
            continue
        try:
            taken = taken_by(_load_class(path))
        except (ImportError, AttributeError) as error:
            raise RecipeError(f"{key}: {path} cannot be imported: {error}", "give a class's dotted path") from None
        schema[key] = {name: hint for name, hint in taken.items() if name not in GIVEN_AT_RUN_TIME}
    return schema


def _unfolded(content: dict[str, Any]) -> dict[str, Any]:
    """A file's content with the arguments of its classes right under `data` and `task`, as options have them."""
    classes = {key: content[key] for key in _CLASSES if isinstance(content.get(key), dict)}
    own = {key: {n: v for n, v in value.items() if n not in _OF_A_CLASS} for key, value in classes.items()}
    return content | {key: own[key] | (value.get("init_args") or {}) for key, value in classes.items()}


def _lacking(content: dict[str, Any], classes: Mapping[str, str | None]) -> str | None:
    """Which class a recipe lacks, or which required arguments its classes do; None if there is all."""
    if content and classes["data"] is None:
        return "there is no class of data (--data.class_path)"
    for group, path in classes.items():
        if path is None or "." not in path:
            continue
        there = _unfolded(content).get(group)
        there = there if isinstance(there, dict) else {}
        names = [n for n in required_by(_load_class(path)) if n not in GIVEN_AT_RUN_TIME and n not in there]
        if names:
            options = ", ".join(f"--{group}.{name}" for name in names)
            return f"{group}: {path.rpartition('.')[2]} needs {', '.join(names)} ({options})"
    return None


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
