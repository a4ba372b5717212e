"""What GGUF files share over all architectures: names, metadata keys, and llama.cpp's row order."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from lmgraft.block.config import FINAL_NORM, BlockConfig
from lmgraft.block.family import count, require
from lmgraft.checkpoint import NameMap

_NAMES = {
    "attention_norm": "attn_norm",
    "attention.q": "attn_q",
    "attention.k": "attn_k",
    "attention.v": "attn_v",
    "attention.qkv": "attn_qkv",
    "attention.o": "attn_output",
    "attention.q_norm": "attn_q_norm",
    "attention.k_norm": "attn_k_norm",
    "attention_post_norm": "post_attention_norm",
    "mlp_norm": "ffn_norm",
    "mlp.gate": "ffn_gate",
    "mlp.up": "ffn_up",
    "mlp.gate_up": "ffn_up",
    "mlp.down": "ffn_down",
    "mlp_post_norm": "post_ffw_norm",
}
QKV = ("attention.q", "attention.k", "attention.v")


def gguf_names(*, names: Mapping[str, str] | None = None, **options: Any) -> NameMap:
    """The name map of an architecture: the common names, `names` laid over them."""
    return NameMap(
        layer_prefix="blk.{layer}.",
        tensors=_NAMES | dict(names or {}),
        outside={FINAL_NORM: "output_norm"},
        dropped=(r"attn_rot_embd\.weight", r"rope_freqs\.weight", r"rope_factors_(long|short)\.weight"),
        **options,
    )


def gguf_fields(config: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """The fields that every architecture's metadata gives; biases are there or not."""
    arch = require(config, "general.architecture")
    dim, heads = count(config, f"{arch}.embedding_length"), count(config, f"{arch}.attention.head_count")
    eps = config.get(f"{arch}.attention.layer_norm_rms_epsilon")
    if eps is None:
        eps = require(config, f"{arch}.attention.layer_norm_epsilon")
    return {
        "dim": dim,
        "num_heads": heads,
        "num_kv_heads": count(config, f"{arch}.attention.head_count_kv", heads),
        "head_dim": count(config, f"{arch}.attention.key_length", dim // heads),
        "mlp_dim": count(config, f"{arch}.feed_forward_length"),
        "norm_eps": eps,
        "qkv_bias": bool({"blk.0.attn_q.bias", "blk.0.attn_qkv.bias"} & set(names)),
        "output_bias": "blk.0.attn_output.bias" in names,
        "mlp_bias": "blk.0.ffn_up.bias" in names,
    }


def undo_rope_permutation(rows: Tensor, heads: int) -> Tensor:
    """Rows of q or k as Hugging Face orders them, from the order of Meta's files and llama.cpp's.

    That order interleaves the two halves of each head's rotary pairs. Without positions the
    order cancels between q and k; it is undone so that equal weights have equal digests.
    """
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def undo_permuted_rows(tensors: dict[str, Tensor], config: BlockConfig) -> dict[str, Tensor]:
    """`tensors` with `undo_rope_permutation` applied to q and k; in place, a head at a time.

    Copies of both would take a sixth of the layer's memory again.
    """
    for base, heads in (("attention.q", config.num_heads), ("attention.k", config.num_kv_heads)):
        for name in (f"{base}.weight", f"{base}.bias"):
            if name in tensors:
                for head in tensors[name].chunk(heads):
                    head.copy_(undo_rope_permutation(head, 1))
    return tensors


def undo_gain_plus_one(tensors: dict[str, Tensor], config: BlockConfig) -> dict[str, Tensor]:
    """Norm gains as stored by Hugging Face, from files whose converter added one."""
    return {name: tensor - 1 if "norm" in name else tensor for name, tensor in tensors.items()}
