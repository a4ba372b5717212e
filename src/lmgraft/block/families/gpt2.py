"""GPT-2 and its kin: LayerNorm, fused q/k/v stored as (inputs, outputs), biases everywhere."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from lmgraft.block.config import FINAL_NORM, BlockConfig
from lmgraft.block.family import Family, activation, count, flag, number, refuse
from lmgraft.block.gguf import QKV, gguf_fields, gguf_names
from lmgraft.checkpoint import NameMap

HF = NameMap(
    roots=("transformer.", ""),
    layer_prefix="h.{layer}.",
    tensors={
        "attention_norm": "ln_1",
        "attention.qkv": "attn.c_attn",
        "attention.o": "attn.c_proj",
        "mlp_norm": "ln_2",
        "mlp.up": "mlp.c_fc",
        "mlp.down": "mlp.c_proj",
    },
    outside={FINAL_NORM: "ln_f"},
    dropped=(r"attn\.(bias|masked_bias)",),
    fused={"attention.qkv": QKV},
    transposed=("attention.qkv", "attention.o", "mlp.up", "mlp.down"),
)
_TRAITS: dict[str, Any] = {"norm": "layer", "norm_bias": True, "mlp": "plain"}
_BIASES: dict[str, Any] = {"qkv_bias": True, "output_bias": True, "mlp_bias": True}


def config_from_hf(config: Mapping[str, Any], names: Collection[str]) -> BlockConfig:
    """Defaults are those of transformers' GPT2Config."""
    refuse(config, "add_cross_attention", (False,), "cross-attention")
    dim, heads = count(config, "n_embd"), count(config, "n_head")
    return BlockConfig(
        dim=dim,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=dim // heads,
        mlp_dim=count(config, "n_inner", 4 * dim),
        norm_eps=number(config, "layer_norm_epsilon", 1e-5),
        activation=activation(config, "activation_function", "gelu_new"),
        **_TRAITS,
        **_BIASES,
    )


def layer_fields(config: Mapping[str, Any], layer: int) -> dict[str, Any]:
    """Scores may be left unscaled, and may be divided by the layer's number."""
    if "n_head" not in config:  # GGUF has no such settings
        return {}
    scaled = flag(config, "scale_attn_weights", True)
    scale = (count(config, "n_embd") // count(config, "n_head")) ** -0.5 if scaled else 1.0
    by_layer = flag(config, "scale_attn_by_inverse_layer_idx", False)
    return {"attention_scales": (scale / (layer + 1) if by_layer else scale,)}


def config_from_gguf(config: Mapping[str, Any], names: Collection[str]) -> BlockConfig:
    return BlockConfig(**gguf_fields(config, names), **_TRAITS, activation="gelu_tanh")


FAMILY = Family(
    config_from={"hf": config_from_hf, "gguf": config_from_gguf},
    num_layers_key={"hf": "n_layer", "gguf": "gpt2.block_count"},
    names={"hf": HF, "gguf": gguf_names(fused={"attention.qkv": QKV})},
    layer_fields=layer_fields,
    verified="Conv1D, fused q/k/v, unscaled scores, scale by inverse layer index",
)
