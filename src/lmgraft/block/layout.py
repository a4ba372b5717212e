"""Between how a file lays tensors out and the canonical tensors: fused, grouped, transposed."""

from __future__ import annotations

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
                shapes[f"{into}.{kind}"] = (sum(shape[0] for shape in found), *found[0][1:])
    for base in names.stacked:
        if (shape := shapes.pop(f"{base}.weight", None)) is not None:
            shapes |= {f"{base}.{i}.weight": shape[1:] for i in range(shape[0])}
    for base in names.transposed:
        shapes[f"{base}.weight"] = shapes[f"{base}.weight"][::-1]
    return shapes


def to_canonical(names: NameMap, tensors: dict[str, Tensor], config: BlockConfig) -> dict[str, Tensor]:
    """The file's tensors as `BlockConfig.tensor_shapes` names them; `tensors` is emptied, so that no two are held."""
    turned = {f"{base}.weight" for base in names.transposed}
    found = {name: tensor.t() if name in turned else tensor for name, tensor in tensors.items()}
    tensors.clear()
    for base in names.stacked:
        count = sum(name.startswith(f"{base}.") and name.removeprefix(f"{base}.")[0].isdigit() for name in found)
        if count:
            found[f"{base}.weight"] = _stack(found, [f"{base}.{i}.weight" for i in range(count)])
    for into, parts in names.fused.items():
        for kind in ("weight", "bias"):
            fused = found.pop(f"{into}.{kind}", None)
            if fused is not None:
                pieces = _split(fused, parts, config, names.grouped)
                found |= {f"{part}.{kind}": piece for part, piece in pieces.items()}
    return {name: tensor.contiguous() for name, tensor in found.items()}


def _stack(tensors: dict[str, Tensor], names: list[str]) -> Tensor:
    """The tensors of these names as the rows of one; each is let go as it is copied."""
    first = tensors[names[0]]
    made = first.new_empty(len(names), *first.shape)
    for row, name in zip(made, names, strict=True):
        row.copy_(tensors.pop(name))
    return made


def _split(fused: Tensor, parts: tuple[str, ...], config: BlockConfig, grouped: bool) -> dict[str, Tensor]:
    if not grouped or not parts[0].startswith("attention."):
        sizes = [config.tensor_shapes()[f"{part}.weight"][0] for part in parts]
        return dict(zip(parts, torch.split(fused, sizes), strict=True))
    # (M groups, N / M queries + one key + one value, H): each group's queries, then its key and value.
    group = config.num_heads // config.num_kv_heads
    heads = fused.reshape(config.num_kv_heads, group + 2, config.head_dim, *fused.shape[1:])
    pieces = (heads[:, :group], heads[:, group], heads[:, group + 1])
    return {part: piece.reshape(-1, *fused.shape[1:]) for part, piece in zip(parts, pieces, strict=True)}
