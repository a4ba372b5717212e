"""Phi 3, 3.5 and 4: fused q/k/v and fused gate/up."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from lmgraft.block.config import BlockConfig
from lmgraft.block.family import Family
from lmgraft.block.gguf import QKV, gguf_fields, gguf_names
from lmgraft.block.hf import hf_fields, hf_names

_FUSED = {"attention.qkv": QKV, "mlp.gate_up": ("mlp.gate", "mlp.up")}

_NAMES = {"attention.qkv": "self_attn.qkv_proj", "mlp.gate_up": "mlp.gate_up_proj"}


def config_from_hf(config: Mapping[str, Any], names: Collection[str]) -> BlockConfig:
    """Defaults are those of transformers' Phi3Config."""
    return BlockConfig(**hf_fields(config, eps=1e-5))


def config_from_gguf(config: Mapping[str, Any], names: Collection[str]) -> BlockConfig:
    return BlockConfig(**gguf_fields(config, names))


FAMILY = Family(
    config_from={"hf": config_from_hf, "gguf": config_from_gguf},
    num_layers_key={"hf": "num_hidden_layers", "gguf": "phi3.block_count"},
    names={"hf": hf_names(names=_NAMES, fused=_FUSED), "gguf": gguf_names(fused=_FUSED)},
    verified="fused q/k/v and gate/up, GQA",
)
