"""BLOOM: LayerNorm, fused q/k/v head by head, biases everywhere; ALiBi goes with the positions."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from lmgraft.block.config import FINAL_NORM, BlockConfig
from lmgraft.block.family import Family, count, flag, number
from lmgraft.block.gguf import QKV, gguf_fields, gguf_names
from lmgraft.checkpoint import NameMap

HF = NameMap(
    roots=("transformer.", ""),
    layer_prefix="h.{layer}.",
    tensors={
        "attention_norm": "input_layernorm",
        "attention.qkv": "self_attention.query_key_value",
        "attention.o": "self_attention.dense",
        "mlp_norm": "post_attention_layernorm",
        "mlp.up": "mlp.dense_h_to_4h",
        "mlp.down": "mlp.dense_4h_to_h",
    },
    outside={FINAL_NORM: "ln_f"},
    fused={"attention.qkv": QKV},
    grouped=True,
)
_TRAITS: dict[str, Any] = {"norm": "layer", "norm_bias": True, "mlp": "plain", "activation": "gelu_tanh"}


def config_from_hf(config: Mapping[str, Any], names: Collection[str]) -> BlockConfig:
    """Keys as BLOOM's files have them: n_embed or hidden_size, n_head or num_attention_heads."""
    dim = count(config, "n_embed") if "n_embed" in config else count(config, "hidden_size")
    heads = count(config, "num_attention_heads") if "num_attention_heads" in config else count(config, "n_head")
    return BlockConfig(
        dim=dim,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=dim // heads,
        mlp_dim=4 * dim,
        norm_eps=number(config, "layer_norm_epsilon", 1e-5),
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        residual_after_norm=flag(config, "apply_residual_connection_post_layernorm", False),
        **_TRAITS,
    )


def config_from_gguf(config: Mapping[str, Any], names: Collection[str]) -> BlockConfig:
    """llama.cpp's converter reorders q/k/v one after another."""
    return BlockConfig(**gguf_fields(config, names), **_TRAITS)


FAMILY = Family(
    config_from={"hf": config_from_hf, "gguf": config_from_gguf},
    num_layers_key={"hf": "n_layer", "gguf": "bloom.block_count"},
    names={"hf": HF, "gguf": gguf_names(fused={"attention.qkv": QKV})},
    verified="fused q/k/v per head, residual from the input and from its norm",
)
