"""Recipes laid over the recipes they extend, key by key, as YAML; what a key means is not looked at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

from lmgraft.errors import RecipeError
from lmgraft.recipes.named import find_named, list_named
from lmgraft.registry import MOVED


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
    return compose(find(name), name, find_base, (CLASS,) if ties is None else ties, debug=True)


DEBUG = "_debug"
"""Behind a recipe's or study's name: it is cut down to seconds, as its `debug` key says."""


@dataclass(frozen=True)
class Tie:
    """Where `key` changes, the base's `dropped` goes: it belongs to what is no longer there."""

    key: str
    dropped: str
    default: Any = None
    """What the key is in a base without it."""


CLASS = Tie("class_path", "init_args")
"""Of recipes: a class's arguments go with the class."""


def compose(
    text: str,
    where: str = "recipe",
    find: Callable[[str], str] = find_recipe,
    ties: Sequence[Tie] = (CLASS,),
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
    content = mapping_of(text, where)
    if content is None:
        return text
    content = _on_bases(content, (where,), find, ties)
    cut_down = content.pop("debug", None)
    if debug:
        if not isinstance(cut_down, dict):
            raise RecipeError(f"{where} has no debug variant", "add keys under `debug:` that cut it down to seconds")
        content = laid_over(content, _on_bases(cut_down, (where,), find, ties), ties)
    whole: str = yaml.safe_dump(under_present_names(content), sort_keys=False)
    return whole


def under_present_names(value: Any) -> Any:
    """The content with the present paths of classes that have moved."""
    if isinstance(value, dict):
        return {key: under_present_names(item) for key, item in value.items()}
    return MOVED.get(value, value) if isinstance(value, str) else value


def _on_bases(
    content: dict[str, Any], names: tuple[str, ...], find: Callable[[str], str], ties: Sequence[Tie]
) -> dict[str, Any]:
    wanted = content.pop("extends", [])
    merged: dict[str, Any] = {}
    for name in wanted if isinstance(wanted, list) else [str(wanted)]:
        if name in names:
            raise RecipeError(f"recipes extend each other in a circle: {' -> '.join([*names, name])}")
        base = mapping_of(find(name), name)
        if base is None:
            raise RecipeError(f"{names[-1]}: it extends {name}, which holds no keys", "extend a recipe")
        merged = laid_over(merged, _on_bases(base, (*names, name), find, ties), ties)
    return laid_over(merged, content, ties)


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


def mapping_of(text: str, where: str) -> dict[str, Any] | None:
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


def laid_over(base: dict[str, Any], top: dict[str, Any], ties: Sequence[Tie]) -> dict[str, Any]:
    """A mapping with another one's keys laid over it, nested ones key by key."""
    merged = dict(base)
    for tie in ties:
        if tie.key in top and top[tie.key] != base.get(tie.key, tie.default):
            merged.pop(tie.dropped, None)
    for key, value in top.items():
        below = merged.get(key)
        merged[key] = laid_over(below, value, ties) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged
