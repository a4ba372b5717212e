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
