"""A command is a dataclass: its fields, with their docstrings, are its options, and its `run` is what it does."""

from __future__ import annotations

import argparse
import sys
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from inspect import cleandoc
from typing import Any, ClassVar, TypeVar, get_args, get_origin, get_type_hints

import yaml
from docstring_parser import parse_from_object
from jsonargparse import ArgumentError, ArgumentParser
from jsonargparse import DefaultHelpFormatter as Formatter

from lmgraft.errors import RecipeError
from lmgraft.recipes.options import alternatives, explained, read_options, split_list
from lmgraft.registry import suggest

C = TypeVar("C", bound="Command")


@dataclass(frozen=True, kw_only=True)
class Command(ABC):
    """What all commands share. A subclass's docstring is what its help begins with."""

    examples: ClassVar[str] = ""
    """Ends its help."""
    takes_more: ClassVar[bool] = False
    """Whether there may be options that are not its own, those of a recipe above all."""
    hidden: ClassVar[tuple[str, ...]] = ("more",)
    """Fields that are no options."""
    more: tuple[str, ...] = ()
    """Words of the options that are not its own, as `lmgraft.recipes.load_recipe` takes them."""

    @abstractmethod
    def run(self) -> int:
        """Do it; returns the exit status."""

    @classmethod
    def needs_words(cls) -> bool:
        """Whether it can do nothing without a word that says what with."""
        return any(one.default is MISSING and one.default_factory is MISSING for one in _options(cls))

    @classmethod
    def extend(cls, parser: ArgumentParser, words: Sequence[str]) -> ArgumentParser:
        """The parser that makes the help, with what is not the command's own; `words` are those of the command line."""
        return parser


def word(*, default: Any = MISSING, many: bool = False, metavar: str | None = None) -> Any:
    """A field that is given by its place, not by its name; of several words where `many`."""
    more = {"default_factory": list} if many and default is not MISSING else {"default": default}
    return field(**more, metadata={"word": True, "many": many, "metavar": metavar})


def option(default: Any, *names: str, **more: Any) -> Any:
    """A field that is more than its name and type.

    Args:
        default: Its value where it is not given; a list is copied.
        names: Further names.
        more: const: its value where its name alone is given; metavar: what its value is called in the help; commas:
            whether they separate the items of a list.
    """
    lists = isinstance(default, list)
    return field(
        **{"default_factory": default.copy} if lists else {"default": default}, metadata={"names": names, **more}
    )


def make_parser(command: type[Command], prog: str, *, adding_help: bool = True) -> ArgumentParser:
    """The parser of a command's own options."""
    words = [one.metadata["metavar"] or one.name.upper() for one in _options(command) if one.metadata.get("word")]
    parser = ArgumentParser(
        prog=prog,
        usage=" ".join(["%(prog)s", *words, "[options]"]),
        description=cleandoc(command.__doc__ or ""),
        epilog=command.examples,
        formatter_class=_Formatter,
        exit_on_error=False,
        allow_abbrev=False,
        add_help=adding_help,
        print_config=None,
    )
    hints, texts = get_type_hints(command), _texts(command)
    for one in _options(command):
        _add(parser, _names(one), one, hints[one.name], texts.get(one.name, ""))
    return parser


def add_keys(parser: ArgumentParser, config: Any, prefix: str) -> None:
    """Give a parser the fields of a dataclass as options --PREFIX.FIELD, for its help and completion.

    jsonargparse's own way would run what its module imports for type checkers alone, and take seconds.
    """
    hints, texts = get_type_hints(config), _texts(config)
    group = parser.add_argument_group(f"{prefix} ({config.__name__})")
    for one in fields(config):
        _add(group, [f"--{prefix}.{one.name}"], one, hints[one.name], texts.get(one.name, ""))


class _Formatter(Formatter):
    """Shows text as it is laid out in the code, and no type behind an option's help."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "".join(indent + line for line in text.splitlines(keepends=True))

    def _expand_help(self, action: Any) -> str:
        text: str = action.help or ""
        plain = action.default in (None, False, [], (), argparse.SUPPRESS) or not action.option_strings
        shown = " ".join(map(str, action.default)) if isinstance(action.default, list | tuple) else action.default
        return text if plain else f"{text} (default: {shown})"


def _options(command: type[Command]) -> list[Field[Any]]:
    return [one for one in fields(command) if one.name not in command.hidden]


def _texts(command: Any) -> dict[str, str]:
    """Field -> its docstring; a subclass's wins."""
    texts: dict[str, str] = {}
    for base in reversed([base for base in command.__mro__ if base not in (object, Command)]):
        texts |= {p.arg_name: " ".join((p.description or "").split()) for p in parse_from_object(base).params}
    return texts


def _names(one: Field[Any]) -> list[str]:
    return [f"--{one.name.replace('_', '-')}", *one.metadata.get("names", ())]


def _item(hint: Any) -> Any:
    """The type of a list's items; None where there is no list among the alternatives."""
    lists = (h for h in alternatives(hint) if get_origin(h) in (list, tuple))
    return next((get_args(h)[0] for h in lists), None)


def _splits(one: Field[Any], hints: dict[str, Any]) -> bool:
    return _item(hints[one.name]) is not None and one.metadata.get("commas", True)


def _add(parser: Any, names: list[str], one: Field[Any], hint: Any, text: str) -> None:
    default = one.default_factory() if one.default_factory is not MISSING else one.default
    needed, metavar, item = default is MISSING, one.metadata.get("metavar"), _item(hint)
    more: dict[str, Any] = {"help": text.replace("%", "%%")} | ({"metavar": metavar} if metavar else {})
    if one.metadata.get("word"):
        places = {(True, True): "+", (True, False): None, (False, True): "*", (False, False): "?"}
        nargs = places[needed, one.metadata["many"]]
        more |= {} if nargs is None else {"nargs": nargs}
        more |= {} if needed else {"default": default}
        parser.add_argument(one.name, type=item or hint, **more)
    elif hint is bool and default is False and "." not in names[0]:
        parser.add_argument(*names, action="store_true", **more)
    elif item is not None:
        default = list(default) if isinstance(default, tuple) else default
        parser.add_argument(*names, type=item, nargs="+", default=default, **more)
    else:
        more |= {"required": True} if needed else {"default": default}
        more |= {"nargs": "?", "const": one.metadata["const"]} if one.metadata.get("const") is not None else {}
        parser.add_argument(*names, type=hint, **more)


def parse(command: type[C], prog: str, words: Sequence[str]) -> C:
    """A command with its options read.

    Raises:
        RecipeError: If an option is not known, is missing or does not fit.
    """
    hints = get_type_hints(command)
    own, more = _sorted(command, hints, words)
    if more and not command.takes_more:
        known = [name for one in _options(command) for name in _names(one)]
        raise RecipeError(f"there is no option {more[0]}", suggest(more[0].partition("=")[0], known))
    try:
        values = vars(make_parser(command, prog).parse_args(own))
    except (ArgumentError, TypeError) as error:
        first = next((i for i, given in enumerate(own) if given.startswith("--")), len(own))
        options = [(o.key.replace("-", "_"), o.words) for o in read_options(own[first:]) if o.words]
        given = {key: words if _item(hints[key]) else words[0] for key, words in options if key in hints}
        raise RecipeError(explained(error, hints, given), f"{prog} --help shows what it takes") from None
    return command(**values, more=tuple(more))


def _sorted(command: type[Command], hints: dict[str, Any], words: Sequence[str]) -> tuple[list[str], list[str]]:
    """A command's own words, lists with blanks between their items, and those that belong to the recipe."""
    by_name = {name: one for one in _options(command) for name in _names(one)}
    own: list[str] = []
    more: list[str] = []
    into, listed = own, False
    for given in words:
        name, equals, value = given.partition("=")
        if given.startswith("--"):
            name = name if name in by_name else f"--{name[2:].replace('_', '-')}"
            into = own if name in by_name else more
            listed = name in by_name and _splits(by_name[name], hints)
            given = f"{name}{equals}{value}" if into is own else given.replace("--recipe.", "--", 1)
        if listed and given.startswith("--") and equals:
            own.append(name)
            given = value
        into.extend(_items(given) if listed and not given.startswith("--") else [given])
    return own, more


def _items(given: str) -> list[str]:
    """The items of a list's word: "0,2" and "[0, 2]" hold two."""
    content = yaml.safe_load(given) if given.startswith("[") else None
    return [str(item) for item in content] if isinstance(content, list) else split_list([given])


def wrapped(names: Sequence[str]) -> str:
    """Names as indented lines of a help."""
    return textwrap.fill(", ".join(names), 100, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)


def say(text: str) -> None:
    """Tell the user what happens, on stderr."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
