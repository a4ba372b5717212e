"""Every LLM family against transformers' own decoder layer: names, shapes and maths in one go.

A tiny random model is saved by transformers and one layer of it loaded by `load_block`; both get
the same input with rotary switched off (cos 1, sin 0), ALiBi zeroed and every token visible.
A family is one row below; its file in `block/families/` is the other half.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers", minversion="5.23")
from transformers import AutoConfig, AutoModelForCausalLM

from lmgraft import inspect_llm, load_block
from lmgraft.block.family import FAMILIES
from lmgraft.errors import BlockError
from tiny import relative_error

LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WIDE = LLAMA | {"head_dim": 16}
GPT = {"n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": 64, "n_positions": 64, "rotary_dim": 4}
EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
BIASED = {"attention_bias": True}
NEOX = {k: v for k, v in LLAMA.items() if k != "num_key_value_heads"}
OPT = NEOX | {"ffn_dim": 48, "word_embed_proj_dim": 32}
FALCON = NEOX | {"alibi": False, "ffn_hidden_size": 48}
BLOOM = {"hidden_size": 32, "n_layer": 3, "n_head": 4, "vocab_size": 64}
MPT = {"d_model": 32, "n_layers": 3, "n_heads": 4, "vocab_size": 64}

ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", LLAMA),
    "llama-mha": ("llama", LLAMA | {"num_key_value_heads": 4}),
    "llama-mqa-wide-biases": ("llama", WIDE | BIASED | {"num_key_value_heads": 1, "mlp_bias": True}),
    "mistral": ("mistral", LLAMA),
    "mistral-wide": ("mistral", WIDE | {"sliding_window": 4}),
    "qwen2": ("qwen2", LLAMA),
    "qwen3": ("qwen3", WIDE),
    "qwen3-biases": ("qwen3", WIDE | BIASED),
    "gemma": ("gemma", WIDE | {"num_key_value_heads": 1}),
    "gemma2": ("gemma2", WIDE | {"query_pre_attn_scalar": 24, "attn_logit_softcapping": 0.5}),
    "gemma2-uncapped": ("gemma2", WIDE | {"attn_logit_softcapping": None}),
    "gemma3": ("gemma3_text", WIDE | {"query_pre_attn_scalar": 24}),
    "phi": ("phi", NEOX),
    "phi-gqa": ("phi", LLAMA),
    "phi3": ("phi3", LLAMA),
    "olmo2": ("olmo2", LLAMA),
    "olmo2-biases": ("olmo2", LLAMA | BIASED),
    "granite": ("granite", LLAMA | {"attention_multiplier": 0.3, "residual_multiplier": 0.22}),
    "granite-biases": ("granite", LLAMA | BIASED | {"mlp_bias": True}),
    "stablelm": ("stablelm", LLAMA),
    "stablelm-biases": ("stablelm", LLAMA | {"use_qkv_bias": True}),
    "stablelm-12b": ("stablelm", LLAMA | {"use_parallel_residual": True, "qk_layernorm": True}),
    "smollm3": ("smollm3", LLAMA),
    "smollm3-biases": ("smollm3", LLAMA | BIASED | {"mlp_bias": True}),
    "gpt2": ("gpt2", GPT),
    "gpt2-unscaled": ("gpt2", GPT | {"scale_attn_weights": False}),
    "gpt2-by-layer": ("gpt2", GPT | {"scale_attn_by_inverse_layer_idx": True, "n_inner": 48}),
    "opt": ("opt", OPT),
    "opt-350m": ("opt", OPT | {"do_layer_norm_before": False}),
    "opt-galactica": ("opt", OPT | {"enable_bias": False, "activation_function": "gelu"}),
    "gpt_neox": ("gpt_neox", NEOX),
    "gpt_neox-sequential": ("gpt_neox", NEOX | {"use_parallel_residual": False}),
    "gpt_neox-unbiased": ("gpt_neox", NEOX | {"attention_bias": False}),
    "gptj": ("gptj", GPT),
    "falcon-7b": ("falcon", FALCON),
    "falcon-40b": ("falcon", FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-2": (
        "falcon",
        FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
    ),
    "falcon-rw": ("falcon", FALCON | {"multi_query": False, "parallel_attn": False, "bias": True}),
    "bloom": ("bloom", BLOOM),
    "bloom-after-norm": ("bloom", BLOOM | {"apply_residual_connection_post_layernorm": True}),
    "olmo3": ("olmo3", LLAMA | BIASED),
    "cohere2": ("cohere2", WIDE | BIASED),
    "mixtral": ("mixtral", LLAMA | {"num_local_experts": 5}),
    "qwen3_moe": ("qwen3_moe", WIDE | EXPERTS),
    "qwen3_moe-chosen": ("qwen3_moe", WIDE | BIASED | EXPERTS | {"norm_topk_prob": True}),
    "olmoe": ("olmoe", LLAMA | EXPERTS | {"intermediate_size": 24}),
    "mpt": ("mpt", MPT),
    "mpt-clipped": ("mpt", MPT | {"attn_config": {"clip_qkv": 0.4, "softmax_scale": 0.3}}),
}
LAYER = 1


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, nn.Module]]:
    made: dict[str, tuple[Path, nn.Module]] = {}
    for name, (model_type, fields) in ROWS.items():
        config = AutoConfig.for_model(model_type, **fields)
        torch.manual_seed(5)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        with torch.no_grad():
            for p in model.parameters():  # gains and biases too: an ignored one must show
                p.copy_(torch.randn_like(p) * (0.3 if p.dim() == 1 else p.shape[-1] ** -0.5) + (p.dim() == 1) * 0.5)
        folder = tmp_path_factory.mktemp(name)
        model.save_pretrained(folder)
        made[name] = (folder, model)
    return made


def decoder_layer(model: nn.Module, index: int) -> nn.Module:
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == 3]
    layer: nn.Module = lists[0][index]
    for name, buffer in layer.named_buffers():
        if name.endswith("embed_positions"):  # GPT-J keeps sin and cos in the layer
            half = buffer.shape[-1] // 2
            buffer[..., :half], buffer[..., half:] = 0, 1
    return layer


def run_theirs(layer: nn.Module, config: Any, x: Tensor) -> Tensor:
    batch, tokens, _ = x.shape
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    rotary = int(width * (getattr(config, "partial_rotary_factor", None) or 1))
    rotary = int((getattr(config, "rope_parameters", None) or {}).get("partial_rotary_factor", 1) * width) or rotary
    neutral = (x.new_ones(batch, tokens, rotary), x.new_zeros(batch, tokens, rotary))
    nothing_masked: Tensor = x.new_zeros(batch, 1, tokens, tokens)
    if config.model_type == "mpt":
        nothing_masked = nothing_masked.bool()
    known = {
        "attention_mask": nothing_masked,
        "position_embeddings": neutral,
        "position_ids": torch.arange(tokens).expand(batch, -1),
        "alibi": x.new_zeros(batch * heads, 1, tokens) if config.model_type == "bloom" else None,
        "position_bias": x.new_zeros(heads, tokens, tokens),
    }
    wanted = inspect.signature(layer.forward).parameters
    out = layer(x, **{name: value for name, value in known.items() if name in wanted})
    return out[0] if isinstance(out, tuple) else out


@pytest.mark.parametrize("name", ROWS)
def test_a_layer_equals_transformers_own(models, name: str) -> None:
    """In float32: most of transformers' layers compute norms and softmax in it whatever the weights' dtype."""
    folder, model = models[name]
    block = load_block(str(folder), LAYER, final_norm="none")
    layer = decoder_layer(model, LAYER)
    x = torch.randn(2, 7, 32)
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    out, expected = block(mine), run_theirs(layer, model.config, theirs)
    weights = torch.randn_like(out)
    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    assert relative_error(out, expected) <= 1e-5
    assert relative_error(mine.grad, theirs.grad) <= 1e-5
    assert block.config.num_params() == sum(p.numel() for p in layer.parameters())


@pytest.mark.parametrize("name", [n for n in ROWS if n != "opt-350m"])
def test_the_final_norm_equals_the_models_own(models, name: str) -> None:
    folder, model = models[name]
    x = torch.randn(2, 7, 32)
    plain = load_block(str(folder), -1, final_norm="none")
    normed = load_block(str(folder), -1, final_norm="pretrained")
    base = getattr(model, model.base_model_prefix)
    base = getattr(base, "decoder", base)
    names = ("norm", "final_layernorm", "final_layer_norm", "ln_f", "norm_f")
    theirs = next(getattr(base, n) for n in names if hasattr(base, n))
    with torch.no_grad():
        assert relative_error(normed(x), theirs(plain(x))) <= 1e-5


def test_opt_350m_has_no_final_norm(models) -> None:
    with pytest.raises(BlockError, match="has no final norm"):
        load_block(str(models["opt-350m"][0]), final_norm="pretrained")


@pytest.mark.parametrize("name", ROWS)
def test_reads_and_padding_hold_for_every_family(models, name: str) -> None:
    block = load_block(str(models[name][0]), (0, 1))
    x = torch.randn(3, 6, 32)
    padded = torch.zeros(3, 6, dtype=torch.bool)
    padded[1, 4:], padded[2] = True, True
    with torch.no_grad():
        full = block(x, padded)
        assert relative_error(block(x, padded, reads=(0, 3)), full[:, [0, 3]]) <= 1e-5
        assert relative_error(block(x[1:2, :4]), full[1:2, :4]) <= 1e-5
    assert torch.isfinite(full).all()


@pytest.mark.parametrize("name", ROWS)
def test_a_narrowed_block_keeps_the_identity_of_what_was_read(models, name: str) -> None:
    folder = str(models[name][0])
    wide = load_block(folder, (0, 1), final_norm="none")
    narrow = load_block(folder, (0, 1), final_norm="none", dtype="bfloat16")
    assert narrow.provenance == wide.provenance
    for p, q in zip(wide.parameters(), narrow.parameters(), strict=True):
        assert q.dtype == torch.bfloat16
        assert torch.equal(p.to(torch.bfloat16), q)


@pytest.mark.parametrize("name", ROWS)
def test_inspect_reads_headers_only(models, name: str) -> None:
    report = inspect_llm(str(models[name][0]), LAYER)
    assert report.num_layers == 3
    assert report.layer_bytes == 4 * report.config.num_params()


def test_every_family_has_a_row() -> None:
    proved = {model_type for model_type, _ in ROWS.values()}
    only_names = {"phi2", "gptneox", "gemma3"}  # GGUF's words, and the multimodal wrapper of gemma3_text
    assert set(FAMILIES.names()) - only_names == proved
    assert all(FAMILIES.load(name).verified for name in FAMILIES.names())
