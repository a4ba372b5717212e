"""Cohere 2 (Command R7B, Command A): attention and MLP behind one LayerNorm without shift."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from lmgraft.block.config import BlockConfig
from lmgraft.block.family import Family, number
from lmgraft.block.hf import attention_biases, hf_fields, hf_names


def config_from_hf(config: Mapping[str, Any], names: Collection[str]) -> BlockConfig:
    """Defaults are those of transformers' Cohere2Config."""
    eps = {"norm_eps": number(config, "layer_norm_eps", 1e-5)}
    return BlockConfig(**hf_fields(config) | eps, **attention_biases(config), norm="layer", parallel="shared_norm")


FAMILY = Family(
    config_from={"hf": config_from_hf},
    num_layers_key={"hf": "num_hidden_layers"},
    names={"hf": hf_names()},
    verified="parallel residual behind a LayerNorm without shift, GQA, biases; sliding and full layers are alike here",
)
