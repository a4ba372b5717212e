"""Every choice made when grafting, as plain data: a recipe's `graft:` group and a saved graft's record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from lmgraft.block.config import FinalNorm
from lmgraft.errors import HostError

Residual = Literal["none", "out", "in", "gated"]
Form = Literal["auto", "dense", "reads", "folded", "absorbed"]
MapperInit = Literal["trunc_normal", "default"]


@dataclass(frozen=True, kw_only=True)
class GraftConfig:
    """Which block goes where, and how it is wired.

    Raises:
        HostError: If a value is none of those listed.
    """

    llm: str = "smollm2-135m"
    """Source of the block: a known name, a Hub repository, a file, a folder or a pypi:// source."""
    layer: int | tuple[int, ...] = -1
    """Layer index, negative from the end; several consecutive ones make a stack."""
    at: str | int = "tail"
    """tail, middle, head, the index of an encoder layer to follow, or a dotted module path."""
    reads: int | tuple[int, ...] | None = None
    """Tokens that are read after the graft; by default the host's head is asked at each call."""
    residual: Residual = "none"
    """none (as published): f(x); out: x + f(x); in: W2(block(W1 x) + W1 x); gated: x + g f(x), g from 0."""
    form: Form = "auto"
    """How it is computed; every form gives the same numbers.

    auto      the quickest by counted multiply-adds and bytes, chosen at each call
    dense     the whole block on every token, as published: the reference
    reads     keys and values of every token, the rest for read tokens only
    folded    keys and values by folded matrices, never D wide
    absorbed  keys or values, where exact both, not formed at all
    """
    read_token: bool = False
    """A learnable token that alone is read from the block; every token gets its output."""
    mapper_init: MapperInit | None = None
    """Initialisation of W1 and W2; by default the host's own convention."""
    final_norm: FinalNorm = "unit"
    """The LLM's final norm after the block: unit gain (as published), pretrained gain, or none."""
    dtype: str | None = None
    """Storage of the frozen weights; by default the file's own, float32 if quantised."""
    revision: str | None = None
    """Revision of a Hub source."""

    def __post_init__(self) -> None:
        choices = {"residual": Residual, "form": Form, "final_norm": FinalNorm}
        for name, allowed in choices.items():
            if getattr(self, name) not in get_args(allowed):
                raise HostError(
                    f"{name}={getattr(self, name)!r} is not known", f"one of {', '.join(get_args(allowed))}"
                )
        if self.mapper_init not in (None, *get_args(MapperInit)):
            raise HostError(
                f"mapper_init={self.mapper_init!r} is not known", f"one of {', '.join(get_args(MapperInit))}"
            )

    def to_dict(self) -> dict[str, Any]:
        """As JSON types: tuples become lists."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GraftConfig:
        """The inverse of `to_dict`.

        Raises:
            HostError: If a field or a value is not known to this version.
        """
        unknown = sorted(set(values) - set(cls.__dataclass_fields__))
        if unknown:
            raise HostError(f"unknown graft options: {', '.join(unknown)}", "update lmgraft")
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**fields)
