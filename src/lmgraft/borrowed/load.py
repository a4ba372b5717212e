"""A checkpoint that transformers has the code for -> a block of its layers, or a report on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from lmgraft.block import Provenance
from lmgraft.block.config import FINAL_NORM, FinalNorm, Order
from lmgraft.block.load import SourceReport, facts_of, report_of, resolve_layers
from lmgraft.block.opaque import OpaqueBlock, OpaqueConfig, OpaqueLayer
from lmgraft.borrowed.neutral import call_of, check_neutral, check_recurrent, heads_of, neutralise
from lmgraft.borrowed.norms import final_norm_of, inner_norm_of, is_minus_one
from lmgraft.borrowed.skeleton import Skeleton, build, fill_buffers
from lmgraft.borrowed.tensors import Reader
from lmgraft.checkpoint import Checkpoint, tensor_digest
from lmgraft.checkpoint.memory import check_memory
from lmgraft.errors import BlockError, CheckpointError

_NOT_COMPUTED_BY = {
    *("transformers_version", "_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "use_cache"),
    *("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "id2label", "label2id", "tie_word_embeddings"),
    *("quantization_config", "_attn_implementation", "initializer_range", "max_position_embeddings", "return_dict"),
    *("output_attentions", "output_hidden_states"),
}
"""Keys of config.json that a layer does not compute by: two files that differ in them hold the same block."""


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
    """Layers of a model of transformers as a block, only their tensors read.

    Raises:
        BlockError: If transformers does not know the model, or a layer cannot be made a block: it needs
            more than tokens, or reads them in order.
        CheckpointError: If the file does not hold the layers.
    """
    skeleton = build(checkpoint.config, tower)
    indices = resolve_layers(layer, len(skeleton.tower.layers))
    config = _config(skeleton, checkpoint.config, indices[0])
    reader = Reader(checkpoint, skeleton, dtype)
    layers: list[OpaqueLayer] = []
    digests: dict[str, str] = {}
    names = [n for index in indices for target in reader.targets(index) for n in target.names()]
    check_memory(reader.checkpoint, [step for index in indices for step in reader.steps(index)], dtype)
    for position, index in enumerate(indices):
        tensors, read = reader.layer(index)
        digests |= {f"{position}.{name}": digest for name, digest in read.items()}
        layers.append(_filled(skeleton, index, tensors, order == "causal"))
        if order == "causal":
            check_recurrent(layers[-1], index, config.dim)
    norm, norm_digests = _final_norm(reader, config, final_norm)
    provenance = Provenance(
        source=source,
        tower=tower,
        order=order,
        family=skeleton.config.model_type,
        layers=indices,
        num_layers=len(skeleton.tower.layers),
        final_norm=final_norm,
        **facts_of(reader.checkpoint, names),
    )
    block = OpaqueBlock(config, layers, provenance=provenance, final_norm=norm, digests=digests | norm_digests)
    if order == "none":
        check_neutral(block)
    return block


def _filled(skeleton: Skeleton, index: int, tensors: Mapping[str, Tensor], causal: bool) -> OpaqueLayer:
    """A layer with its tensors in it, called neutrally."""
    layer = skeleton.layer(index)
    fill_buffers(skeleton, layer)
    for name, tensor in tensors.items():
        parent, _, leaf = name.rpartition(".")
        module = layer.get_submodule(parent)
        if leaf in module._parameters:
            module._parameters[leaf] = Parameter(tensor, requires_grad=False)
        elif leaf in module._buffers:
            module._buffers[leaf] = tensor
    for module in layer.modules():
        for table in (module._parameters, module._buffers):
            for name in [n for n, t in table.items() if t is not None and t.is_meta]:
                table[name] = None  # transformers loads without it: nothing in the layer needs it
    if not causal:
        neutralise(layer)
    return OpaqueLayer(layer, call_of(skeleton, layer, causal))


def _config(skeleton: Skeleton, values: Mapping[str, Any], index: int) -> OpaqueConfig:
    layer, config = skeleton.layer(index), skeleton.config
    dim = width_of(config)
    behind = final_norm_of(skeleton, dim)
    norm = behind[1] if behind is not None else inner_norm_of(layer, dim)
    heads = heads_of(config)
    shapes = {name: tuple(t.shape) for name, t in skeleton.tensors(index).items() if t.is_floating_point()}
    head_dim = getattr(config, "head_dim", None)
    return OpaqueConfig(
        dim=dim,
        num_heads=heads,
        num_kv_heads=_count(getattr(config, "num_key_value_heads", None), heads),
        head_dim=_count(head_dim, max(1, dim // heads)),
        mlp_dim=max([dim, *(max(shape[-2:]) for shape in shapes.values() if len(shape) > 1)]),
        norm=norm.kind if norm else "layer",
        norm_eps=norm.eps if norm else 1e-5,
        norm_bias=bool(norm and norm.has_bias),
        code=f"transformers:{type(layer).__name__}",
        settings=_settings(values),
        shapes=shapes,
        minus_one=tuple(f"{path}.weight" for path, m in layer.named_modules() if is_minus_one(m)),
    )


def width_of(config: Any) -> int:
    """D, by the keys that configs have for it."""
    keys = ("hidden_size", "d_model", "n_embd", "dim", "embed_dim")
    width = next((v for k in keys if isinstance(v := getattr(config, k, None), int)), None)
    if width is None:
        raise BlockError(f"{type(config).__name__} does not say how wide its layers are", "use another model")
    return width


def _count(value: Any, default: int) -> int:
    return value if isinstance(value, int) and value > 0 else default


def _settings(values: Any) -> Any:
    """config.json without what no layer computes by."""
    if not isinstance(values, Mapping):
        return values
    return {key: _settings(value) for key, value in values.items() if key not in _NOT_COMPUTED_BY}


def _final_norm(
    reader: Reader, config: OpaqueConfig, kind: FinalNorm
) -> tuple[dict[str, Tensor] | None, dict[str, str]]:
    if kind != "pretrained":
        return None, {}
    behind = final_norm_of(reader.skeleton, config.dim)
    if behind is None:
        raise BlockError(
            f"{type(reader.skeleton.model).__name__} has no norm behind its layers that lmgraft knows",
            "use final_norm='unit' or 'none'",
        )
    path, _ = behind
    read = {name: reader.one(f"{path}.{name}") for name in config.norm_shapes()}
    absent = [name for name, tensor in read.items() if tensor is None]
    if absent:
        raise CheckpointError(f"{reader.checkpoint.label} lacks {path}.{absent[0]}", "use final_norm='unit' or 'none'")
    norm = {name: tensor for name, tensor in read.items() if tensor is not None}
    return norm, {f"{FINAL_NORM}.{name}": tensor_digest(tensor) for name, tensor in norm.items()}


def inspect_layers(checkpoint: Checkpoint, source: str, layer: int, tower: str | None) -> SourceReport:
    """Anatomy of one layer of a model of transformers; reads headers, no weights."""
    skeleton = build(checkpoint.config, tower)
    (index,) = resolve_layers((layer,), len(skeleton.tower.layers))
    reader = Reader(checkpoint, skeleton, None)
    names = [n for target in reader.targets(index) for n in target.names()]
    if not names:
        raise CheckpointError(
            f"{checkpoint.label} does not hold layer {index} of the {skeleton.config.model_type!r} it says it is",
            "the file is of another architecture than it says, or this version of transformers does not know it",
        )
    return report_of(
        reader.checkpoint,
        source,
        names,
        family=skeleton.config.model_type,
        num_layers=len(skeleton.tower.layers),
        layer=index,
        config=_config(skeleton, checkpoint.config, index),
        kinds=kinds_of(skeleton),
    )


def kinds_of(skeleton: Skeleton) -> tuple[str, ...]:
    """What each layer is, in a word or two, where layers differ; empty where all are alike."""
    named = getattr(skeleton.config, "layer_types", None) or ()
    kinds = []
    for index, layer in enumerate(skeleton.tower.layers):
        attention = str(named[index]) if index < len(named) else _mixes_by(layer)
        kinds.append(f"{attention}, {'experts' if _has_experts(layer) else 'dense'}")
    return tuple(kinds) if len(set(kinds)) > 1 else ()


def _mixes_by(layer: nn.Module) -> str:
    """The class of what mixes tokens in a layer, as far as names tell."""
    names = [type(m).__name__ for m in layer.modules()]
    return next((n for n in names if "Attention" in n or "Mamba" in n or "Mixer" in n), type(layer).__name__)


def _has_experts(layer: nn.Module) -> bool:
    return any("Experts" in type(m).__name__ or "Moe" in type(m).__name__ for m in list(layer.modules())[1:])
