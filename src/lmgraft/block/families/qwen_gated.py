"""Qwen 3.5 and Qwen 3 Next: gated attention in some layers; the others, of linear attention, are refused."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from lmgraft.block.config import BlockConfig
from lmgraft.block.family import Family, count, flag
from lmgraft.block.hf import attention_biases, dense_fields, expert_kind, hf_fields, hf_names
from lmgraft.errors import BlockError

_FULL = "full_attention"


def config_from_hf(config: Mapping[str, Any], names: Collection[str]) -> BlockConfig:
    """Defaults are those of transformers' Qwen3_5TextConfig."""
    return BlockConfig(**_fields(config))


def moe_from_hf(config: Mapping[str, Any], names: Collection[str]) -> BlockConfig:
    """Defaults are those of transformers' Qwen3_5MoeTextConfig and Qwen3NextConfig."""
    width = count(config, "moe_intermediate_size", 512)
    return BlockConfig(
        **_fields({**config, "intermediate_size": width}),
        num_experts=count(config, "num_experts", 256),
        experts_per_token=count(config, "num_experts_per_tok", 8),
        router_shares="chosen" if flag(config, "norm_topk_prob", True) else "all",
        shared_mlp_dim=count(config, "shared_expert_intermediate_size", 512),
        shared_gate=True,
    )


def _fields(config: Mapping[str, Any]) -> dict[str, Any]:
    own = {"norm": "rms_plus_one", "qk_norm": "per_head", "query_gate": True}
    return hf_fields(config, head_dim=256) | attention_biases(config) | own


def _mixes_by(config: Mapping[str, Any], layer: int) -> str:
    types = config.get("layer_types")
    if isinstance(types, list) and layer < len(types):
        return str(types[layer])
    return "linear_attention" if (layer + 1) % count(config, "full_attention_interval", 4) else _FULL


def kind(config: Mapping[str, Any], layer: int) -> str:
    """How a layer mixes tokens, and whether it has experts."""
    return f"{_mixes_by(config, layer)}, {expert_kind(config, layer) if 'num_experts' in config else 'dense'}"


def layer_fields(config: Mapping[str, Any], layer: int) -> dict[str, Any]:
    """Refuses linear attention, which reads its tokens in order."""
    if _mixes_by(config, layer) != _FULL:
        full = [i for i in range(count(config, "num_hidden_layers")) if _mixes_by(config, i) == _FULL]
        raise BlockError(
            f"layer {layer} is {_mixes_by(config, layer)}, which reads its tokens in order",
            f"choose one with full attention ({', '.join(map(str, full))}), or order='causal', which runs layer "
            f"{layer} in the order of the tokens by transformers' code",
        )
    return dense_fields(config) if kind(config, layer).endswith("dense") and "num_experts" in config else {}


_NAMES = {
    "attention.q_and_gate": "self_attn.q_proj",
    "mlp.router": "mlp.gate",
    "mlp.shared_gate": "mlp.shared_expert_gate",
    **{f"mlp.shared.{part}": f"mlp.shared_expert.{part}_proj" for part in ("gate", "up", "down")},
}


_PARTS = ("gate", "up", "down")
_WHOLE = {"mlp.gate_up.weight": "mlp.experts.gate_up_proj", "mlp.down.weight": "mlp.experts.down_proj"}
_FUSED = {"attention.q_and_gate": ("attention.q", "attention.q_gate")}


def _family(config_from: Any, experts: bool, verified: str) -> Family:
    """Experts are tensors of their own in a file, or one for all."""
    apart = {f"mlp.{part}": f"mlp.experts.{{i}}.{part}_proj" for part in _PARTS}
    together = _FUSED | {"mlp.gate_up": ("mlp.gate", "mlp.up")}
    whole = hf_names(names=_NAMES | _WHOLE, fused=together, grouped=True)
    return Family(
        config_from={"hf": config_from},
        num_layers_key={"hf": "num_hidden_layers"},
        names={"hf": hf_names(names=_NAMES, fused=_FUSED, grouped=True, stacked=apart)},
        variants={"hf": {_WHOLE["mlp.gate_up.weight"]: whole}},
        layer_fields=layer_fields,
        kind=kind,
        experts=experts,
        verified=verified,
    )


FAMILY = _family(config_from_hf, False, "gated attention, GQA, norm of q and k per head, biases; full attention only")
MOE = _family(moe_from_hf, True, "as Qwen 3.5, experts and a gated shared one; full attention only")
NEXT = _family(moe_from_hf, True, "as Qwen 3.5, experts and a gated shared one, dense layers; full attention only")
