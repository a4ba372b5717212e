"""GPT-NeoX and Pythia: fused q/k/v head by head, parallel residual with a norm for each branch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from lmgraft.block.config import FINAL_NORM, BlockConfig
from lmgraft.block.family import Family, activation, count, flag, number
from lmgraft.block.gguf import QKV, gguf_fields, gguf_names
from lmgraft.checkpoint import NameMap

HF = NameMap(
    roots=("gpt_neox.", ""),
    layer_prefix="layers.{layer}.",
    tensors={
        "attention_norm": "input_layernorm",
        "attention.qkv": "attention.query_key_value",
        "attention.o": "attention.dense",
        "mlp_norm": "post_attention_layernorm",
        "mlp.up": "mlp.dense_h_to_4h",
        "mlp.down": "mlp.dense_4h_to_h",
    },
    outside={FINAL_NORM: "final_layer_norm"},
    dropped=(r"attention\.(bias|masked_bias|rotary_emb\.inv_freq)",),
    fused={"attention.qkv": QKV},
    grouped=True,
)
_TRAITS: dict[str, Any] = {"norm": "layer", "norm_bias": True, "mlp": "plain"}


def config_from_hf(config: Mapping[str, Any], names: Collection[str]) -> BlockConfig:
    """Defaults are those of transformers' GPTNeoXConfig."""
    dim, heads = count(config, "hidden_size"), count(config, "num_attention_heads")
    biased = flag(config, "attention_bias", True)
    return BlockConfig(
        dim=dim,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=dim // heads,
        mlp_dim=count(config, "intermediate_size"),
        norm_eps=number(config, "layer_norm_eps", 1e-5),
        activation=activation(config, "hidden_act", "gelu"),
        qkv_bias=biased,
        output_bias=biased,
        mlp_bias=True,
        parallel="own_norm" if flag(config, "use_parallel_residual", True) else "none",
        **_TRAITS,
    )


def config_from_gguf(config: Mapping[str, Any], names: Collection[str]) -> BlockConfig:
    """llama.cpp's converter reorders q/k/v one after another."""
    parallel = flag(config, "gptneox.use_parallel_residual", True)
    return BlockConfig(
        **gguf_fields(config, names), **_TRAITS, activation="gelu", parallel="own_norm" if parallel else "none"
    )


FAMILY = Family(
    config_from={"hf": config_from_hf, "gguf": config_from_gguf},
    num_layers_key={"hf": "num_hidden_layers", "gguf": "gptneox.block_count"},
    names={"hf": HF, "gguf": gguf_names(fused={"attention.qkv": QKV})},
    verified="fused q/k/v per head, parallel and sequential residual, with and without attention biases",
)
