"""What a family file must supply, and the table of families.

A family is chosen by what the file says it is (`model_type`, or GGUF's architecture), never by
a repository's name. Adding one means adding a file and a row.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lmgraft.block.config import BlockConfig
from lmgraft.checkpoint import NameMap
from lmgraft.errors import BlockError
from lmgraft.registry import Registry, suggest


def unchanged(tensors: dict[str, Tensor], config: BlockConfig) -> dict[str, Tensor]:
    """The inverse of a conversion that changes no values."""
    return tensors


@dataclass(frozen=True, kw_only=True)
class Family:
    """How to read one LLM architecture from each file style."""

    config_from_hf: Callable[[Mapping[str, Any]], BlockConfig]
    """From config.json."""
    config_from_gguf: Callable[[Mapping[str, Any], Collection[str]], BlockConfig]
    """From GGUF metadata and tensor names."""
    num_layers_key: Mapping[str, str]
    """File style -> key of the number of layers."""
    names: Mapping[str, NameMap]
    """File style -> name map."""
    restore: Mapping[str, Callable[[dict[str, Tensor], BlockConfig], dict[str, Tensor]]]
    """File style -> inverse of what its converter did to the values."""


FAMILIES = Registry("LLM family", {"llama": "lmgraft.block.families.llama:FAMILY"})


def find_family(style: str, config: Mapping[str, Any]) -> tuple[str, Family]:
    """The family of a file, by its own word.

    Raises:
        BlockError: If the file names none, or one that is not supported.
    """
    key = "model_type" if style == "hf" else "general.architecture"
    name = config.get(key)
    if not isinstance(name, str):
        raise BlockError(f"the file does not say what it is: {key} is {name!r}", "use a language model's own files")
    if name not in FAMILIES:
        raise BlockError(f"the LLM family {name!r} is not supported in this version", suggest(name, FAMILIES.names()))
    family: Family = FAMILIES.load(name)
    return name, family


def require(config: Mapping[str, Any], key: str) -> Any:
    """`config[key]`, or an error that names the key."""
    if config.get(key) is None:
        raise BlockError(f"the model's config lacks {key!r}", "its config.json or GGUF metadata is incomplete")
    return config[key]


def count(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """`config[key]` as a positive whole number; `default` where it is absent or null."""
    value = require(config, key) if default is None else config.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BlockError(f"the model's config says {key} = {value!r}", "a positive whole number is needed")
    return value
