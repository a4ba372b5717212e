"""Every causal language model of transformers as a block: equivariant and equal, or refused with its reason.

    python tests/borrowed_sweep.py [--write] [TYPE ...]

For each type: a tiny random model, its gains and biases away from 1 and 0, written by `save_pretrained` in the
names of the Hub; one layer read back by lmgraft; and the same layer of a separate `from_pretrained`, whose input
and output are caught while the whole model runs. `--write` puts the table into docs/families.md.
"""

from __future__ import annotations

import argparse
import inspect
import re
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import lmgraft
from lmgraft.block import FrozenBlock
from lmgraft.block.load import lender
from lmgraft.block.opaque import OpaqueConfig
from lmgraft.borrowed.neutral import order_error
from lmgraft.borrowed.skeleton import choose_tower
from lmgraft.checkpoint import open_checkpoint
from lmgraft.errors import LmgraftError
from tiny import randomise_, relative_error

_KEYS = {
    32: (
        "hidden_size d_model n_embd dim embed_dim embedding_size word_embed_proj_dim n_embed emb_dim "
        "attention_hidden_size d_embed lru_width text_hidden_size"
    ),
    48: (
        "intermediate_size ffn_dim d_ff n_inner ffn_hidden_size d_inner encoder_ffn_dim decoder_ffn_dim "
        "intermediate_size_mlp ffn_intermediate_size dense_intermediate_size"
    ),
    24: (
        "moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size "
        "moe_shared_expert_intermediate_size shared_intermediate_size expert_dim"
    ),
    4: (
        "num_attention_heads n_head n_heads num_heads encoder_attention_heads attention_heads "
        "decoder_attention_heads num_decoder_attention_heads num_encoder_attention_heads num_local_experts "
        "num_experts n_routed_experts moe_num_experts mamba_n_heads mamba_num_heads linear_num_value_heads"
    ),
    2: (
        "num_key_value_heads num_kv_heads n_head_kv num_attention_groups num_hidden_layers n_layer n_layers "
        "num_layers encoder_layers decoder_layers num_decoder_layers num_encoder_layers num_experts_per_tok "
        "num_experts_per_token moe_topk moe_k top_k_experts experts_per_token moe_top_k index_n_heads "
        "linear_num_key_heads eos_token_id"
    ),
    8: (
        "head_dim attention_head_dim d_kv global_head_dim swa_head_dim hidden_size_per_layer_input "
        "qk_rope_head_dim qk_nope_head_dim v_head_dim index_head_dim mamba_d_state state_size ssm_state_size "
        "linear_key_head_dim linear_value_head_dim sliding_window attention_window attention_chunk_size "
        "chunk_size"
    ),
    64: (
        "vocab_size max_position_embeddings n_positions n_ctx max_seq_len seq_length "
        "vocab_size_per_layer_input index_topk"
    ),
    1: (
        "n_group topk_group num_expert_group n_shared_experts num_shared_experts mamba_n_groups n_groups "
        "mamba_ngroups bos_token_id first_k_dense_replace"
    ),
    16: "q_lora_rank kv_lora_rank qk_head_dim mamba_d_head mamba_head_dim mamba_headdim",
    0: "pad_token_id",
    3: "sep_token_id",
    5: "image_token_id",
}
SHAPE: dict[str, int] = {key: size for size, keys in _KEYS.items() for key in keys.split()}
"""What a key of any config is set to."""

DROPPED = ("vision_config", "audio_config", "transformers_version", "architectures", "layer_types", "mlp_layer_types")

_DBRX_FFN = {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32}
_ROPE = {"head_dim": 8, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
_FULL = {"num_hidden_layers": 4}
SPECIAL: dict[str, dict[str, Any]] = {
    "bamba": {"num_hidden_layers": 2, "attn_layer_indices": [1]},
    "big_bird": {"attention_type": "original_full"},
    "codegen": {"rotary_dim": 4},
    "dory": {"num_hidden_layers": 3, "n_input_layers": 1, "n_recurrent_layers": 1, "n_output_layers": 1},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 1e4}, "ffn_config": _DBRX_FFN},
    "dots1": {"n_shared_experts": 1, "n_routed_experts": 4, "first_k_dense_replace": 0, "num_experts_per_tok": 2},
    "gemma3n_text": {"num_kv_shared_layers": 0, "activation_sparsity_pattern": [0.0, 0.0]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 4},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "jamba": {"num_hidden_layers": 2, "attn_layer_offset": 1, "attn_layer_period": 2},
    "lfm3": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "hunyuan_v1_dense": _ROPE,
    "hunyuan_v1_moe": _ROPE,
    "ministral": _ROPE | {"layer_types": ["full_attention", "full_attention"]},
    "nemotron": {"num_key_value_heads": 2},
    "qwen3_next": _FULL,
    "qwen3_5_text": _FULL,
    "qwen3_5": {"text_config": _FULL},
    "qwen3_5_moe": {"text_config": _FULL},
    "qwen3_5_moe_text": _FULL,
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {"is_decoder": True},
    "xlnet": {"d_head": 8},
    "zaya": {"num_experts_per_tok": 1},
}
"""More of a type's config, where one tiny size does not suit it."""

TOWERS = {"blt": "global_transformer", "git": "git.encoder", "hrm_text": "H_module", "phi4_multimodal": "model.layers"}
"""Which tower of a composite, where the model does not say which is its language model."""

TOKENS = 6
CODEBOOKS = {"musicgen": 4, "musicgen_melody": 4}
"""Rows of text ids for one of the batch."""


@dataclass(frozen=True)
class Row:
    """What came of one type."""

    name: str
    layer_class: str
    equal: float | None
    order: float | None
    reason: str

    @property
    def is_read(self) -> bool:
        return not self.reason


def tiny_config(name: str) -> Any:
    """A config of this type, a few thousand parameters large."""
    config_class = CONFIG_MAPPING[name]
    default = config_class()
    values = _shrunk(default.to_dict())
    values.pop("model_type", None)
    if "kv_lora_rank" in values:  # its heads share nothing but the latent vector
        values["num_key_value_heads"] = 4
    for key, value in SPECIAL.get(name, {}).items():
        values[key] = {**values.get(key, {}), **value} if key.endswith("text_config") else value
    config = config_class(**values)
    if isinstance(config, model_class(name).config_class):
        return config
    return getattr(config, "decoder", None) or config.get_text_config()


def _shrunk(values: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in values.items():
        if key in DROPPED:
            continue
        if isinstance(value, dict) and (key.endswith("_config") or key == "decoder"):
            made[key] = _shrunk(value)
        elif isinstance(value, dict) and "rope" in key:
            made[key] = value
        elif key in SHAPE and value is not None:
            made[key] = SHAPE[key]
        elif isinstance(value, str | bool | float | type(None)) or key == "model_type":
            made[key] = value
        elif isinstance(value, int) and not key.endswith("_id"):
            made[key] = min(value, 64)
    return made


def model_class(name: str) -> type[PreTrainedModel]:
    known = MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[name]]
    return known[0] if isinstance(known, tuple) else known


def try_type(name: str, folder: Path) -> Row:
    """One type: a model is saved, a layer of it read back and compared."""
    kind = ""
    try:
        config = tiny_config(name)
        torch.manual_seed(0)
        model = model_class(name)(config)
        randomise_(model, seed=3)
        randomise_buffers_(model)
        model.save_pretrained(folder)
        del model
        config._attn_implementation = "eager"
        oracle = model_class(name).from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    except Exception as error:  # noqa: BLE001 - any failure of transformers itself is a row of the table
        return Row(name, kind, None, None, f"no tiny model could be made: {_short(error)}")
    tower = choose_tower(oracle, TOWERS.get(name)) if name in TOWERS or _has_tower(oracle) else None
    read: list[Row] = []
    refused: list[str] = []
    for index in reversed(range(len(tower.layers) if tower else 1)):
        try:
            for path in _ways(folder, tower.path if tower else None):
                block = lmgraft.load_block(str(folder), index, final_norm="none", tower=path)
                kind = block.config.code.partition(":")[2] if isinstance(block.config, OpaqueConfig) else kind
                x, theirs = oracle_output(oracle, tower.layers[index], **text_ids(name))
                read.append(Row(name, kind, relative_error(block(x) - x, theirs - x), _order(block, x), ""))
        except LmgraftError as error:
            refused.append(error.message)
        except Exception as error:  # noqa: BLE001 - as above
            refused.append(f"layer {index}: {_short(error)}")
    worst = max(read, key=lambda row: row.equal or 0.0, default=None)
    if worst is None:
        return Row(name, kind, None, None, refused[0] if refused else "no layers")
    wrong = not (worst.equal or 0.0) <= 1e-5
    return replace(worst, reason=f"a layer differs from transformers' own by {worst.equal:.1g}" if wrong else "")


def _ways(folder: Path, path: str | None) -> list[str | None]:
    """By transformers' code, and by lmgraft's where it has any for this type."""
    native = lender(open_checkpoint(str(folder))) is None
    return [path, None] if native and path else [path]


def text_ids(name: str) -> dict[str, Any]:
    """What a model of text is run on."""
    return {"input_ids": torch.full((2 * CODEBOOKS.get(name, 1), TOKENS), 7), "use_cache": False}


def _order(block: FrozenBlock, x: Tensor) -> float:
    return order_error(block, block.config.dim, x)


def _has_tower(model: PreTrainedModel) -> bool:
    try:
        choose_tower(model, None)
    except LmgraftError:
        return False
    return True


@torch.no_grad()
def oracle_output(model: PreTrainedModel, layer: nn.Module, **inputs: Any) -> tuple[Tensor, Tensor]:
    """Input and output of `layer` in a run of the whole model: positions 0, every token visible.

    The layer's input is replaced by noise; what transformers passes beside it stays, with cosines 1 and sines 0
    where they are not, and a mask that shows everything.
    """
    caught: list[tuple[Tensor, Tensor]] = []

    def before(module: nn.Module, args: Any, kwargs: Any) -> Any:
        named = {
            **dict(zip(inspect.signature(type(module).forward).parameters, (module, *args), strict=False)),
            **kwargs,
        }
        first = list(inspect.signature(type(module).forward).parameters)[1]
        x = torch.randn(named[first].shape, generator=torch.Generator().manual_seed(5))
        neutral = {k: _neutral(k, v, x) for k, v in named.items() if k not in ("self", first)}
        if type(module).__name__ == "CpmAntTransformerBlock":  # true is seen
            neutral["attention_mask"] = torch.ones_like(neutral["attention_mask"])
        return (x,), neutral

    def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        caught.append((args[0], output[0] if isinstance(output, tuple | list) else output))
        raise _StopError

    handles = [
        layer.register_forward_pre_hook(before, with_kwargs=True),
        layer.register_forward_hook(after, with_kwargs=True),
    ]
    for module in layer.modules():
        if hasattr(module, "relative_attention"):  # DeBERTa's relative positions
            module.relative_attention = False
    for buffer in layer.buffers():
        if buffer.dim() >= 2 and buffer.shape[-2:] == (SHAPE["n_ctx"],) * 2:  # a causal mask of its own
            buffer.fill_(1)
    try:
        model(**inputs)
    except _StopError:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return caught[0]


class _StopError(Exception):
    pass


def _neutral(name: str, value: Any, x: Tensor) -> Any:
    if name == "sinusoidal_pos":
        return None
    if "mask" in name and "encoder" not in name:
        if isinstance(value, Tensor) and value.unique().numel() == 1:
            return value  # shows everything as it is
        if isinstance(value, Tensor) and value.dim() == 2:
            return torch.ones_like(value)
        like = value if isinstance(value, Tensor) else x
        if like.dtype == torch.bool:
            return torch.zeros_like(like)
        return torch.zeros(x.shape[0], 1, x.shape[1], x.shape[1])
    if ("position" in name or "rot" in name or "freqs" in name) and value is not None:
        if isinstance(value, tuple):
            cosine = [v.is_complex() or bool(v[..., :1, :].any()) for v in value]  # sines are 0 at position 0
            return tuple(torch.ones_like(v) if c else torch.zeros_like(v) for v, c in zip(value, cosine, strict=True))
        if isinstance(value, dict):
            return {k: _neutral(name, v, x) for k, v in value.items()}
        return torch.ones_like(value) if value.is_complex() else torch.zeros_like(value)
    if name == "attention_scaling":  # Beam's, which grows with the position
        return None if value is None else torch.ones_like(value)
    if name in ("alibi", "per_layer_input"):
        return torch.zeros_like(value) if isinstance(value, Tensor) else value
    return None if "cache" in name or "past" in name else value


def randomise_buffers_(model: nn.Module) -> None:
    """Draw anew what files hold beside parameters: the bias by which experts are chosen, scales of a layer."""
    generator = torch.Generator().manual_seed(4)
    saved = model.state_dict(keep_vars=True)
    for name, buffer in model.named_buffers():
        if name in saved and buffer.is_floating_point() and not re.search("inv_freq|mask", name):
            buffer.copy_(1 + 0.3 * torch.randn(buffer.shape, generator=generator))


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or '?').splitlines()[0][:160]}"


DOCS = Path(__file__).parents[1] / "docs" / "families.md"
_BEGIN, _END = "<!-- borrowed: begin -->", "<!-- borrowed: end -->"


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown: what is read with its layer's class, what is refused with the reason."""
    lines = ["| `model_type` | layer | differs by | permutes to | refused because |", "|---|---|--:|--:|---|"]
    for r in rows:
        numbers = ["" if v is None else f"{v:.0e}" for v in (r.equal, r.order)]
        reason = r.reason.splitlines()[0].replace("|", "/") if r.reason else ""
        lines.append(f"| `{r.name}` | {r.layer_class} | {numbers[0]} | {numbers[1]} | {reason} |")
    read = sum(r.is_read for r in rows)
    return f"transformers {transformers.__version__}: {read} of {len(rows)} types are read.\n\n" + "\n".join(lines)


def write_docs(rows: Sequence[Row]) -> None:
    """Put the table between its marks in docs/families.md."""
    before, rest = DOCS.read_text().split(_BEGIN)
    DOCS.write_text(f"{before}{_BEGIN}\n{table(rows)}\n{_END}{rest.split(_END)[1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", help="model types; all of transformers' causal ones by default")
    parser.add_argument("--write", action="store_true", help="put the table into docs/families.md")
    arguments = parser.parse_args()
    rows = sweep(arguments.types or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
    print(table(rows))  # noqa: T201 - a command
    if arguments.write:
        write_docs(rows)


def sweep(names: Sequence[str]) -> list[Row]:
    """The rows of these types."""
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            with tempfile.TemporaryDirectory() as folder:
                row = try_type(name, Path(folder))
                rows.append(replace(row, reason=row.reason.replace(folder, "the file")))
    return rows


if __name__ == "__main__":
    main()
