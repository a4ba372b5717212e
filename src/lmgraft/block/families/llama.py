"""LLaMA 1-3, SmolLM 1-3, Yi, Mistral and everything else laid out as llama."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from lmgraft.block.config import FINAL_NORM, BlockConfig
from lmgraft.block.family import Family, count, flag, number
from lmgraft.block.gguf import gguf_fields, gguf_names, undo_permuted_rows
from lmgraft.block.hf import attention_biases, hf_fields, hf_names
from lmgraft.checkpoint import NameMap


def config_from_hf(config: Mapping[str, Any], names: Collection[str]) -> BlockConfig:
    """Defaults are those of transformers' LlamaConfig."""
    return BlockConfig(**hf_fields(config), **attention_biases(config), mlp_bias=flag(config, "mlp_bias", False))


META = NameMap(
    layer_prefix="layers.{layer}.",
    tensors={
        "attention_norm": "attention_norm",
        "attention.q": "attention.wq",
        "attention.k": "attention.wk",
        "attention.v": "attention.wv",
        "attention.o": "attention.wo",
        "mlp_norm": "ffn_norm",
        "mlp.gate": "feed_forward.w1",
        "mlp.up": "feed_forward.w3",
        "mlp.down": "feed_forward.w2",
    },
    outside={FINAL_NORM: "norm"},
    dropped=(r"attention\.inner_attention\.rope\.freqs",),
)


def config_from_meta(config: Mapping[str, Any], names: Collection[str]) -> BlockConfig:
    """params.json; the reader has added the MLP's width from the weights."""
    dim, heads = count(config, "dim"), count(config, "n_heads")
    return BlockConfig(
        dim=dim,
        num_heads=heads,
        num_kv_heads=count(config, "n_kv_heads", heads),
        head_dim=count(config, "head_dim", max(1, dim // heads)),
        mlp_dim=count(config, "mlp_dim"),
        norm_eps=number(config, "norm_eps", 1e-5),
    )


def config_from_gguf(config: Mapping[str, Any], names: Collection[str]) -> BlockConfig:
    return BlockConfig(**gguf_fields(config, names))


FAMILY = Family(
    config_from={"hf": config_from_hf, "gguf": config_from_gguf, "meta": config_from_meta},
    num_layers_key={"hf": "num_hidden_layers", "gguf": "llama.block_count", "meta": "n_layers"},
    names={"hf": hf_names(), "gguf": gguf_names(), "meta": META},
    restore={"gguf": undo_permuted_rows, "meta": undo_permuted_rows},
    verified="GQA, MQA, wide heads, attention and MLP biases",
)
_NO_META = {"hf": config_from_hf, "gguf": config_from_gguf}  # Meta's files are always LLaMA's
MISTRAL = replace(FAMILY, config_from=_NO_META, verified="GQA, wide heads; its GGUF files say llama")
SMOLLM3 = replace(
    FAMILY,
    config_from=_NO_META,
    num_layers_key={"hf": "num_hidden_layers", "gguf": "smollm3.block_count"},
    verified="GQA, biases; layers with and without positions are alike here",
)
