"""Eight bits a value, FP8 or integers, with scales beside them: per tensor, row, group of inputs or block.

The value is q * `weight_scale`, or q * `weight_scale_inv` (DeepSeek's name for the same), less a
`weight_zero_point` where integers have one. compressed-tensors' `float-quantized` and
`int-quantized` are laid out so too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from lmgraft.checkpoint.quantised.form import Format, Shape, Stored, as_scale

_SCALES = (".weight_scale_inv", ".weight_scale")
_ZERO = ".weight_zero_point"
_STORED_AS = ("F8_E4M3", "F8_E5M2", "I8")


def _scale_of(stored: Stored) -> str:
    ending = next((ending for ending in _SCALES if ending in stored.shapes), None)
    if ending is None:
        raise stored.damaged("its .weight_scale is missing")
    return ending


def _blocks(settings: Mapping[str, Any]) -> Iterator[tuple[int, int]]:
    """The sizes of blocks that the settings name."""
    groups = settings.get("config_groups")
    schemes = [group.get("weights") for group in groups.values()] if isinstance(groups, dict) else []
    named = [settings.get("weight_block_size")] + [s.get("block_structure") for s in schemes if isinstance(s, dict)]
    for block in named:
        if isinstance(block, list) and len(block) == 2 and all(type(size) is int and size > 0 for size in block):
            yield block[0], block[1]


def block_of(stored: Stored, scale: str, shape: Shape) -> tuple[int, int]:
    """Outputs and inputs that share a scale.

    Raises:
        CheckpointError: If the scales fit no way of sharing.
    """
    outputs, inputs = shape
    shared = stored.shapes[scale]
    for rows, columns in _blocks(stored.settings):
        if shared == (math.ceil(outputs / rows), math.ceil(inputs / columns)):
            return rows, columns
    if math.prod(shared) == 1:
        return outputs, inputs
    if shared in ((outputs,), (outputs, 1)):
        return 1, inputs
    if len(shared) == 2 and shared[0] == outputs and inputs % shared[1] == 0:
        return 1, inputs // shared[1]
    blocks = ", ".join(f"blocks of {rows} x {columns}" for rows, columns in _blocks(stored.settings))
    raise stored.damaged(
        f"{scale} has shape {shared}, which fits weights of {shape} by no tensor, row or group that divides"
        f", nor by {blocks or 'a weight_block_size, which its quantization_config does not name'}"
    )


def spread(scale: Tensor, block: tuple[int, int], rows: range, inputs: int) -> Tensor:
    """The scale of each value in `rows`, from one for each block."""
    scale = scale.reshape(-1, 1) if scale.dim() < 2 else scale
    down = torch.arange(rows.start, rows.stop) // block[0]
    return scale[down][:, torch.arange(inputs) // block[1]]


def _shape(stored: Stored) -> Shape:
    shape, kind = stored.shapes[".weight"], stored.dtypes[".weight"]
    if kind not in _STORED_AS or len(shape) != 2:
        raise stored.damaged(f"values of type {kind} and shape {shape} with scales beside them are not read")
    scale = _scale_of(stored)
    block_of(stored, scale, shape)
    if _ZERO in stored.shapes:
        stored.expect(_ZERO, stored.shapes[scale])
    return shape


def _rows(stored: Stored, parts: Mapping[str, Tensor], start: int, stop: int) -> Tensor:
    scale, shape = _scale_of(stored), stored.shapes[".weight"]
    block, rows = block_of(stored, scale, shape), range(start, stop)
    values = parts[".weight"][start:stop].float()
    if _ZERO in parts:
        values -= spread(parts[_ZERO].float(), block, rows, shape[1])
    return values.mul_(spread(as_scale(parts[scale]), block, rows, shape[1]))


SCALED = Format(title="scaled", main=".weight", beside=(*_SCALES, _ZERO), shape=_shape, rows=_rows)
