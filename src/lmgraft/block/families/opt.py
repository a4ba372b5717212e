"""OPT and Galactica: LayerNorm before each branch, or after the residual as in OPT-350M."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from lmgraft.block.config import FINAL_NORM, BlockConfig
from lmgraft.block.family import Family, activation, count, flag, refuse
from lmgraft.checkpoint import NameMap

_PROJECTIONS = {
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.o": "self_attn.out_proj",
    "mlp.up": "fc1",
    "mlp.down": "fc2",
}
# The same two norms lie before a branch or behind its residual.
_NORMS = {
    f"{branch}{place}": name
    for branch, name in (("attention", "self_attn_layer_norm"), ("mlp", "final_layer_norm"))
    for place in ("_norm", "_post_norm")
}

HF = NameMap(
    roots=("model.decoder.", "decoder.", ""),
    layer_prefix="layers.{layer}.",
    tensors=_PROJECTIONS | _NORMS,
    outside={FINAL_NORM: "final_layer_norm"},
)


def config_from_hf(config: Mapping[str, Any], names: Collection[str]) -> BlockConfig:
    """Defaults are those of transformers' OPTConfig; eps is torch's own."""
    refuse(config, "layer_norm_elementwise_affine", (True,), "LayerNorm without gains")
    dim, heads = count(config, "hidden_size"), count(config, "num_attention_heads")
    biased = flag(config, "enable_bias", True)
    return BlockConfig(
        dim=dim,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=dim // heads,
        mlp_dim=count(config, "ffn_dim"),
        norm="layer",
        norm_bias=True,
        norm_eps=1e-5,
        norm_place="pre" if flag(config, "do_layer_norm_before", True) else "post_residual",
        mlp="plain",
        activation=activation(config, "activation_function", "relu"),
        qkv_bias=biased,
        output_bias=biased,
        mlp_bias=biased,
    )


FAMILY = Family(
    config_from={"hf": config_from_hf},
    num_layers_key={"hf": "num_hidden_layers"},
    names={"hf": HF},
    verified="norms before the branch and behind the residual (350M), with and without biases, ReLU and GELU",
)
