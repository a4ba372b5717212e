"""What mixtures of experts cost: to load one layer of a DeepSeek-V3's shape, and to train through one of OLMoE's.

    python benchmarks/experts.py load [--shape v3] [--experts 32] [--dtype bfloat16] [--tower model.layers]
    python benchmarks/experts.py train [--experts 32] [--batch 8]

`load` writes a sparse file in the real layout, of DeepSeek-V3 (FP8 with a scale for each block of 128 x 128) or of
Mixtral (bfloat16), every byte of it zero, and reads its one layer in this process: seconds, the peak of anonymous
memory, and what was counted beforehand. With all 256 experts V3's file has 11 GB.
`train` writes a layer of random weights, and takes training steps of a ViT-S with it by lmgraft's code and by
transformers', in turn: medians and quartiles of seconds, and of their ratio.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import struct
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from loading import MIB, Watch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

import lmgraft
from lmgraft.checkpoint import memory
from lmgraft.studies.bench.measure import interleave

V3: dict[str, Any] = {"model_type": "deepseek_v3", "hidden_size": 7168, "intermediate_size": 18432}
V3 |= {"num_hidden_layers": 1, "first_k_dense_replace": 0, "num_attention_heads": 128, "num_key_value_heads": 128}
V3 |= {"q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
V3 |= {"moe_intermediate_size": 2048, "n_shared_experts": 1, "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4}
V3 |= {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}


MIXTRAL: dict[str, Any] = {"model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336}
MIXTRAL |= {"num_hidden_layers": 1, "num_attention_heads": 32, "num_key_value_heads": 8}

Tensors = dict[str, tuple[str, tuple[int, ...]]]
"""Names in a layer -> type in the file and shape."""


def v3_tensors(experts: int) -> Tensors:
    """Names, types and shapes of one layer: FP8 with a scale for each block of 128 x 128."""
    wide, heads = 7168, 128
    shapes: dict[str, tuple[int, ...]] = {
        "self_attn.q_a_proj": (1536, wide),
        "self_attn.q_b_proj": (heads * 192, 1536),
        "self_attn.kv_a_proj_with_mqa": (512 + 64, wide),
        "self_attn.kv_b_proj": (heads * 256, 512),
        "self_attn.o_proj": (wide, heads * 128),
    }
    for name in ("shared_experts", *(f"experts.{i}" for i in range(experts))):
        shapes |= {f"mlp.{name}.{part}_proj": (2048, wide) for part in ("gate", "up")}
        shapes[f"mlp.{name}.down_proj"] = (wide, 2048)
    tensors: Tensors = {}
    for name, shape in shapes.items():
        tensors[f"{name}.weight"] = ("F8_E4M3", shape)
        tensors[f"{name}.weight_scale_inv"] = ("F32", tuple(math.ceil(n / 128) for n in shape))
    norms = {"input_layernorm": wide, "post_attention_layernorm": wide}
    norms |= {"self_attn.q_a_layernorm": 1536, "self_attn.kv_a_layernorm": 512}
    tensors |= {f"{name}.weight": ("BF16", (width,)) for name, width in norms.items()}
    tensors["mlp.gate.weight"] = ("BF16", (experts, wide))
    tensors["mlp.gate.e_score_correction_bias"] = ("F32", (experts,))
    return tensors


def mixtral_tensors(experts: int) -> Tensors:
    """The same of Mixtral, all in bfloat16."""
    wide, inner = 4096, 14336
    shapes: dict[str, tuple[int, ...]] = {f"self_attn.{n}_proj": (wide, wide) for n in "qo"}
    shapes |= {f"self_attn.{n}_proj": (1024, wide) for n in "kv"}
    shapes |= {
        "input_layernorm": (wide,),
        "post_attention_layernorm": (wide,),
        "block_sparse_moe.gate": (experts, wide),
    }
    for i in range(experts):
        shapes |= {f"block_sparse_moe.experts.{i}.{w}": (inner, wide) for w in ("w1", "w3")}
        shapes[f"block_sparse_moe.experts.{i}.w2"] = (wide, inner)
    return {f"{name}.weight": ("BF16", shape) for name, shape in shapes.items()}


_SHAPES: Mapping[str, tuple[dict[str, Any], str, Callable[[int], Tensors]]] = {
    "v3": (V3, "n_routed_experts", v3_tensors),
    "mixtral": (MIXTRAL, "num_local_experts", mixtral_tensors),
}


def write(folder: Path, kind: str, experts: int) -> int:
    """A file of one layer, all holes; returns its bytes."""
    config, key, tensors_of = _SHAPES[kind]
    header, at = {}, 0
    for name, (stored, shape) in tensors_of(experts).items():
        size = math.prod(shape) * {"F8_E4M3": 1, "BF16": 2, "F32": 4}[stored]
        header[f"model.layers.0.{name}"] = {"dtype": stored, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)
    (folder / "config.json").write_text(json.dumps(config | {key: experts}))
    return at


def load(folder: Path, kind: str, experts: int, dtype: str, tower: str | None) -> str:
    """One line of figures."""
    stored = write(folder, kind, experts)
    counted: list[int] = []
    real = memory.peak_memory

    def noted(*arguments: Any) -> int:
        counted.append(real(*arguments))
        return counted[-1]

    memory.peak_memory = noted  # type: ignore[assignment]
    with Watch() as watch:
        block = lmgraft.load_block(str(folder), dtype=dtype, tower=tower)
    held = sum(p.numel() * p.element_size() for p in block.parameters())
    peak = (watch.peak - watch.before) * 1024
    return (
        f"{kind}, {experts} experts, {dtype}, {tower or 'native'}: file {stored / MIB:,.0f} MiB, "
        f"{watch.seconds:.1f} s, layer {held / MIB:,.0f} MiB, peak {peak / MIB:,.0f} MiB: "
        f"{peak / held:.2f} x layer, {peak / stored:.2f} x file; counted beforehand {counted[0] / MIB:,.0f} MiB, "
        f"{counted[0] / peak:.2f} x peak"
    )


def train(folder: Path, experts: int, batch: int) -> str:
    """Steps through a layer of OLMoE-1B-7B's widths, by both codes in turn."""
    config = AutoConfig.for_model("olmoe", num_experts=experts, num_hidden_layers=1, vocab_size=64, pad_token_id=0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    steps = {f"{name} code": step_of(str(folder), tower, batch) for name, tower in _CODES.items()}
    times = interleave(steps, rounds=9, warmup=1, seconds=600)
    lines = [f"{name}: {spread(values)} s" for name, values in times.items()]
    own, theirs = times.values()
    ratios = [b / a for a, b in zip(own, theirs, strict=True)]
    return "\n".join([*lines, f"theirs / own: {spread(ratios)}, {len(ratios)} rounds"])


_CODES: Mapping[str, str | None] = {"lmgraft's": None, "transformers'": "model.layers"}


def step_of(source: str, tower: str | None, batch: int) -> Callable[[], None]:
    """A training step of a ViT-S whose class token is read."""
    model = lmgraft.graft(timm.create_model("vit_small_patch16_224", num_classes=100), source, tower=tower).train()
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    x, y = torch.randn(batch, 3, 224, 224), torch.randint(0, 100, (batch,))

    def step() -> None:
        optimiser.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimiser.step()

    return step


def spread(values: list[float]) -> str:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["load", "train"])
    parser.add_argument("--shape", choices=[*_SHAPES], default="v3")
    parser.add_argument("--experts", type=int, default=32)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--tower")
    parser.add_argument("--batch", type=int, default=8)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.what == "load":
            line = load(Path(folder), arguments.shape, arguments.experts, arguments.dtype, arguments.tower)
        else:
            line = train(Path(folder), arguments.experts, arguments.batch)
    print(line)


if __name__ == "__main__":
    main()
