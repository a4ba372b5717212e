"""MPT: LayerNorm without shifts, no biases, q/k/v fused and optionally clipped."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from lmgraft.block.config import FINAL_NORM, BlockConfig
from lmgraft.block.family import Family, count, number, refuse
from lmgraft.block.gguf import QKV, gguf_fields, gguf_names
from lmgraft.checkpoint import NameMap
from lmgraft.errors import BlockError

HF = NameMap(
    roots=("transformer.", ""),
    layer_prefix="blocks.{layer}.",
    tensors={
        "attention_norm": "norm_1",
        "attention.qkv": "attn.Wqkv",
        "attention.o": "attn.out_proj",
        "mlp_norm": "norm_2",
        "mlp.up": "ffn.up_proj",
        "mlp.down": "ffn.down_proj",
    },
    outside={FINAL_NORM: "norm_f"},
    fused={"attention.qkv": QKV},
)
_TRAITS: dict[str, Any] = {"norm": "layer", "mlp": "plain", "activation": "gelu"}


def config_from_hf(config: Mapping[str, Any], names: Collection[str]) -> BlockConfig:
    """transformers' MptBlock has neither biases nor another eps than its own."""
    refuse(config, "no_bias", (True,), "MPT with biases")
    dim, heads = count(config, "d_model"), count(config, "n_heads")
    attention = config.get("attn_config") or {}
    if not isinstance(attention, dict):
        raise BlockError(f"the model's config says attn_config = {attention!r}", "an object is needed")
    refuse(attention, "qk_ln", (False,), "a LayerNorm of queries and keys")
    refuse(attention, "attn_type", ("multihead_attention",), "multi-query attention")
    return BlockConfig(
        dim=dim,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=dim // heads,
        mlp_dim=count(config, "expansion_ratio", 4) * dim,
        norm_eps=number(config, "layer_norm_epsilon", 1e-5),
        attention_scales=(number(attention, "softmax_scale", (dim / heads) ** -0.5),),
        clip_qkv=number(attention, "clip_qkv", 0) or None,
        **_TRAITS,
    )


def config_from_gguf(config: Mapping[str, Any], names: Collection[str]) -> BlockConfig:
    clip = number(config, "mpt.attention.clamp_kqv", 0) or None
    return BlockConfig(**gguf_fields(config, names), **_TRAITS, clip_qkv=clip)


FAMILY = Family(
    config_from={"hf": config_from_hf, "gguf": config_from_gguf},
    num_layers_key={"hf": "n_layers", "gguf": "mpt.block_count"},
    names={"hf": HF, "gguf": gguf_names(fused={"attention.qkv": QKV})},
    verified="clip_qkv, own scale, LayerNorm without shift",
)
