"""Options as words of a command line, and what is wrong with a key or its value, by the types of what takes them."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser
from jsonargparse._parameter_resolvers import get_signature_parameters  # the only way to see through **

from lmgraft.errors import RecipeError
from lmgraft.registry import suggest

_LISTS = (list, tuple, Sequence)


class Option(NamedTuple):
    """An option with the words that follow it, or the one behind its `=`."""

    key: str
    """Without the leading dashes, dots between its parts."""
    words: list[str]


def read_options(arguments: Sequence[str]) -> list[Option]:
    """The options among words of a command line: --key value, --key=value, --key value value.

    Raises:
        RecipeError: If a word belongs to no option.
    """
    options: list[Option] = []
    closed = True
    for word in arguments:
        if word.startswith("--"):
            key, equals, value = word[2:].partition("=")
            options.append(Option(key, [value] if equals else []))
            closed = bool(equals)
        elif closed and not (options and options[-1].words):
            raise RecipeError(f"{word!r} belongs to no option", "an option is written --key value or --key=value")
        else:
            options[-1].words.append(word)
    return options


def one_word(option: Option, hint: Any) -> str:
    """The value of an option as one word, a list as YAML has it: "0,2" and "0 2" are [0, 2] where a list is taken.

    Raises:
        RecipeError: If there is no value, or there are several and the option takes one.
    """
    key, words = option
    if not words:
        raise RecipeError(f"--{key} needs a value", f"write --{key} VALUE")
    listed = any(get_origin(one) in _LISTS or one in _LISTS for one in alternatives(hint))
    if listed and not words[0].startswith(("[", "{")) and (len(words) > 1 or "," in words[0]):
        return json.dumps(split_list(words))
    if len(words) > 1:
        raise RecipeError(f"--{key} takes one value, got {', '.join(words)}", 'a mapping is written "{key: value}"')
    return words[0]


def read_word(key: str, word: str) -> Any:
    """What YAML reads in the value of an option.

    Raises:
        RecipeError: If it is none.
    """
    try:
        return yaml.safe_load(word)
    except yaml.YAMLError:
        raise RecipeError(f"--{key}={word!r} is no YAML", 'a list is written "[a, b]", a mapping "{a: b}"') from None


def split_list(words: Sequence[str]) -> list[str]:
    """The items of a list that is written with blanks or with commas between them."""
    return [item.strip() for word in words for item in word.split(",") if item.strip()]


def alternatives(hint: Any) -> tuple[Any, ...]:
    """The types that a type admits: several where it is a union."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


@functools.cache
def taken_by(target: Any) -> dict[str, Any]:
    """Name -> type of what a class or function takes, what a class hands on by ** included."""
    if inspect.isclass(target) and not is_dataclass(target):
        return {one.name: one.annotation for one in get_signature_parameters(target, "__init__")}
    function = target.__init__ if inspect.isclass(target) else target
    try:
        types = get_type_hints(function)
    except NameError:  # a type that is imported for type checkers alone
        types = {}
    return {name: types.get(name, Any) for name in inspect.signature(function).parameters if name != "self"}


def required_by(target: type) -> list[str]:
    """What a class cannot be made without, what it hands on by ** included."""
    return [one.name for one in get_signature_parameters(target, "__init__") if one.default is inspect.Parameter.empty]


def keys_below(hint: Any) -> dict[str, Any] | None:
    """Key -> type of what lies in a value of this type; None where that may be anything."""
    keys: dict[str, Any] = {}
    for one in alternatives(hint):
        if isinstance(one, Mapping):
            keys |= one
        elif one is Any or dict in (one, get_origin(one)):
            return None
        elif inspect.isclass(one) and is_dataclass(one):
            keys |= taken_by(one)
    return keys


def type_of(key: str, root: Any) -> Any:
    """The type of the value of a dotted key, of a free mapping that of its values; Any where that may be anything.

    Args:
        key: For instance "data.batch_size".
        root: What it lies in: a type, or a mapping of keys to types.

    Raises:
        RecipeError: If there is no such key.
    """
    hint, parts = root, key.split(".")
    for position, part in enumerate(parts):
        below = keys_below(hint)
        if below is None:
            values = [get_args(one)[1] for one in alternatives(hint) if get_origin(one) is dict]
            return values[0] if values and position == len(parts) - 1 else Any
        if part not in below:
            raise RecipeError(f"there is no key {'.'.join(parts[: position + 1])!r}", suggest(part, below))
        hint = below[part]
    return hint


def mistake(content: Any, root: Any) -> str | None:
    """What is wrong with the first key that is not known or whose value does not fit; None if there is none.

    Args:
        content: Nested mappings, as a file or options have them.
        root: See `type_of`.
    """
    for key, value in _leaves(content, root):
        try:
            hint = type_of(key, root) if key else root
        except RecipeError as error:
            return f"{error.message}. {error.remedy}"
        if not _fits(value, hint):
            return f"{key}={value!r} does not fit; it takes {in_words(hint)}"
    return None


def explained(error: Exception, root: Any, *contents: Any, lacking: str | None = None) -> str:
    """What an error of the parser is about: the first mistake in the contents, else what they lack, else its words."""
    found = next(filter(None, (mistake(content, root) for content in contents)), None)
    return found or lacking or " ".join(str(error).split())


def _leaves(content: Any, hint: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    below = keys_below(hint)
    if isinstance(content, Mapping) and below:
        for name, value in content.items():
            yield from _leaves(value, below.get(name, {}), f"{key}.{name}" if key else str(name))
    else:
        yield key, content


def _fits(value: Any, hint: Any) -> bool:
    if isinstance(hint, Mapping) or (inspect.isclass(hint) and is_dataclass(hint)):
        return isinstance(value, Mapping)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    try:
        parser.parse_object({"value": value})
    except (ArgumentError, TypeError, ValueError):
        return False
    return True


def in_words(hint: Any) -> str:
    """A type as it is told to a person: int, one of a, b, a list of float, null."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if len(alternatives(hint)) > 1:
        return " or ".join(map(in_words, alternatives(hint)))
    if origin in _LISTS:
        return f"a list of {in_words(arguments[0])}" if arguments else "a list"
    if origin is dict or is_dataclass(hint):
        return "a mapping"
    return "null" if hint in (None, NoneType) else getattr(hint, "__name__", str(hint))
