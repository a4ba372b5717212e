"""What every open checkpoint can do, whichever files it came from.

Knows no file format.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal, Protocol

from torch import Tensor


class Checkpoint(Protocol):
    """An open LLM checkpoint: its header is read, its tensors are not.

    One from the Hub has an attribute `revision`, the commit.
    """

    label: str
    """File, folder or repository that was opened, for error messages."""
    config: dict[str, Any]
    """config.json, params.json, or GGUF metadata without arrays of strings."""
    licence: str | None

    @property
    def style(self) -> Literal["hf", "gguf", "meta"]:
        """Which vocabulary `config` and the tensor names are in."""

    def names(self) -> Collection[str]:
        """Names of all tensors."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from the header."""

    def nbytes(self, name: str) -> int:
        """Bytes that a tensor takes in the file."""

    def to_fetch(self, name: str) -> int:
        """Bytes of a tensor that neither lie on this machine nor in the cache."""

    def dtype(self, name: str) -> str:
        """The file's own name for the tensor's type."""

    def read(self, name: str) -> Tensor:
        """Read one tensor; a quantised one comes as float32."""
