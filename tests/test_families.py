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

pytest.importorskip("transformers", minversion="5.24")
from transformers import AutoConfig, AutoModelForCausalLM

import config_sweep
from lmgraft import inspect_llm, load_block
from lmgraft.block.family import FAMILIES, find_family
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
GROUPED = {"n_routed_experts": 8, "num_experts_per_tok": 3, "n_shared_experts": 2, "n_group": 4, "topk_group": 2}
GROUPED |= {"moe_intermediate_size": 24, "first_k_dense_replace": 1}
LATENT = GROUPED | {"q_lora_rank": 20, "kv_lora_rank": 12, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4}
LATENT |= {"v_head_dim": 6, "num_key_value_heads": 4}
YARN = {"rope_type": "yarn", "factor": 40.0, "rope_theta": 1e4, "mscale": 1.0, "mscale_all_dim": 1.0}
YARN |= {"original_max_position_embeddings": 4096}
HYBRID = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8}
HYBRID |= {"linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention", "full_attention"]}
SHARED = EXPERTS | {"shared_expert_intermediate_size": 40}
GEMMA4 = {"layer_types": ["sliding_attention", "full_attention", "full_attention"], "global_head_dim": 12}
GEMMA4 |= {"hidden_size_per_layer_input": 6, "vocab_size_per_layer_input": 64}
ONE_KEY = {"attention_k_eq_v": True, "num_global_key_value_heads": 1}
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
    "qwen3_moe-dense": ("qwen3_moe", WIDE | EXPERTS | {"mlp_only_layers": [1, 2]}),
    "gpt_oss": ("gpt_oss", WIDE | {"num_local_experts": 5, "num_experts_per_tok": 2, "swiglu_limit": 0.6}),
    "deepseek_v2": ("deepseek_v2", LLAMA | LATENT),
    "deepseek_v2-groups": (
        "deepseek_v2",
        LLAMA | LATENT | BIASED | {"topk_method": "group_limited_greedy", "routed_scaling_factor": 2.0},
    ),
    "deepseek_v2-full-rank": ("deepseek_v2", LLAMA | LATENT | {"q_lora_rank": None}),
    "deepseek_v3": ("deepseek_v3", LLAMA | LATENT | {"rope_parameters": YARN}),
    "deepseek_v3-biases": ("deepseek_v3", LLAMA | LATENT | BIASED | {"norm_topk_prob": False}),
    "deepseek_v3-dense": ("deepseek_v3", LLAMA | LATENT | {"first_k_dense_replace": 3}),
    "glm4_moe": ("glm4_moe", WIDE | GROUPED | BIASED | {"use_qk_norm": True}),
    "glm4_moe-plain": ("glm4_moe", LLAMA | GROUPED | {"n_group": 1, "topk_group": 1}),
    "qwen3_5": ("qwen3_5_text", WIDE | HYBRID),
    "qwen3_5-biases": ("qwen3_5_text", WIDE | HYBRID | BIASED),
    "qwen3_5_moe": ("qwen3_5_moe_text", WIDE | HYBRID | SHARED),
    "qwen3_next": ("qwen3_next", WIDE | HYBRID | SHARED | {"norm_topk_prob": True}),
    "qwen3_next-dense": ("qwen3_next", WIDE | HYBRID | SHARED | {"mlp_only_layers": [1, 2]}),
    "gemma4": ("gemma4_text", WIDE | GEMMA4 | BIASED),
    "gemma4-one-key": ("gemma4_text", WIDE | GEMMA4 | ONE_KEY),
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
            held = model.state_dict()
            buffers = [b for n, b in model.named_buffers() if n in held and b.is_floating_point()]
            for p in [*model.parameters(), *buffers]:  # gains and biases too: an ignored one must show
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
    config.allow_global_per_layer_attribute_access = True  # of Gemma 4, whose layers differ
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    rotary = int(width * (getattr(config, "partial_rotary_factor", None) or 1))
    rotary = int((getattr(config, "rope_parameters", None) or {}).get("partial_rotary_factor", 1) * width) or rotary
    if config.model_type == "gemma4_text":
        rotary = layer.self_attn.head_dim
    if config.model_type == "gpt_oss":
        rotary //= 2
    neutral: Any = (x.new_ones(batch, tokens, rotary), x.new_zeros(batch, tokens, rotary))
    if config.model_type == "deepseek_v2":
        neutral = torch.ones(batch, tokens, rotary // 2, dtype=torch.complex64)
    if config.model_type == "gptj":  # sines first, from transformers 5.24 on
        half = config.rotary_dim // 2
        neutral = (x.new_zeros(batch, tokens, half), x.new_ones(batch, tokens, half))
    nothing_masked: Tensor = x.new_zeros(batch, 1, tokens, tokens)
    if config.model_type == "mpt":
        nothing_masked = nothing_masked.bool()
    known = {
        "attention_mask": nothing_masked,
        "position_embeddings": neutral,
        "position_ids": torch.arange(tokens).expand(batch, -1),
        "alibi": x.new_zeros(batch * heads, 1, tokens) if config.model_type == "bloom" else None,
        "position_bias": x.new_zeros(heads, tokens, tokens),
        "per_layer_input": x.new_zeros(batch, tokens, getattr(config, "hidden_size_per_layer_input", 0)),
        "shared_kv_states": {},
    }
    wanted = inspect.signature(layer.forward).parameters
    out = layer(x, **{name: value for name, value in known.items() if name in wanted})
    return out[0] if isinstance(out, tuple) else out


@pytest.mark.parametrize("name", ROWS)
def test_a_layer_equals_transformers_own(models, name: str) -> None:
    """In float32: most of transformers' layers compute norms and softmax in it whatever the weights' dtype."""
    folder, model = models[name]
    block = load_block(str(folder), LAYER, final_norm="none")
    assert not block.opaque
    layer = decoder_layer(model, LAYER)
    x = torch.randn(2, 7, 32)
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    out, expected = block(mine), run_theirs(layer, model.config, theirs)
    weights = torch.randn_like(out)
    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    assert relative_error(out, expected) <= 1e-5
    assert relative_error(mine.grad, theirs.grad) <= 1e-5
    assert block.config.num_params() == held_by(layer)


def held_by(layer: nn.Module) -> int:
    """Numbers that a layer computes by: not those of an input that is zero; a projection for keys and values twice."""
    numbers = sum(t.numel() for n, t in layer.state_dict().items() if "per_layer" not in n and t.is_floating_point())
    attention = getattr(layer, "self_attn", None)
    twice = getattr(attention, "use_alternative_attention", False)
    return numbers + (sum(p.numel() for p in attention.k_proj.parameters()) if twice else 0)


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
    block = load_block(str(models[name][0]), (1, 2))
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
    wide = load_block(folder, (1, 2), final_norm="none")
    narrow = load_block(folder, (1, 2), final_norm="none", dtype="bfloat16")
    assert narrow.provenance == wide.provenance
    for p, q in zip(wide.parameters(), narrow.parameters(), strict=True):
        assert q.dtype == torch.bfloat16
        assert torch.equal(p.to(torch.bfloat16), q)


@pytest.mark.parametrize("name", ROWS)
def test_inspect_reads_headers_only(models, name: str) -> None:
    folder, model = models[name]
    report = inspect_llm(str(folder), LAYER)
    assert report.num_layers == 3
    assert report.layer_bytes == 4 * sum(t.numel() for t in decoder_layer(model, LAYER).state_dict().values())


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ({}, "gelu_tanh"),
        ({"hidden_act": "gelu"}, "gelu_tanh"),
        ({"hidden_act": "relu"}, "relu"),
        ({"hidden_act": "gelu", "hidden_activation": None}, "gelu_tanh"),
        ({"hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh"}, "gelu_tanh"),
    ],
)
def test_gemmas_activation_has_two_keys(said: dict[str, Any], meant: str) -> None:
    shape = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
    assert find_family("hf", {"model_type": "gemma"})[1].config_from["hf"](shape | said, ()).activation == meant


def test_a_cap_that_transformers_leaves_out_is_refused() -> None:
    with pytest.raises(BlockError, match=r"attn_logit_softcapping = 0\.5"):
        find_family("hf", {"model_type": "gemma3_text"})[1].config_from["hf"]({"attn_logit_softcapping": 0.5}, ())


@pytest.mark.long
def test_no_setting_loads_and_is_wrong() -> None:
    assert config_sweep.sweep(config_sweep.NATIVE) == []


def test_every_family_has_a_row() -> None:
    proved = {model_type for model_type, _ in ROWS.values()}
    only_names = {"phi2", "gptneox", "gemma3"}  # GGUF's words, and the multimodal wrapper of gemma3_text
    assert set(FAMILIES.names()) - only_names == proved
    assert all(FAMILIES.load(name).verified for name in FAMILIES.names())
