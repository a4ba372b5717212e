"""gpt-oss: a sink beside the keys of each head, biases everywhere, experts with bounded gates.

All experts' matrices lie in one tensor each, gate and up in turn, stored as (inputs, outputs); in MXFP4 files so too.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from lmgraft.block.config import BlockConfig
from lmgraft.block.family import Family, count, flag, number, refuse
from lmgraft.block.hf import hf_fields, hf_names


def config_from_hf(config: Mapping[str, Any], names: Collection[str]) -> BlockConfig:
    """Defaults are those of transformers' GptOssConfig; its `hidden_act` is not what its layers compute by."""
    refuse(config, "swiglu_alpha", (1.702,), "another slope of the gate")
    biased = flag(config, "attention_bias", True)
    return BlockConfig(
        **hf_fields(config, head_dim=64, eps=1e-5) | {"activation": "quick_gelu"},
        qkv_bias=biased,
        output_bias=biased,
        mlp_bias=True,
        sinks=True,
        gate_limit=number(config, "swiglu_limit", 7.0),
        up_shift=1.0,
        num_experts=count(config, "num_local_experts", 128),
        experts_per_token=count(config, "num_experts_per_tok", 4),
        router_bias=True,
    )


_EXPERTS = {"mlp.gate_up": "mlp.experts.gate_up_proj", "mlp.down": "mlp.experts.down_proj"}
FAMILY = Family(
    config_from={"hf": config_from_hf},
    num_layers_key={"hf": "num_hidden_layers"},
    names={
        "hf": hf_names(
            names={"attention.sink_bias": "self_attn.sinks", "mlp.router": "mlp.router"}
            | {f"{name}.weight": there for name, there in _EXPERTS.items()}
            | {f"{name}.bias": f"{there}_bias" for name, there in _EXPERTS.items()},
            fused={"mlp.gate_up": ("mlp.gate", "mlp.up")},
            interleaved=True,
            transposed=("mlp.gate_up", "mlp.down"),
        )
    },
    experts=True,
    verified="sinks, biases, experts with bounded gates, GQA, MXFP4; sliding and full layers are alike here",
)
