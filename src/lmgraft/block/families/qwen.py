"""Qwen 2 and 2.5 (biases on q, k, v) and Qwen 3 (norms on q and k)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from lmgraft.block.config import BlockConfig
from lmgraft.block.family import Family
from lmgraft.block.gguf import gguf_fields, gguf_names
from lmgraft.block.hf import attention_biases, hf_fields, hf_names


def qwen2_from_hf(config: Mapping[str, Any], names: Collection[str]) -> BlockConfig:
    return BlockConfig(**hf_fields(config), qkv_bias=True)


def qwen3_from_hf(config: Mapping[str, Any], names: Collection[str]) -> BlockConfig:
    """head_dim is 128 in Qwen3Config unless the file says otherwise."""
    return BlockConfig(**hf_fields(config, head_dim=128), **attention_biases(config), qk_norm="per_head")


def qwen2_from_gguf(config: Mapping[str, Any], names: Collection[str]) -> BlockConfig:
    return BlockConfig(**gguf_fields(config, names))


def qwen3_from_gguf(config: Mapping[str, Any], names: Collection[str]) -> BlockConfig:
    return BlockConfig(**gguf_fields(config, names), qk_norm="per_head")


FAMILY = Family(
    config_from={"hf": qwen2_from_hf, "gguf": qwen2_from_gguf},
    num_layers_key={"hf": "num_hidden_layers", "gguf": "qwen2.block_count"},
    names={"hf": hf_names(), "gguf": gguf_names()},
    verified="GQA, biases on q, k and v only",
)
QWEN3 = Family(
    config_from={"hf": qwen3_from_hf, "gguf": qwen3_from_gguf},
    num_layers_key={"hf": "num_hidden_layers", "gguf": "qwen3.block_count"},
    names={"hf": hf_names(), "gguf": gguf_names()},
    verified="GQA, norm of q and k per head, wide heads, biases",
)
