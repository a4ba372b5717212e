"""Names without what wrappers put into them: torch.compile, FSDP, activation checkpointing, PEFT."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Literal

from torch import Tensor

from lmgraft.checkpoint.base import Checkpoint
from lmgraft.errors import CheckpointError

_WRAPPERS = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|base_layer)\.")
_ADAPTERS = re.compile(r"\.lora_(?:A|B|embedding_A|embedding_B|magnitude_vector)\b")
MERGE = "merge it into its base first: PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(...)"


def with_plain_names(checkpoint: Checkpoint) -> Checkpoint:
    """`checkpoint` itself, or seen through `PlainNames` where its names are wrapped.

    Raises:
        CheckpointError: If a LoRA adapter lies among its weights, or two names are one without wrappers.
    """
    stored: dict[str, str] = {}
    for name in checkpoint.names():
        if _ADAPTERS.search(name):
            raise CheckpointError(f"{checkpoint.label} holds a LoRA adapter beside its weights: {name}", MERGE)
        plain = _WRAPPERS.sub("", name)
        if plain in stored:
            raise CheckpointError(
                f"{checkpoint.label}: {stored[plain]} and {name} are the same tensor but for their wrappers",
                "save the model without its wrappers",
            )
        stored[plain] = name
    return checkpoint if all(plain == name for plain, name in stored.items()) else PlainNames(checkpoint, stored)


class PlainNames:
    """Another checkpoint by other names; see `lmgraft.checkpoint.base.Checkpoint`.

    Args:
        wrapped: The checkpoint.
        stored: Name -> its name there.
    """

    style: Literal["hf"] = "hf"

    def __init__(self, wrapped: Checkpoint, stored: dict[str, str]) -> None:
        self.label, self.config, self.licence = wrapped.label, wrapped.config, wrapped.licence
        self.revision = getattr(wrapped, "revision", None)
        self._wrapped, self._stored = wrapped, stored

    def names(self) -> Collection[str]:
        return self._stored.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._wrapped.shape(self._stored[name])

    def nbytes(self, name: str) -> int:
        return self._wrapped.nbytes(self._stored[name])

    def dtype(self, name: str) -> str:
        return self._wrapped.dtype(self._stored[name])

    def to_fetch(self, name: str) -> int:
        """Bytes of a tensor that neither lie on this machine nor in the cache."""
        return self._wrapped.to_fetch(self._stored[name])

    def read(self, name: str) -> Tensor:
        """Read one tensor as the other checkpoint does."""
        return self._wrapped.read(self._stored[name])
