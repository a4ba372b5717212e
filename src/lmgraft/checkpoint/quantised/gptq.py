"""GPTQ: integers packed along the inputs, a scale and a zero for each group of inputs.

`qweight` (inputs * bits / 32, outputs), `scales` (groups, outputs), `qzeros` (groups, outputs * bits
/ 32), `g_idx` (inputs): each input's group, where they were reordered. The value is
(q - zero) * scale; the first version of the format stores each zero less one.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lmgraft.checkpoint.quantised.form import Format, Shape, Stored, unpack


def _shape(stored: Stored) -> Shape:
    bits = stored.setting("bits", default=4)
    if bits not in (2, 3, 4, 8):
        raise stored.damaged(f"quantization_config says bits = {bits}, which GPTQ has not")
    words, outputs = stored.shapes[".qweight"]
    inputs = words * 32 // bits
    groups = stored.groups(stored.setting("group_size", default=128), inputs)
    if words * 32 % bits or outputs * bits % 32:
        raise stored.damaged(f"{bits} bits do not fill words of {inputs} inputs and {outputs} outputs")
    stored.expect(".scales", (groups, outputs))
    stored.expect(".qzeros", (groups, outputs * bits // 32))
    if ".g_idx" in stored.shapes:
        stored.expect(".g_idx", (inputs,))
    return outputs, inputs


def _rows(stored: Stored, parts: Mapping[str, Tensor], start: int, stop: int) -> Tensor:
    bits = stored.setting("bits", default=4)
    values = unpack(parts[".qweight"][:, start:stop], bits, 0)
    zeros = unpack(parts[".qzeros"], bits, 1)[:, start:stop]
    if stored.settings.get("checkpoint_format") != "gptq_v2":
        zeros = (zeros + 1) & ((1 << bits) - 1)
    scales = parts[".scales"][:, start:stop].float()
    groups, inputs = len(scales), len(values)
    group = parts[".g_idx"].long() if ".g_idx" in parts else torch.arange(inputs) * groups // inputs
    if int(group.min()) < 0 or int(group.max()) >= groups:
        raise stored.damaged(f".g_idx names group {int(group.max())} of {groups}")
    return ((values - zeros[group]) * scales[group]).T


GPTQ = Format(
    title="gptq",
    main=".qweight",
    beside=(".scales", ".qzeros", ".g_idx"),
    needs=(".scales", ".qzeros"),
    methods=("gptq", "auto-round"),
    shape=_shape,
    rows=_rows,
)
