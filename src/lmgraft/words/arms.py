"""What each kind of arm is called in a verdict, and what the LLM block's being better than it, or equal, would say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lmgraft.recipes.arms import ARMS


@dataclass(frozen=True, kw_only=True)
class Words:
    """Of one kind of arm."""

    noun: str
    """After "with"."""
    better: str = ""
    """A sentence's beginning where the LLM block is better than this control; "" where none is drawn from it."""
    question: str = ""
    """What is then neither shown nor excluded."""
    explained: str = ""
    """After "explained by", where the two are equivalent."""


WORDS: dict[str, Words] = {
    name: Words(noun=arm.noun, better=arm.better, question=arm.unclear, explained=arm.explained)
    for name, arm in ARMS.items()
}


def words_of(kind: str) -> Words:
    """Those of a kind of arm; one that is not in the table is called by its name."""
    return WORDS.get(kind, Words(noun=kind))


def block_name(block: Mapping[str, Any]) -> str:
    """Where a block comes from, which layers of how many, and how it was changed."""
    layers = list(block.get("layers") or ())
    name = str(block.get("source", "?"))
    if layers:
        whole = f" of {block['num_layers']}" if block.get("num_layers") else ""
        name += f", layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}{whole}"
    control = block.get("control")
    kind = control.get("kind") if isinstance(control, Mapping) else control
    return name + (f", {kind}" if kind else "")
