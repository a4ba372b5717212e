"""YAML files that come with lmgraft, by name: <root>/<family>/<name>.yaml.

A file whose name begins with _ is a part of others, and has none.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lmgraft.errors import RecipeError
from lmgraft.registry import suggest

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable  # Python 3.10 has it elsewhere


def list_named(root: Traversable) -> list[str]:
    """All names, as "family/name"."""
    return sorted(
        f"{family.name}/{file.name.removesuffix('.yaml')}"
        for family in root.iterdir()
        if family.is_dir()
        for file in family.iterdir()
        if file.name.endswith(".yaml") and not file.name.startswith("_")
    )


def find_named(name: str, root: Traversable, kind: str) -> str:
    """The text of a file by name or path.

    Args:
        name: As `list_named` gives it, or a path that ends in .yaml or .yml.
        root: Where named ones lie.
        kind: What the file is, for errors.

    Raises:
        RecipeError: If there is none, or it is no text.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        try:
            return path.read_text(encoding="utf-8")
        except OSError as error:
            raise RecipeError(f"{kind} {name} cannot be read: {error.strerror}", "check the path") from None
        except UnicodeDecodeError as error:
            raise RecipeError(f"{kind} {name} is no text in UTF-8 ({error})", "check the path") from None
    file = root.joinpath(f"{name}.yaml")
    if ".." in name or not file.is_file():
        raise RecipeError(
            f"there is no {kind} {name!r}",
            f"{suggest(name, list_named(root))} A file of your own is a path that ends in .yaml.".strip(),
        )
    return file.read_text(encoding="utf-8")
