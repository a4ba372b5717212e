"""Gemma 1, 2 and 3 (text): gains stored as their distance from one, a norm on both sides of a branch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from lmgraft.block.config import BlockConfig
from lmgraft.block.family import Family, activation, number, refuse
from lmgraft.block.gguf import gguf_fields, gguf_names, undo_gain_plus_one
from lmgraft.block.hf import attention_biases, hf_fields, hf_names

_SANDWICH = {
    "attention_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}


def _fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults are those of transformers' Gemma configs."""
    own = {"norm": "rms_plus_one", "activation": activation(config, "hidden_activation", "gelu_pytorch_tanh")}
    return hf_fields(config, head_dim=256) | attention_biases(config) | own


def gemma_from_hf(config: Mapping[str, Any], names: Collection[str]) -> BlockConfig:
    """Early files say hidden_act "gelu"; their models were trained, and are run, with the tanh form."""
    act = config.get("hidden_act")
    by_act = {} if act in (None, "gelu") else {"hidden_activation": act}
    return BlockConfig(**_fields(by_act | {k: v for k, v in config.items() if v is not None}))


def gemma2_from_hf(config: Mapping[str, Any], names: Collection[str]) -> BlockConfig:
    return BlockConfig(
        **_fields(config),
        norm_place="sandwich",
        attention_scales=(number(config, "query_pre_attn_scalar", 256) ** -0.5,),
        logit_softcap=number(config, "attn_logit_softcapping", 50.0) if _capped(config, 50.0) else None,
    )


def gemma3_from_hf(config: Mapping[str, Any], names: Collection[str]) -> BlockConfig:
    refuse(config, "attn_logit_softcapping", (), "a cap of scores, which transformers leaves out,")
    return BlockConfig(
        **_fields(config),
        norm_place="sandwich",
        qk_norm="per_head",
        attention_scales=(number(config, "query_pre_attn_scalar", 256) ** -0.5,),
    )


def _capped(config: Mapping[str, Any], default: float) -> bool:
    """A cap that is null in the file is off; one that is absent has its default."""
    return config.get("attn_logit_softcapping", default) is not None


# llama.cpp knows the 27B models, whose scale is not 1 / sqrt(head_dim), by their number of layers.
_GEMMA2_27B, _GEMMA3_27B = 46, 62


def gemma_from_gguf(config: Mapping[str, Any], names: Collection[str]) -> BlockConfig:
    return BlockConfig(**gguf_fields(config, names), norm="rms_plus_one", activation="gelu_tanh")


def gemma2_from_gguf(config: Mapping[str, Any], names: Collection[str]) -> BlockConfig:
    return _sandwich_from_gguf(
        config, names, "gemma2", _GEMMA2_27B, number(config, "gemma2.attn_logit_softcapping", 50.0)
    )


def gemma3_from_gguf(config: Mapping[str, Any], names: Collection[str]) -> BlockConfig:
    return _sandwich_from_gguf(config, names, "gemma3", _GEMMA3_27B, None, qk_norm="per_head")


def _sandwich_from_gguf(
    config: Mapping[str, Any], names: Collection[str], arch: str, layers: int, cap: float | None, **more: Any
) -> BlockConfig:
    fields = gguf_fields(config, names)
    largest = config.get(f"{arch}.block_count") == layers
    scale = (fields["dim"] // fields["num_heads"] if largest else fields["head_dim"]) ** -0.5
    return BlockConfig(
        **fields,
        norm="rms_plus_one",
        activation="gelu_tanh",
        norm_place="sandwich",
        attention_scales=(scale,),
        logit_softcap=cap,
        **more,
    )


def _family(arch: str, from_hf: Any, from_gguf: Any, norms: Mapping[str, str], verified: str) -> Family:
    return Family(
        config_from={"hf": from_hf, "gguf": from_gguf},
        num_layers_key={"hf": "num_hidden_layers", "gguf": f"{arch}.block_count"},
        names={"hf": hf_names(names=norms), "gguf": gguf_names()},
        restore={"gguf": undo_gain_plus_one},
        verified=verified,
    )


FAMILY = _family("gemma", gemma_from_hf, gemma_from_gguf, {}, "MQA, wide heads, gains stored minus one")
GEMMA2 = _family(
    "gemma2", gemma2_from_hf, gemma2_from_gguf, _SANDWICH, "sandwich norms, score softcap on and off, own scale, GQA"
)
GEMMA3 = _family(
    "gemma3", gemma3_from_hf, gemma3_from_gguf, _SANDWICH, "sandwich norms, norm of q and k per head, own scale, GQA"
)
