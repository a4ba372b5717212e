"""What a format of quantised weights supplies: a few stored tensors that together are one weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lmgraft.errors import CheckpointError

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Stored:
    """The stored tensors of one weight, by the endings of their names; headers only."""

    name: str
    """Of the weight they stand for, with its file, for messages."""
    shapes: Mapping[str, Shape]
    dtypes: Mapping[str, str]
    settings: Mapping[str, Any]
    """The model's `quantization_config`."""
    read: Callable[[str], Tensor]
    """Read one of them, by its ending."""

    def setting(self, *keys: str, default: int) -> int:
        """The first of `keys` that the settings hold, as a whole number.

        Raises:
            CheckpointError: If it is none.
        """
        value = next((self.settings[key] for key in keys if self.settings.get(key) is not None), default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.damaged(f"quantization_config says {keys[0]} = {value!r}")
        return value

    def expect(self, ending: str, *shapes: Shape) -> None:
        """Refuse a part that is of none of `shapes`.

        Raises:
            CheckpointError: Naming both shapes.
        """
        if self.shapes[ending] not in shapes:
            wanted = " or ".join(map(str, shapes))
            raise self.damaged(f"{ending} has shape {self.shapes[ending]}, its weights need {wanted}")

    def groups(self, size: int, inputs: int) -> int:
        """How many groups of `size` share a scale among `inputs`; -1 is one group of all.

        Raises:
            CheckpointError: If the size does not divide them.
        """
        size = inputs if size == -1 else size
        if size < 1 or inputs % size:
            raise self.damaged(f"the group size {size} does not divide its {inputs} inputs")
        return inputs // size

    def damaged(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self.name}: {what}",
            "fetch the file again, or use the unquantised model or a GGUF file of it",
        )


@dataclass(frozen=True, kw_only=True)
class Format:
    """One way to store quantised weights."""

    title: str
    main: str
    """How the name of the tensor that holds the values ends."""
    weight: str = ".weight"
    """How the name of the weight that it stands for ends."""
    beside: tuple[str, ...]
    """Endings of what may lie beside; one that is there marks the format."""
    needs: tuple[str, ...] = ()
    """Those that must be there."""
    dims: int = 2
    """How many dimensions the stored values have at least."""
    methods: tuple[str, ...] = ()
    """The `quant_method`s it is for, where the names alone do not tell; empty is any."""
    shape: Callable[[Stored], Shape]
    """The weight's shape, once all parts are sure to fit each other."""
    rows: Callable[[Stored, Mapping[str, Tensor], int, int], Tensor]
    """Rows start to stop of the weight as float32."""
    step: int = 128
    """Rows at a time are a multiple of this."""


def unpack(words: Tensor, bits: int, axis: int) -> Tensor:
    """Unsigned numbers of `bits` bits out of int32 words, the lowest bits first, along `axis` of two; int32.

    Numbers of 3 bits run on from word to word.
    """
    words = words.movedim(axis, 0)
    count, mask = words.shape[0] * 32 // bits, (1 << bits) - 1
    if 32 % bits == 0:
        shifts = torch.arange(0, 32, bits, dtype=torch.int32).reshape(1, -1, *[1] * (words.dim() - 1))
        return ((words.unsqueeze(1) >> shifts) & mask).flatten(0, 1).movedim(0, axis)
    first = torch.arange(count) * bits
    wide = words.long() & 0xFFFFFFFF
    beyond = torch.cat((wide[1:], torch.zeros_like(wide[:1])))
    shift = (first % 32).reshape(-1, *[1] * (words.dim() - 1))
    index = first // 32
    return ((((beyond[index] << 32 | wide[index]) >> shift) & mask).int()).movedim(0, axis)


_FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0])


def unpack_fp4(data: Tensor) -> Tensor:
    """Two FP4 (E2M1) numbers out of each byte, the low half first, along the last axis; float32."""
    return _FP4[torch.stack((data & 15, data >> 4), -1).flatten(-2).long()]


def as_scale(stored: Tensor) -> Tensor:
    """Scales as float32; bytes are exponents of two, E8M0."""
    if stored.dtype == torch.uint8:
        return torch.exp2(stored.float() - 127)
    return stored.float()
