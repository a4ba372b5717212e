"""Files of one's own as data: their kind, and its options from words of a command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentError, ArgumentParser

from lmgraft.errors import RecipeError
from lmgraft.recipes.options import Option, explained, one_word, read_options, taken_by, type_of
from lmgraft.registry import FILE_KINDS

if TYPE_CHECKING:
    from lmgraft.data.base import Data


def data_of_kind(kind: str, options: Sequence[Option], advice: str, **fixed: Any) -> Data:
    """The data set that reads files of a kind, with its options, which may be spelt with - in place of _.

    Args:
        kind: A row of `registry.FILE_KINDS`.
        options: Of its class.
        advice: What an error advises.
        fixed: What is not among the options.

    Raises:
        LmgraftError: If there is no such kind or option, or a value does not fit.
    """
    target: type[Data] = FILE_KINDS.find(kind)
    hints = taken_by(target)
    given = [one._replace(key=one.key.replace("-", "_")) for one in options]
    words = {one.key: one_word(one, type_of(one.key, hints)) for one in given}
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_class_arguments(target, skip=set(fixed))
    try:
        values = vars(parser.instantiate(parser.parse_args([f"--{key}={value}" for key, value in words.items()])))
    except (ArgumentError, TypeError) as error:
        raise RecipeError(explained(error, hints, words), advice) from None
    return target(**values, **fixed)


def images_with_masks(kind: str | None, words: Sequence[str]) -> tuple[list[str], Data | None]:
    """What is left of the words of a command line without `--masks.KEY`, and the data that these name.

    Args:
        kind: What `--masks` is; None: it is not given.
        words: All that a command does not know itself.

    Raises:
        LmgraftError: If there are such options without a kind, or as `data_of_kind`.
    """
    options = read_options(words)
    of_masks = [one._replace(key=one.key.removeprefix("masks.")) for one in options if one.key.startswith("masks.")]
    if of_masks and kind is None:
        raise RecipeError("options of --masks without it", f"--masks KIND, one of {', '.join(FILE_KINDS.names())}")
    left = [word for one in options if not one.key.startswith("masks.") for word in (f"--{one.key}", *one.words)]
    return left, None if kind is None else data_of_kind(kind, of_masks, "see docs/data.md")
