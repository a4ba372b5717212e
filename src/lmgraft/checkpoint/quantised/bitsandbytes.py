"""bitsandbytes: 4 bits by a table of sixteen values (NF4, FP4), and 8 bits by rows.

Four bits: `weight` holds two values a byte, the high half first; each run of `blocksize` values has
its largest magnitude in `absmax`, which may be quantised itself (double quantisation). Shape and
sizes lie beside it as JSON. Eight bits: `weight` * `SCB` / 127, with one `SCB` a row.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lmgraft.checkpoint.quantised.form import Format, Shape, Stored

_STATES = (".weight.quant_state.bitsandbytes__nf4", ".weight.quant_state.bitsandbytes__fp4")
_ABSMAX, _MAP = ".weight.absmax", ".weight.quant_map"
_NESTED, _NESTED_MAP = ".weight.nested_absmax", ".weight.nested_quant_map"


def _state(stored: Stored) -> dict[str, Any]:
    """The sizes beside a weight, checked."""
    ending = next((ending for ending in _STATES if ending in stored.shapes), None)
    if ending is None:
        raise stored.damaged(f"its {_STATES[0]} is missing")
    try:
        state = json.loads(bytes(stored.read(ending).tolist()))
        keys = ["blocksize", *["nested_blocksize"] * (_NESTED in stored.shapes)]
        sizes = [*state["shape"], *(state[key] for key in keys)]
        fits = len(state["shape"]) == 2 and all(type(size) is int and size > 0 for size in sizes)
        float(state.get("nested_offset", 0.0))
    except (ValueError, KeyError, TypeError, RecursionError):
        fits = False
    if not fits:
        raise stored.damaged(f"{ending} does not say its shape and block size")
    return dict(state)


def _shape_4bit(stored: Stored) -> Shape:
    state = _state(stored)
    outputs, inputs = state["shape"]
    count = outputs * inputs
    blocks = math.ceil(count / state["blocksize"])
    stored.expect(".weight", (math.ceil(count / 2), 1), (1, math.ceil(count / 2)))
    stored.expect(_ABSMAX, (blocks,))
    stored.expect(_MAP, (16,))
    if _NESTED in stored.shapes:
        stored.expect(_NESTED, (math.ceil(blocks / state["nested_blocksize"]),))
        if _NESTED_MAP not in stored.shapes:
            raise stored.damaged(f"its {_NESTED_MAP} is missing")
        stored.expect(_NESTED_MAP, (256,))
    return outputs, inputs


def _rows_4bit(stored: Stored, parts: Mapping[str, Tensor], start: int, stop: int) -> Tensor:
    state = _state(stored)
    inputs = state["shape"][1]
    first, last = start * inputs, stop * inputs  # `start` is even: no byte is halved
    data = parts[".weight"].reshape(-1)[first // 2 : (last + 1) // 2]
    halves = torch.stack((data >> 4, data & 15), -1).flatten()[: last - first]
    block = torch.arange(first, last) // state["blocksize"]
    absmax = parts[_ABSMAX]
    if _NESTED in parts:
        outer = torch.arange(len(absmax)) // state["nested_blocksize"]
        absmax = parts[_NESTED_MAP].float()[absmax.long()] * parts[_NESTED].float()[outer]
        absmax = absmax + float(state.get("nested_offset", 0.0))
    return (parts[_MAP].float()[halves.long()] * absmax.float()[block]).reshape(stop - start, inputs)


def _shape_8bit(stored: Stored) -> Shape:
    shape = stored.shapes[".weight"]
    stored.expect(".SCB", (shape[0],), (shape[0], 1))
    if ".weight_format" in stored.shapes and int(stored.read(".weight_format").sum()):
        raise stored.damaged("its rows are laid out for one kind of GPU (weight_format), which is not read")
    return shape


def _rows_8bit(stored: Stored, parts: Mapping[str, Tensor], start: int, stop: int) -> Tensor:
    return parts[".weight"][start:stop].float() * (parts[".SCB"].reshape(-1, 1)[start:stop].float() / 127)


FOUR_BITS = Format(
    title="bitsandbytes-4bit",
    main=".weight",
    beside=(_ABSMAX, _MAP, _NESTED, _NESTED_MAP, *_STATES),
    needs=(_ABSMAX, _MAP),
    shape=_shape_4bit,
    rows=_rows_4bit,
)
EIGHT_BITS = Format(
    title="bitsandbytes-8bit",
    main=".weight",
    beside=(".SCB", ".weight_format"),
    needs=(".SCB",),
    shape=_shape_8bit,
    rows=_rows_8bit,
)
