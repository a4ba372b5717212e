"""Gemma 4 (text, without experts): layers of two shapes, values normed and sometimes made by the keys' projection.

What a layer gets of the identity of a text token (`per_layer_input`) is zero here, and adds nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from lmgraft.block.config import BlockConfig
from lmgraft.block.family import Family, activation, count, flag
from lmgraft.block.hf import attention_biases, hf_fields, hf_names
from lmgraft.errors import BlockError

_FULL = "full_attention"


def config_from_hf(config: Mapping[str, Any], names: Collection[str]) -> BlockConfig:
    """Defaults are those of transformers' Gemma4TextConfig; of the layers with a sliding window."""
    fields = hf_fields(config, head_dim=256) | attention_biases(config)
    return BlockConfig(
        **fields | {"activation": activation(config, "hidden_activation", "gelu_pytorch_tanh")},
        norm_place="sandwich",
        qk_norm="per_head",
        value_norm=True,
        attention_scales=(1.0,),
        output_scale=True,
    )


def kind(config: Mapping[str, Any], layer: int) -> str:
    """`sliding_attention` or `full_attention`, which differ in shape."""
    types, layers = config.get("layer_types"), count(config, "num_hidden_layers")
    if isinstance(types, list) and layer < len(types):
        return str(types[layer])
    return "sliding_attention" if (layer + 1) % 6 and layer < layers - 1 else _FULL


def layer_fields(config: Mapping[str, Any], layer: int) -> dict[str, Any]:
    """Heads of a layer with full attention have another width and number; refuses a layer without keys of its own."""
    layers, borrowing = count(config, "num_hidden_layers"), config.get("num_kv_shared_layers") or 0
    if layer >= layers - borrowing:
        raise BlockError(
            f"layer {layer} has no keys and values of its own: it takes those of an earlier layer",
            f"choose 0 to {layers - borrowing - 1}",
        )
    each = config.get("per_layer_config")  # transformers' own; before, the keys below
    if isinstance(each, Mapping):
        own = each.get(str(layer)) or each.get(layer) or {}
        names = {"num_key_value_heads": "num_kv_heads", "head_dim": "head_dim"}
        return {field: count(own, key) for key, field in names.items() if key in own}
    if kind(config, layer) != _FULL:
        return {}
    fields = {"head_dim": count(config, "global_head_dim", 512)}
    if flag(config, "attention_k_eq_v", False) and config.get("num_global_key_value_heads"):
        fields["num_kv_heads"] = count(config, "num_global_key_value_heads")
    return fields


_NAMES = {
    "attention_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
    "output_scale.weight": "layer_scalar",
}
_ZERO = (r"per_layer_input_gate\.weight", r"per_layer_projection\.weight", r"post_per_layer_input_norm\.weight")


def _names(values: str) -> Any:
    return hf_names(names=_NAMES | {"attention.v": f"self_attn.{values}"}, more_dropped=_ZERO)


FAMILY = Family(
    config_from={"hf": config_from_hf},
    num_layers_key={"hf": "num_hidden_layers"},
    names={"hf": _names("k_proj")},
    variants={"hf": {"self_attn.v_proj.weight": _names("v_proj")}},
    layer_fields=layer_fields,
    kind=kind,
    verified="sliding and full layers, values of keys' projection, norm of values, biases; no input per layer",
)
