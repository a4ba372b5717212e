"""OLMo 2 and 3: a norm behind each branch, norms of q and k over all heads at once."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from lmgraft.block.config import BlockConfig
from lmgraft.block.family import Family
from lmgraft.block.gguf import gguf_fields, gguf_names
from lmgraft.block.hf import attention_biases, hf_fields, hf_names

_NAMES = {"attention_post_norm": "post_attention_layernorm", "mlp_post_norm": "post_feedforward_layernorm"}


def config_from_hf(config: Mapping[str, Any], names: Collection[str]) -> BlockConfig:
    """Defaults are those of transformers' Olmo2Config."""
    return BlockConfig(
        **hf_fields(config, eps=1e-5), **attention_biases(config), norm_place="post_branch", qk_norm="full_width"
    )


def config_from_gguf(config: Mapping[str, Any], names: Collection[str]) -> BlockConfig:
    return BlockConfig(**gguf_fields(config, names), norm_place="post_branch", qk_norm="full_width")


FAMILY = Family(
    config_from={"hf": config_from_hf, "gguf": config_from_gguf},
    num_layers_key={"hf": "num_hidden_layers", "gguf": "olmo2.block_count"},
    names={"hf": hf_names(names=_NAMES), "gguf": gguf_names()},
    verified="norm behind each branch, norm of q and k over the full width, GQA, biases",
)
OLMO3 = replace(
    FAMILY,
    config_from={"hf": config_from_hf},
    num_layers_key={"hf": "num_hidden_layers"},
    names={"hf": hf_names(names=_NAMES)},
    verified="as OLMo 2; sliding and full layers are alike here",
)
