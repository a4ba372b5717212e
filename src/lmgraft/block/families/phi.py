"""Phi 1, 1.5 and 2: parallel residual behind one LayerNorm, biases everywhere."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from lmgraft.block.config import BlockConfig
from lmgraft.block.family import Family, activation, number, refuse
from lmgraft.block.gguf import QKV, gguf_fields, gguf_names
from lmgraft.block.hf import hf_fields, hf_names

_NAMES = {"attention.o": "self_attn.dense", "mlp.up": "mlp.fc1", "mlp.down": "mlp.fc2"}
_TRAITS: dict[str, Any] = {"norm": "layer", "norm_bias": True, "mlp": "plain", "parallel": "shared_norm"}


def config_from_hf(config: Mapping[str, Any], names: Collection[str]) -> BlockConfig:
    """Defaults are those of transformers' PhiConfig."""
    refuse(config, "qk_layernorm", (False,), "a LayerNorm of queries and keys")
    own = {
        "norm_eps": number(config, "layer_norm_eps", 1e-5),
        "activation": activation(config, "hidden_act", "gelu_new"),
    }
    return BlockConfig(**hf_fields(config) | own | _TRAITS, qkv_bias=True, output_bias=True, mlp_bias=True)


def config_from_gguf(config: Mapping[str, Any], names: Collection[str]) -> BlockConfig:
    return BlockConfig(**gguf_fields(config, names), **_TRAITS, activation="gelu_tanh")


FAMILY = Family(
    config_from={"hf": config_from_hf, "gguf": config_from_gguf},
    num_layers_key={"hf": "num_hidden_layers", "gguf": "phi2.block_count"},
    names={"hf": hf_names(names=_NAMES, final_norm="final_layernorm"), "gguf": gguf_names()},
    variants={"gguf": {"attn_qkv.weight": gguf_names(fused={"attention.qkv": QKV})}},
    verified="parallel residual, LayerNorm with shift, biases, GQA",
)
