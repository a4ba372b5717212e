"""Mixtures of experts that are a llama otherwise: Mixtral, Qwen 3 MoE, OLMoE.

A file holds each expert's three matrices by themselves; a block stacks them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from lmgraft.block.config import BlockConfig
from lmgraft.block.family import Family, count, flag, refuse
from lmgraft.block.hf import attention_biases, dense_fields, expert_kind, has_experts, hf_fields, hf_names


def mixtral_from_hf(config: Mapping[str, Any], names: Collection[str]) -> BlockConfig:
    """Defaults are those of transformers' MixtralConfig."""
    return BlockConfig(
        **hf_fields(config, eps=1e-5),
        num_experts=count(config, "num_local_experts", 8),
        experts_per_token=count(config, "num_experts_per_tok", 2),
    )


def qwen3_moe_from_hf(config: Mapping[str, Any], names: Collection[str]) -> BlockConfig:
    """Defaults are those of transformers' Qwen3MoeConfig; of the layers with experts."""
    fields = hf_fields(config) | {"mlp_dim": count(config, "moe_intermediate_size", 768)}
    return BlockConfig(**fields, **attention_biases(config), **_routed(config, 128), qk_norm="per_head")


def olmoe_from_hf(config: Mapping[str, Any], names: Collection[str]) -> BlockConfig:
    """Defaults are those of transformers' OlmoeConfig."""
    refuse(config, "clip_qkv", (), "a bound behind the norms of queries and keys")
    return BlockConfig(
        **hf_fields(config, eps=1e-5),
        **attention_biases(config),
        **_routed(config, 64),
        qk_norm="full_width",
    )


def _routed(config: Mapping[str, Any], experts: int) -> dict[str, Any]:
    key = "num_experts" if "num_experts" in config else "num_local_experts"  # the maker's, transformers 5's own
    return {
        "num_experts": count(config, key, experts),
        "experts_per_token": count(config, "num_experts_per_tok", 8),
        "router_shares": "chosen" if flag(config, "norm_topk_prob", False) else "all",
    }


def layer_fields(config: Mapping[str, Any], layer: int) -> dict[str, Any]:
    """Of a model whose layers have experts or one MLP."""
    return {} if has_experts(config, layer) else dense_fields(config)


def _family(config_from: Any, mlp: str, matrices: tuple[str, str, str], verified: str, **more: Any) -> Family:
    parts = zip(("gate", "up", "down"), matrices, strict=True)
    names = hf_names(
        names={"mlp.router": f"{mlp}.gate"},
        stacked={f"mlp.{part}": f"{mlp}.experts.{{i}}.{matrix}" for part, matrix in parts},
    )
    return Family(
        config_from={"hf": config_from},
        num_layers_key={"hf": "num_hidden_layers"},
        names={"hf": names},
        experts=True,
        verified=verified,
        **more,
    )


_QWEN = ("gate_proj", "up_proj", "down_proj")
MIXTRAL = _family(mixtral_from_hf, "block_sparse_moe", ("w1", "w3", "w2"), "experts, GQA")
QWEN3_MOE = _family(
    qwen3_moe_from_hf,
    "mlp",
    _QWEN,
    "experts, both kinds of shares, norm of q and k, biases, dense layers",
    layer_fields=layer_fields,
    kind=expert_kind,
)
OLMOE = _family(olmoe_from_hf, "mlp", _QWEN, "experts, norm of q and k over the full width")
