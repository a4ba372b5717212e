"""compressed-tensors' packed weights: integers in words (`pack-quantized`), FP4 in bytes (NVFP4, MXFP4).

Words: `weight_packed` (outputs, ceil(inputs * bits / 32)) holds q + 2^(bits - 1); `weight_shape`
says how many inputs are meant; the value is (q - zero) * scale, zeros packed along the outputs.
Bytes: `weight_packed` (outputs, inputs / 2), scales for each 16 or 32 inputs, over
`weight_global_scale` where there is one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from lmgraft.checkpoint.quantised.form import Format, Shape, Stored, as_scale, unpack, unpack_fp4
from lmgraft.checkpoint.quantised.scaled import block_of, spread

_PACKED, _SCALE, _ZERO = ".weight_packed", ".weight_scale", ".weight_zero_point"
_SHAPE, _ORDER, _GLOBAL = ".weight_shape", ".weight_g_idx", ".weight_global_scale"


def _bits(stored: Stored, inputs: int) -> int:
    """Bits of a value, by how many words a row takes."""
    words = stored.shapes[_PACKED][1]
    bits = next((bits for bits in (4, 8, 2, 3, 5, 6, 7) if math.ceil(inputs * bits / 32) == words), None)
    if bits is None:
        raise stored.damaged(f"{words} words a row hold {inputs} inputs in no number of bits from 2 to 8")
    return bits


def _shape(stored: Stored) -> Shape:
    packed, kind = stored.shapes[_PACKED], stored.dtypes[_PACKED]
    if len(packed) != 2 or kind not in ("I32", "U8"):
        raise stored.damaged(f"{_PACKED} of type {kind} and shape {packed} is not read")
    if kind == "U8":
        shape = packed[0], 2 * packed[1]
        if block_of(stored, _SCALE, shape)[1] not in (16, 32):
            raise stored.damaged(f"{_SCALE} has shape {stored.shapes[_SCALE]}, FP4 has groups of 16 or 32 inputs")
        return shape
    if _SHAPE not in stored.shapes:
        raise stored.damaged(f"its {_SHAPE} is missing")
    stored.expect(_SHAPE, (2,))
    outputs, inputs = (int(size) for size in stored.read(_SHAPE))
    if outputs != packed[0] or inputs < 1:
        raise stored.damaged(f"{_SHAPE} says {outputs} x {inputs}, {_PACKED} has shape {packed}")
    bits = _bits(stored, inputs)
    block_of(stored, _SCALE, (outputs, inputs))
    if _ZERO in stored.shapes:
        scale = stored.shapes[_SCALE]
        stored.expect(_ZERO, (math.ceil(scale[0] * bits / 32), *scale[1:]))
    if _ORDER in stored.shapes:
        stored.expect(_ORDER, (inputs,))
    return outputs, inputs


def _rows(stored: Stored, parts: Mapping[str, Tensor], start: int, stop: int) -> Tensor:
    if stored.dtypes[_PACKED] == "U8":
        values = unpack_fp4(parts[_PACKED][start:stop])
        outputs, inputs = len(parts[_PACKED]), values.shape[1]
        scale = as_scale(parts[_SCALE])
        if _GLOBAL in parts:
            scale = scale / parts[_GLOBAL].float()
        return values * spread(scale, block_of(stored, _SCALE, (outputs, inputs)), range(start, stop), inputs)
    outputs, inputs = (int(size) for size in stored.read(_SHAPE))
    bits, scale = _bits(stored, inputs), parts[_SCALE].float()
    values = unpack(parts[_PACKED][start:stop], bits, 1)[:, :inputs] - (1 << (bits - 1))
    block = block_of(stored, _SCALE, (outputs, inputs))
    across = spread(scale, block, range(start, stop), inputs)
    zeros = torch.zeros(1)
    if _ZERO in parts:
        whole = unpack(parts[_ZERO], bits, 0)[: len(scale)] - (1 << (bits - 1))
        zeros = spread(whole, block, range(start, stop), inputs)
    if _ORDER in parts and int(parts[_ORDER].min()) >= 0:
        group = parts[_ORDER].long() * block[1]  # an input of each one's group
        if int(group.max()) >= inputs:
            raise stored.damaged(f"{_ORDER} names group {int(parts[_ORDER].max())} of {inputs // block[1]}")
        across, zeros = across[:, group], zeros[:, group] if _ZERO in parts else zeros
    return (values - zeros) * across


COMPRESSED = Format(
    title="compressed-tensors",
    main=_PACKED,
    needs=(_SCALE,),
    beside=(_SCALE, _ZERO, _SHAPE, _ORDER, _GLOBAL),
    shape=_shape,
    rows=_rows,
)
