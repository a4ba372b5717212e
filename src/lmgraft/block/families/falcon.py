"""Falcon 7B, 40B, 180B, RW and Falcon 2: q/k/v fused group by group, three ways to place the norms."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from lmgraft.block.config import FINAL_NORM, BlockConfig
from lmgraft.block.family import Family, activation, count, flag, number
from lmgraft.block.gguf import QKV, gguf_fields, gguf_names
from lmgraft.checkpoint import NameMap


def _names(attention_norm: str, mlp_norm: str) -> NameMap:
    return NameMap(
        roots=("transformer.", ""),
        layer_prefix="h.{layer}.",
        tensors={
            "attention_norm": attention_norm,
            "attention.qkv": "self_attention.query_key_value",
            "attention.o": "self_attention.dense",
            "mlp_norm": mlp_norm,
            "mlp.up": "mlp.dense_h_to_4h",
            "mlp.down": "mlp.dense_4h_to_h",
        },
        outside={FINAL_NORM: "ln_f"},
        fused={"attention.qkv": QKV},
        grouped=True,
    )


def config_from_hf(config: Mapping[str, Any], names: Collection[str]) -> BlockConfig:
    """Defaults are those of transformers' FalconConfig."""
    dim, heads = count(config, "hidden_size"), count(config, "num_attention_heads")
    new = flag(config, "new_decoder_architecture", False)
    old_kv_heads = 1 if flag(config, "multi_query", True) else heads
    biased = flag(config, "bias", False)
    return BlockConfig(
        dim=dim,
        num_heads=heads,
        num_kv_heads=count(config, "num_kv_heads", heads) if new else old_kv_heads,
        head_dim=dim // heads,
        mlp_dim=count(config, "ffn_hidden_size", 4 * dim),
        norm="layer",
        norm_bias=True,
        norm_eps=number(config, "layer_norm_epsilon", 1e-5),
        mlp="plain",
        activation=activation(config, "activation", "gelu"),
        qkv_bias=biased,
        output_bias=biased,
        mlp_bias=biased,
        parallel=_parallel(config, new),
    )


def _parallel(config: Mapping[str, Any], new: bool) -> Any:
    if not flag(config, "parallel_attn", True):
        return "none"
    norms = config.get("num_ln_in_parallel_attn") or (2 if new else 1)
    return "own_norm" if new and norms == 2 else "shared_norm"


def config_from_gguf(config: Mapping[str, Any], names: Collection[str]) -> BlockConfig:
    """llama.cpp knows parallel Falcons only; its converter reorders q/k/v one after another."""
    two = "blk.0.attn_norm_2.weight" in names
    return BlockConfig(
        **gguf_fields(config, names),
        norm="layer",
        norm_bias=True,
        mlp="plain",
        activation="gelu",
        parallel="own_norm" if two else "shared_norm",
    )


_HF = _names("input_layernorm", "post_attention_layernorm")
_GGUF = gguf_names(fused={"attention.qkv": QKV})

FAMILY = Family(
    config_from={"hf": config_from_hf, "gguf": config_from_gguf},
    num_layers_key={"hf": "num_hidden_layers", "gguf": "falcon.block_count"},
    names={"hf": _HF, "gguf": _GGUF},
    variants={
        "hf": {"ln_attn.weight": _names("ln_attn", "ln_mlp")},
        "gguf": {
            "attn_norm_2.weight": gguf_names(
                names={"attention_norm": "attn_norm_2", "mlp_norm": "attn_norm"}, fused={"attention.qkv": QKV}
            )
        },
    },
    verified="MQA (7B), GQA with two norms (40B) and one (Falcon 2), sequential with biases (RW)",
)
