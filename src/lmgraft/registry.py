"""Names to things, as strings: what is imported is decided by a table, on demand.

A table row is "package.module:attribute". It lets one room find a part of another that it
must not import (a graft its host adapter, a recipe its data set). This room knows no part.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from typing import Any


class Registry:
    """A table of names to "module:attribute" strings; a duplicate name is an error."""

    def __init__(self, kind: str, rows: dict[str, str] | None = None) -> None:
        self.kind = kind
        self._rows = dict(rows or {})

    def __contains__(self, name: object) -> bool:
        return name in self._rows

    def names(self) -> list[str]:
        return sorted(self._rows)

    def register(self, name: str, target: str) -> None:
        """Add a row.

        Raises:
            ValueError: If the name is taken by another target.
        """
        if self._rows.setdefault(name, target) != target:
            raise ValueError(f"{self.kind} {name!r} is already registered as {self._rows[name]}")

    def load(self, name: str) -> Any:
        """Import and return what the row of `name` points to."""
        return load_object(self._rows[name])


def load_object(target: str) -> Any:
    """Import "package.module:attribute"."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def suggest(name: str, known: Iterable[str]) -> str:
    """A sentence for an error: the nearest known names, or all of them when few."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if near:
        return f"Did you mean {' or '.join(repr(n) for n in near)}?"
    return f"Known: {', '.join(known)}." if len(known) <= 12 else ""


HOSTS = Registry(
    "host adapter",
    {
        "timm.models.vision_transformer.VisionTransformer": "lmgraft.backbones.timm_vit:describe",
        "timm.models.deit.VisionTransformerDistilled": "lmgraft.backbones.timm_vit:describe_distilled",
    },
)
"""Class path of a backbone -> the function that describes an instance of it as a `Host`."""

FACTORIES = Registry("model factory", {"timm": "lmgraft.backbones.timm_vit:create"})
"""Names a saved graft may use to rebuild its backbone; nothing else is ever called."""
