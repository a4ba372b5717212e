"""StableLM 2 and 3B: LayerNorm, optional q/k/v biases, parallel residual and norms of q and k."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from lmgraft.block.config import BlockConfig
from lmgraft.block.family import Family, flag, number
from lmgraft.block.hf import hf_fields, hf_names

_HEADS = {f"attention.{n}_norm": f"self_attn.{n}_layernorm.norms.{{i}}" for n in "qk"}


def config_from_hf(config: Mapping[str, Any], names: Collection[str]) -> BlockConfig:
    """Defaults are those of transformers' StableLmConfig."""
    return BlockConfig(
        **hf_fields(config) | {"norm_eps": number(config, "layer_norm_eps", 1e-5)},
        norm="layer",
        norm_bias=True,
        qkv_bias=flag(config, "use_qkv_bias", False),
        parallel="shared_norm" if flag(config, "use_parallel_residual", False) else "none",
        qk_norm="per_own_head" if flag(config, "qk_layernorm", False) else "none",
    )


FAMILY = Family(
    config_from={"hf": config_from_hf},
    num_layers_key={"hf": "num_hidden_layers"},
    names={"hf": hf_names(stacked=_HEADS)},
    verified="GQA, q/k/v biases, parallel residual, LayerNorm of each head's q and k",
)
