"""IBM Granite: llama with its own attention scale and scaled branches."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from lmgraft.block.config import BlockConfig
from lmgraft.block.family import Family, flag, number
from lmgraft.block.gguf import gguf_fields, gguf_names, undo_permuted_rows
from lmgraft.block.hf import attention_biases, hf_fields, hf_names


def config_from_hf(config: Mapping[str, Any], names: Collection[str]) -> BlockConfig:
    """Defaults are those of transformers' GraniteConfig."""
    return BlockConfig(
        **hf_fields(config),
        **attention_biases(config),
        mlp_bias=flag(config, "mlp_bias", False),
        attention_scales=(number(config, "attention_multiplier", 1.0),),
        residual_scale=number(config, "residual_multiplier", 1.0),
    )


def config_from_gguf(config: Mapping[str, Any], names: Collection[str]) -> BlockConfig:
    fields = gguf_fields(config, names)
    scale = number(config, "granite.attention.scale", fields["head_dim"] ** -0.5)
    residual = number(config, "granite.residual_scale", 1.0)
    return BlockConfig(**fields, attention_scales=(scale,), residual_scale=residual)


FAMILY = Family(
    config_from={"hf": config_from_hf, "gguf": config_from_gguf},
    num_layers_key={"hf": "num_hidden_layers", "gguf": "granite.block_count"},
    names={"hf": hf_names(), "gguf": gguf_names()},
    restore={"gguf": undo_permuted_rows},
    verified="GQA, attention_multiplier, residual_multiplier, biases",
)
