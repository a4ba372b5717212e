"""DeepSeek-V2 and V3 (latent attention, experts in groups and shared ones) and GLM-4-MoE, which routes so too.

The first layers have one MLP, the others experts.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from lmgraft.block.config import BlockConfig
from lmgraft.block.family import Family, count, flag, number, refuse
from lmgraft.block.hf import attention_biases, dense_fields, hf_fields, hf_names
from lmgraft.errors import BlockError


def v2_from_hf(config: Mapping[str, Any], names: Collection[str]) -> BlockConfig:
    """Defaults are those of transformers' DeepseekV2Config."""
    refuse(config, "norm_topk_prob", (False,), "a norm of the shares, which transformers leaves out,")
    refuse(config, "topk_method", ("greedy", "group_limited_greedy"), "this choice of experts")
    groups = _groups(config) if config.get("topk_method") == "group_limited_greedy" else {}
    return BlockConfig(**_latent(config) | _experts(config, 64, 2, 1.0), **groups, router_shares="all")


def v3_from_hf(config: Mapping[str, Any], names: Collection[str]) -> BlockConfig:
    """Defaults are those of transformers' DeepseekV3Config."""
    return BlockConfig(**_latent(config) | _experts(config, 256, 1, 2.5), **_by_sigmoid(config, 8, 4))


def glm4_moe_from_hf(config: Mapping[str, Any], names: Collection[str]) -> BlockConfig:
    """Defaults are those of transformers' Glm4MoeConfig."""
    return BlockConfig(
        **hf_fields(config, eps=1e-5) | _experts(config, 128, 1, 1.0),
        **_by_sigmoid(config, 1, 1),
        qkv_bias=flag(config, "attention_bias", False),
        qk_norm="per_head" if flag(config, "use_qk_norm", False) else "none",
    )


def _latent(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of latent attention; `q_lora_rank` of null is a plain projection of queries."""
    shared, own = count(config, "qk_rope_head_dim", 64), count(config, "qk_nope_head_dim", 128)
    fields = hf_fields(config) | attention_biases(config)
    q_rank = config.get("q_lora_rank", 1536)
    return fields | {
        "head_dim": own + shared,
        "num_kv_heads": fields["num_heads"],
        "kv_rank": count(config, "kv_lora_rank", 512),
        "q_rank": 0 if q_rank is None else count(config, "q_lora_rank", 1536),
        "shared_key_dim": shared,
        "value_dim": count(config, "v_head_dim", 128),
        "attention_scales": ((own + shared) ** -0.5 * _stretched(config) ** 2,),
    }


def _stretched(config: Mapping[str, Any]) -> float:
    """What YaRN multiplies queries and keys by, whatever their positions."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    everywhere, factor = number(rope, "mscale_all_dim", 0.0), number(rope, "factor", 1.0)
    default = rope.get("rope_type", rope.get("type", "default")) == "default"
    return 1.0 if default or not everywhere or factor <= 1 else 0.1 * everywhere * math.log(factor) + 1.0


def _experts(config: Mapping[str, Any], experts: int, shared: int, scale: float) -> dict[str, Any]:
    """Fields that all three share; the arguments are their defaults."""
    refuse(config, "moe_layer_freq", (1,), "experts in some layers only")
    width = count(config, "moe_intermediate_size", 1407)
    key = "n_routed_experts" if "n_routed_experts" in config else "num_local_experts"
    return {
        "mlp_dim": width,
        "num_experts": count(config, key, experts),
        "experts_per_token": count(config, "num_experts_per_tok", 8),
        "shares_scale": number(config, "routed_scaling_factor", scale),
        "shared_mlp_dim": width * count(config, "n_shared_experts", shared),
    }


def _by_sigmoid(config: Mapping[str, Any], groups: int, best: int) -> dict[str, Any]:
    refuse(config, "scoring_func", ("sigmoid",), "this score of experts")
    return _groups(config, groups, best) | {
        "router_scores": "sigmoid",
        "router_shares": "chosen" if flag(config, "norm_topk_prob", True) else "all",
        "choice_bias": True,
    }


def _groups(config: Mapping[str, Any], groups: int = 1, best: int = 1) -> dict[str, Any]:
    return {
        "expert_groups": count(config, "n_group", groups),
        "groups_per_token": count(config, "topk_group", best),
    }


def _kind(config: Mapping[str, Any], layer: int, dense: int) -> str:
    first = config.get("first_k_dense_replace", dense)
    if not isinstance(first, int):
        raise BlockError(f"the model's config says first_k_dense_replace = {first!r}", "a whole number is needed")
    return "dense" if layer < first else "experts"


_MLA = {
    "attention.k": "self_attn.kv_a_proj_with_mqa",
    "attention.k_norm": "self_attn.kv_a_layernorm",
    "attention.kv_up": "self_attn.kv_b_proj",
}
_Q_RANK = {
    "attention.q": "self_attn.q_a_proj",
    "attention.q_norm": "self_attn.q_a_layernorm",
    "attention.q_up": "self_attn.q_b_proj",
}
_ROUTED = {
    "mlp.router": "mlp.gate",
    "mlp.router.choice_bias": "mlp.gate.e_score_correction_bias",
    **{f"mlp.shared.{part}": f"mlp.shared_experts.{part}_proj" for part in ("gate", "up", "down")},
}
_STACKED = {f"mlp.{part}": f"mlp.experts.{{i}}.{part}_proj" for part in ("gate", "up", "down")}
_FUSED = {"attention.kv_up": ("attention.k_up", "attention.v_up")}


def _family(config_from: Any, dense: int, names: dict[str, str], verified: str, **options: Any) -> Family:
    """`dense` is how many layers have no experts by default."""

    def kind(config: Mapping[str, Any], layer: int) -> str:
        return _kind(config, layer, dense)

    def layer_fields(config: Mapping[str, Any], layer: int) -> dict[str, Any]:
        return dense_fields(config) if kind(config, layer) == "dense" else {}

    ranked = hf_names(names=names | _Q_RANK, stacked=_STACKED, **options)
    return Family(
        config_from={"hf": config_from},
        num_layers_key={"hf": "num_hidden_layers"},
        names={"hf": hf_names(names=names, stacked=_STACKED, **options)},
        variants={"hf": {"self_attn.q_a_proj.weight": ranked}},
        layer_fields=layer_fields,
        kind=kind,
        experts=True,
        verified=verified,
    )


_LATENT: dict[str, Any] = {"names": _ROUTED | _MLA, "fused": _FUSED, "grouped": True}
FAMILY = _family(
    v2_from_hf,
    0,
    verified="latent attention, queries of full or low rank, experts in groups, shared ones, dense layers",
    **_LATENT,
)
V3 = _family(
    v3_from_hf,
    3,
    verified="as V2, experts by sigmoid with a bias of choice, YaRN's scale, attention biases",
    **_LATENT,
)
GLM4_MOE = _family(glm4_moe_from_hf, 1, _ROUTED, "GQA, norm of q and k per head, biases, experts as V3's, dense layers")
