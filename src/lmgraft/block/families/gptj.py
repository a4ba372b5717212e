"""GPT-J: parallel residual behind one LayerNorm, biases in the MLP only."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from lmgraft.block.config import FINAL_NORM, BlockConfig
from lmgraft.block.family import Family, activation, count, number
from lmgraft.checkpoint import NameMap

HF = NameMap(
    roots=("transformer.", ""),
    layer_prefix="h.{layer}.",
    tensors={
        "attention_norm": "ln_1",
        "attention.q": "attn.q_proj",
        "attention.k": "attn.k_proj",
        "attention.v": "attn.v_proj",
        "attention.o": "attn.out_proj",
        "mlp.up": "mlp.fc_in",
        "mlp.down": "mlp.fc_out",
    },
    outside={FINAL_NORM: "ln_f"},
    dropped=(r"attn\.(bias|masked_bias|embed_positions)",),
)


def config_from_hf(config: Mapping[str, Any], names: Collection[str]) -> BlockConfig:
    """Defaults are those of transformers' GPTJConfig."""
    dim, heads = count(config, "n_embd"), count(config, "n_head")
    return BlockConfig(
        dim=dim,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=dim // heads,
        mlp_dim=count(config, "n_inner", 4 * dim),
        norm="layer",
        norm_bias=True,
        norm_eps=number(config, "layer_norm_epsilon", 1e-5),
        mlp="plain",
        activation=activation(config, "activation_function", "gelu_new"),
        mlp_bias=True,
        parallel="shared_norm",
    )


FAMILY = Family(
    config_from={"hf": config_from_hf},
    num_layers_key={"hf": "n_layer"},
    names={"hf": HF},
    verified="parallel residual, MLP biases",
)
