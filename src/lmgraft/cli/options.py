"""Taking a command's own options out of an argument list whose rest belongs to the recipe."""

from __future__ import annotations

from lmgraft.errors import RecipeError


def take_option(arguments: list[str], name: str) -> str | None:
    """Remove `name VALUE` or `name=VALUE` and return the value; None if absent."""
    for position, argument in enumerate(arguments):
        if argument == name:
            if position + 1 == len(arguments):
                raise RecipeError(f"{name} needs a value")
            value = arguments[position + 1]
            del arguments[position : position + 2]
            return value
        if argument.startswith(f"{name}="):
            del arguments[position]
            return argument.partition("=")[2]
    return None


def take_flag(arguments: list[str], name: str) -> bool:
    """Remove the flag `name`; whether it was there."""
    if name not in arguments:
        return False
    arguments.remove(name)
    return True


def take_options(arguments: list[str], name: str) -> list[str]:
    """Remove every `name VALUE` and `name=VALUE` and return the values."""
    values = []
    while (value := take_option(arguments, name)) is not None:
        values.append(value)
    return values


def take_number(arguments: list[str], name: str, *, least: int) -> int | None:
    """As `take_option`, for a whole number.

    Raises:
        RecipeError: If it is none, or smaller than `least`.
    """
    value = take_option(arguments, name)
    if value is None:
        return None
    if not value.isdigit() or int(value) < least:
        raise RecipeError(f"{name} {value} is no whole number of at least {least}", f"for instance {name} {least}")
    return int(value)
