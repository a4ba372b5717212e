"""LLaMA 1-3, SmolLM2, Yi and everything else with `model_type: llama`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from lmgraft.block.config import FINAL_NORM_TENSOR, BlockConfig
from lmgraft.block.family import Family, count, require
from lmgraft.checkpoint import NameMap


def _with_biases(names: dict[str, str]) -> dict[str, str]:
    """Each projection's bias lies beside its weight, wherever the config asks for one."""
    biases = {c: f for c, f in names.items() if "norm" not in c}
    return names | {c.replace(".weight", ".bias"): f.removesuffix("weight") + "bias" for c, f in biases.items()}


HF = NameMap(
    layer_prefix="model.layers.{layer}.",
    tensors=_with_biases(
        {
            "attention_norm.weight": "input_layernorm.weight",
            "attention.q.weight": "self_attn.q_proj.weight",
            "attention.k.weight": "self_attn.k_proj.weight",
            "attention.v.weight": "self_attn.v_proj.weight",
            "attention.o.weight": "self_attn.o_proj.weight",
            "mlp_norm.weight": "post_attention_layernorm.weight",
            "mlp.gate.weight": "mlp.gate_proj.weight",
            "mlp.up.weight": "mlp.up_proj.weight",
            "mlp.down.weight": "mlp.down_proj.weight",
        }
    ),
    outside={FINAL_NORM_TENSOR: "model.norm.weight"},
    dropped=(r"self_attn\.rotary_emb\.inv_freq",),
)

GGUF = NameMap(
    layer_prefix="blk.{layer}.",
    tensors=_with_biases(
        {
            "attention_norm.weight": "attn_norm.weight",
            "attention.q.weight": "attn_q.weight",
            "attention.k.weight": "attn_k.weight",
            "attention.v.weight": "attn_v.weight",
            "attention.o.weight": "attn_output.weight",
            "mlp_norm.weight": "ffn_norm.weight",
            "mlp.gate.weight": "ffn_gate.weight",
            "mlp.up.weight": "ffn_up.weight",
            "mlp.down.weight": "ffn_down.weight",
        }
    ),
    outside={FINAL_NORM_TENSOR: "output_norm.weight"},
    dropped=(r"attn_rot_embd\.weight", r"rope_freqs\.weight"),
)


def config_from_hf(config: Mapping[str, Any]) -> BlockConfig:
    """Defaults are those of transformers' LlamaConfig."""
    dim, heads = count(config, "hidden_size"), count(config, "num_attention_heads")
    activation = config.get("hidden_act", "silu")
    return BlockConfig(
        dim=dim,
        num_heads=heads,
        num_kv_heads=count(config, "num_key_value_heads", heads),
        head_dim=count(config, "head_dim", dim // heads),
        mlp_dim=count(config, "intermediate_size"),
        norm_eps=config.get("rms_norm_eps", 1e-6),
        activation=_ACTIVATION.get(activation, activation) if isinstance(activation, str) else activation,
        attention_bias=config.get("attention_bias", False),
        mlp_bias=config.get("mlp_bias", False),
    )


_ACTIVATION = {"swish": "silu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}


def config_from_gguf(config: Mapping[str, Any], names: Collection[str]) -> BlockConfig:
    """GGUF has no flags for biases: they are there or not."""
    dim, heads = count(config, "llama.embedding_length"), count(config, "llama.attention.head_count")
    return BlockConfig(
        dim=dim,
        num_heads=heads,
        num_kv_heads=count(config, "llama.attention.head_count_kv", heads),
        head_dim=count(config, "llama.attention.key_length", dim // heads),
        mlp_dim=count(config, "llama.feed_forward_length"),
        norm_eps=require(config, "llama.attention.layer_norm_rms_epsilon"),
        attention_bias="blk.0.attn_q.bias" in names,
        mlp_bias="blk.0.ffn_up.bias" in names,
    )


def undo_rope_permutation(rows: Tensor, heads: int) -> Tensor:
    """Rows of q or k as Hugging Face orders them, from llama.cpp's order.

    llama.cpp interleaves the two halves of each head's rotary pairs. Without positions the
    order cancels between q and k; it is undone so that equal weights have equal digests.
    """
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def restore_gguf(tensors: dict[str, Tensor], config: BlockConfig) -> dict[str, Tensor]:
    heads = {"attention.q": config.num_heads, "attention.k": config.num_kv_heads}
    return {
        name: undo_rope_permutation(tensor, heads[name.rpartition(".")[0]])
        if name.rpartition(".")[0] in heads
        else tensor
        for name, tensor in tensors.items()
    }


FAMILY = Family(
    config_from_hf=config_from_hf,
    config_from_gguf=config_from_gguf,
    num_layers_key={"hf": "num_hidden_layers", "gguf": "llama.block_count"},
    names={"hf": HF, "gguf": GGUF},
    restore={"gguf": restore_gguf},
)
