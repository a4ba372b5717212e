"""MXFP4 as gpt-oss has it: experts' matrices in FP4, a power of two for each 32 inputs.

`X_blocks` (experts, outputs, groups, 16) holds two values a byte, `X_scales` (experts, outputs,
groups) the exponents; `X` is (experts, inputs, outputs), as the unquantised model has it.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lmgraft.checkpoint.quantised.form import Format, Shape, Stored, as_scale, unpack_fp4


def _shape(stored: Stored) -> Shape:
    blocks = stored.shapes["_blocks"]
    if len(blocks) != 4 or blocks[3] != 16 or stored.dtypes["_blocks"] != "U8":
        raise stored.damaged(f"_blocks has shape {blocks}, MXFP4 is (experts, outputs, groups, 16) bytes")
    stored.expect("_scales", blocks[:3])
    return blocks[0], blocks[2] * 32, blocks[1]


def _rows(stored: Stored, parts: Mapping[str, Tensor], start: int, stop: int) -> Tensor:
    values = unpack_fp4(parts["_blocks"][start:stop])
    return (values * as_scale(parts["_scales"][start:stop]).unsqueeze(-1)).flatten(2).transpose(1, 2)


MXFP4 = Format(title="mxfp4", main="_blocks", weight="", beside=("_scales",), dims=4, shape=_shape, rows=_rows, step=1)
