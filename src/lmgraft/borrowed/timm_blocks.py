"""A checkpoint of timm -> a block of its layers.

config.json as timm writes it to the Hub says the model: {"architecture": ..., "model_args": {...}}. The encoder
layers are `model.blocks`; a layer is called on tokens alone, its rotary positions left out.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import Parameter

from lmgraft.block import Provenance
from lmgraft.block.config import FINAL_NORM, FinalNorm, Order
from lmgraft.block.load import SourceReport, facts_of, report_of, resolve_layers
from lmgraft.block.opaque import OpaqueBlock, OpaqueConfig, OpaqueLayer, as_tokens
from lmgraft.borrowed.neutral import check_neutral
from lmgraft.borrowed.norms import inner_norm_of, is_minus_one, traits_of
from lmgraft.checkpoint import Checkpoint, tensor_digest
from lmgraft.checkpoint.names import read_finite
from lmgraft.errors import BlockError, CheckpointError, first_line


def call_block(module: nn.Module, x: Tensor, key_padding_mask: Tensor | None) -> Tensor:
    """A timm block on tokens; padded ones are hidden by `attn_mask`."""
    if key_padding_mask is None:
        return as_tokens(module(x), x, type(module).__name__)
    if "attn_mask" not in inspect.signature(type(module).forward).parameters:
        raise BlockError(f"{type(module).__name__} of timm takes no mask, and tokens are padded", "use another block")
    visible = (~key_padding_mask[:, None, None, :]).expand(-1, 1, x.shape[1], -1)
    return as_tokens(module(x, attn_mask=visible), x, type(module).__name__)


def _model(config: Mapping[str, Any]) -> nn.Module:
    """The model on the meta device: shapes and names."""
    name = config["architecture"]
    arguments = dict(config.get("model_args") or {})
    if isinstance(config.get("num_classes"), int):
        arguments.setdefault("num_classes", config["num_classes"])
    try:
        with torch.device("meta"):
            model: nn.Module = timm.create_model(name, pretrained=False, **arguments)
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        raise BlockError(f"timm {timm.__version__} cannot build {name!r}: {first_line(error)}", "update timm") from None
    if not isinstance(getattr(model, "blocks", None), nn.Sequential | nn.ModuleList):
        raise BlockError(f"{name!r} of timm has no sequence of blocks", "use a vision transformer")
    return model


def load_layers(
    checkpoint: Checkpoint,
    source: str,
    layer: tuple[int, ...],
    *,
    dtype: torch.dtype | None,
    final_norm: FinalNorm,
    tower: str | None,
    order: Order,
) -> OpaqueBlock:
    """Encoder layers of a timm model as a block, only their tensors read.

    Raises:
        BlockError: If timm cannot build the model, or a layer cannot be made a block.
        CheckpointError: If the file does not hold the layers.
    """
    _refuse(tower, order)
    model = _model(checkpoint.config)
    blocks = list(model.blocks)  # type: ignore[arg-type]
    indices = resolve_layers(layer, len(blocks))
    config = _config(model, blocks[indices[0]], checkpoint.config)
    layers, digests, names = [], {}, []
    for position, index in enumerate(indices):
        prefix = f"blocks.{index}."
        for name in list(blocks[index].state_dict()):
            tensor = _read(checkpoint, prefix + name)
            digests[f"{position}.{name}"] = tensor_digest(tensor)
            names.append(prefix + name)
            parent, _, leaf = name.rpartition(".")
            table = blocks[index].get_submodule(parent)._parameters
            table[leaf] = Parameter(tensor.to(dtype or tensor.dtype), requires_grad=False)
        layers.append(OpaqueLayer(blocks[index], call_block))
    norm = None
    if final_norm == "pretrained":
        norm = {name: _read(checkpoint, f"norm.{name}") for name in config.norm_shapes()}
        digests |= {f"{FINAL_NORM}.{name}": tensor_digest(tensor) for name, tensor in norm.items()}
    provenance = Provenance(
        source=source,
        family=str(checkpoint.config["architecture"]),
        layers=indices,
        num_layers=len(blocks),
        final_norm=final_norm,
        **facts_of(checkpoint, names),
    )
    block = OpaqueBlock(config, layers, provenance=provenance, final_norm=norm, digests=digests)
    check_neutral(block)
    return block


def inspect_layers(checkpoint: Checkpoint, source: str, layer: int, tower: str | None) -> SourceReport:
    """Anatomy of one layer of a timm model; reads headers, no weights."""
    _refuse(tower, "none")
    model = _model(checkpoint.config)
    blocks = list(model.blocks)  # type: ignore[arg-type]
    (index,) = resolve_layers((layer,), len(blocks))
    names = [n for n in checkpoint.names() if n.startswith(f"blocks.{index}.")]
    return report_of(
        checkpoint,
        source,
        names,
        family=str(checkpoint.config["architecture"]),
        num_layers=len(blocks),
        layer=index,
        config=_config(model, blocks[index], checkpoint.config),
    )


def _refuse(tower: str | None, order: Order) -> None:
    if tower is not None or order != "none":
        raise BlockError("tower= and order= are of models of transformers", "leave them out: a timm encoder has one")


def _read(checkpoint: Checkpoint, name: str) -> Tensor:
    if name not in checkpoint.names():
        raise CheckpointError(f"{checkpoint.label} lacks {name}", "the file does not fit the model it names")
    return read_finite(checkpoint, name)


def _config(model: nn.Module, block: nn.Module, values: Mapping[str, Any]) -> OpaqueConfig:
    dim = int(model.embed_dim)  # type: ignore[arg-type]
    last = getattr(model, "norm", None)
    norm = (traits_of(last, dim) if isinstance(last, nn.Module) else None) or inner_norm_of(block, dim)
    shapes = {name: tuple(t.shape) for name, t in block.state_dict().items()}
    heads = int(getattr(getattr(block, "attn", None), "num_heads", 1))
    return OpaqueConfig(
        dim=dim,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=max(1, dim // heads),
        mlp_dim=max([dim, *(max(shape) for shape in shapes.values())]),
        norm=norm.kind if norm else "layer",
        norm_eps=norm.eps if norm else 1e-5,
        norm_bias=bool(norm and norm.has_bias),
        code=f"timm:{type(block).__name__}",
        settings={"architecture": values["architecture"], "model_args": dict(values.get("model_args") or {})},
        shapes=shapes,
        minus_one=tuple(f"{path}.weight" for path, m in block.named_modules() if is_minus_one(m)),
    )
