"""Between how a file lays tensors out and the canonical tensors: fused, grouped, transposed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lmgraft.block.config import BlockConfig
from lmgraft.checkpoint import NameMap

Shapes = dict[str, tuple[int, ...]]


def file_shapes(names: NameMap, config: BlockConfig) -> Shapes:
    """Names and shapes of one layer's tensors as the file has them."""
    shapes: Shapes = dict(config.tensor_shapes())
    for into, parts in names.fused.items():
        for kind in ("weight", "bias"):
            found = [shapes.pop(f"{part}.{kind}") for part in parts if f"{part}.{kind}" in shapes]
            if found:
                axis = _rows_axis(found[0], kind)
                rows = sum(shape[axis] for shape in found)
                shapes[f"{into}.{kind}"] = (*found[0][:axis], rows, *found[0][axis + 1 :])
    for name, single in rows_of(names, config).items():
        shapes |= dict.fromkeys(single, shapes.pop(name)[1:])
    for base in names.transposed:
        if (shape := shapes.get(f"{base}.weight")) is not None:
            shapes[f"{base}.weight"] = (*shape[:-2], shape[-1], shape[-2])
    return shapes


def canonical_parts(names: NameMap, name: str, tensor: Tensor, config: BlockConfig) -> dict[str, Tensor]:
    """What one tensor of the file holds, as `BlockConfig.tensor_shapes` names it: views where they can be."""
    base, _, kind = name.rpartition(".")
    if kind == "weight" and base in names.transposed:
        tensor = tensor.transpose(-1, -2)
    if base not in names.fused:
        return {name: tensor}
    return _split(tensor, [f"{part}.{kind}" for part in names.fused[base]], config, names)


def is_copied(names: NameMap, name: str) -> bool:
    """Whether a tensor of the file is laid out otherwise than a block's, so that it is copied."""
    base, _, kind = name.rpartition(".")
    return (kind == "weight" and base in names.transposed) or (
        base in names.fused and (names.interleaved or names.grouped)
    )


def rows_of(names: NameMap, config: BlockConfig) -> dict[str, list[str]]:
    """What a file holds row by row: canonical tensor -> its rows' names."""
    shapes = config.tensor_shapes()
    whole = {base: f"{base}.weight" for base in _stacked(names, config) if f"{base}.weight" in shapes}
    return {name: [f"{base}.{i}.weight" for i in range(shapes[name][0])] for base, name in whole.items()}


def _stacked(names: NameMap, config: BlockConfig) -> list[str]:
    """What a file holds row by row: of an MLP only where it is a mixture of experts."""
    return [base for base in names.stacked if config.num_experts or not base.startswith("mlp.")]


def _rows_axis(shape: Sequence[int], kind: str) -> int:
    """Which axis of a projection counts its outputs: the first, behind that of experts."""
    return len(shape) - (2 if kind == "weight" else 1)


def _split(fused: Tensor, parts: Sequence[str], config: BlockConfig, names: NameMap) -> dict[str, Tensor]:
    """The tensors that `fused` holds: one after the other, in turn row by row, or so in each group of heads."""
    shapes = config.tensor_shapes()
    axis = _rows_axis(fused.shape, parts[0].rpartition(".")[2])
    sizes = [shapes[part][axis] for part in parts]
    if names.interleaved:
        rows = fused.reshape(*fused.shape[:axis], -1, len(parts), *fused.shape[axis + 1 :])
        return dict(zip(parts, rows.unbind(axis + 1), strict=True))
    if not names.grouped or not parts[0].startswith("attention."):
        return dict(zip(parts, torch.split(fused, sizes, axis), strict=True))
    groups = config.num_kv_heads if any(part.startswith("attention.k.") for part in parts) else config.num_heads
    pieces = torch.split(fused.reshape(groups, -1, *fused.shape[1:]), [size // groups for size in sizes], 1)
    return {part: piece.flatten(0, 1) for part, piece in zip(parts, pieces, strict=True)}
