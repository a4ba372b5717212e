"""What most Hugging Face checkpoints share: the names and config keys of llama and its many kin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmgraft.block.config import FINAL_NORM
from lmgraft.block.family import activation, count, flag, number
from lmgraft.checkpoint import NameMap

_NAMES = {
    "attention_norm": "input_layernorm",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
    "attention.o": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}
_ROOTS = ("model.", "", "model.language_model.", "language_model.model.")


def hf_names(
    *,
    names: Mapping[str, str] | None = None,
    final_norm: str = "norm",
    more_dropped: tuple[str, ...] = (),
    **options: Any,
) -> NameMap:
    """The common name map, `names` laid over it."""
    return NameMap(
        roots=_ROOTS,
        layer_prefix="layers.{layer}.",
        tensors=_NAMES | dict(names or {}),
        outside={FINAL_NORM: final_norm},
        dropped=(r"self_attn\.rotary_emb\.inv_freq", *more_dropped),
        **options,
    )


def hf_fields(config: Mapping[str, Any], *, head_dim: int | None = None, eps: float = 1e-6) -> dict[str, Any]:
    """Shape, eps and activation by the common keys.

    Args:
        config: config.json, or its language part.
        head_dim: The family's default; None is dim / heads.
        eps: The family's default.
    """
    dim, heads = count(config, "hidden_size"), count(config, "num_attention_heads")
    return {
        "dim": dim,
        "num_heads": heads,
        "num_kv_heads": count(config, "num_key_value_heads", heads),
        "head_dim": count(config, "head_dim", head_dim or dim // heads),
        "mlp_dim": count(config, "intermediate_size"),
        "norm_eps": number(config, "rms_norm_eps", eps),
        "activation": activation(config, "hidden_act", "silu"),
    }


def attention_biases(config: Mapping[str, Any]) -> dict[str, Any]:
    """`attention_bias` puts biases on all four projections."""
    biased = flag(config, "attention_bias", False)
    return {"qkv_bias": biased, "output_bias": biased}


def dense_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a layer without experts in a model that has them in others."""
    fields = {"num_experts": 0, "experts_per_token": 0, "expert_groups": 1, "groups_per_token": 1}
    without = {"mlp_dim": count(config, "intermediate_size"), "shared_mlp_dim": 0}
    return fields | without | {"shared_gate": False, "choice_bias": False}


def has_experts(config: Mapping[str, Any], layer: int) -> bool:
    """Whether a layer of Qwen's models has experts: every `decoder_sparse_step`-th but for `mlp_only_layers`."""
    in_step = (layer + 1) % count(config, "decoder_sparse_step", 1) == 0
    return in_step and layer not in (config.get("mlp_only_layers") or ())


def expert_kind(config: Mapping[str, Any], layer: int) -> str:
    """The word for what `has_experts` says."""
    return "experts" if has_experts(config, layer) else "dense"
