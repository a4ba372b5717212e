"""AWQ: four-bit integers packed along the outputs, a scale and a zero for each group of inputs.

`qweight` (inputs, outputs / 8), `scales` (groups, outputs), `qzeros` (groups, outputs / 8); the value
is (q - zero) * scale. The eight outputs of a word lie in an order of their own.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lmgraft.checkpoint.quantised.form import Format, Shape, Stored, unpack

_PER_WORD = 8
_PLACES = [0, 4, 1, 5, 2, 6, 3, 7]  # where in its word each of eight outputs lies


def _shape(stored: Stored) -> Shape:
    bits, version = stored.setting("bits", "w_bit", default=4), str(stored.settings.get("version", "gemm")).lower()
    if bits != 4 or version != "gemm":
        raise stored.damaged(f"AWQ of {bits} bits in the layout {version!r} is not read, only 4 bits in 'gemm'")
    inputs, words = stored.shapes[".qweight"]
    groups = stored.groups(stored.setting("group_size", "q_group_size", default=128), inputs)
    stored.expect(".scales", (groups, words * _PER_WORD))
    stored.expect(".qzeros", (groups, words))
    return words * _PER_WORD, inputs


def _rows(stored: Stored, parts: Mapping[str, Tensor], start: int, stop: int) -> Tensor:
    words = slice(start // _PER_WORD, stop // _PER_WORD)
    values, zeros = _unpack(parts[".qweight"][:, words]), _unpack(parts[".qzeros"][:, words])
    scales = parts[".scales"][:, start:stop].float()
    each = len(values) // len(scales)
    return ((values - zeros.repeat_interleave(each, 0)) * scales.repeat_interleave(each, 0)).T


def _unpack(words: Tensor) -> Tensor:
    return unpack(words, 4, 1).reshape(len(words), -1, _PER_WORD)[:, :, _PLACES].flatten(1)


_BESIDE = (".scales", ".qzeros")
AWQ = Format(title="awq", main=".qweight", beside=_BESIDE, needs=_BESIDE, methods=("awq",), shape=_shape, rows=_rows)
