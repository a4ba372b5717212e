"""What mixtures of experts cost: to load one layer of a DeepSeek-V3's shape, and to train through one of OLMoE's.

    python benchmarks/experts.py load [--experts 32] [--dtype bfloat16]
    python benchmarks/experts.py train [--experts 32] [--batch 8]

`load` writes a sparse file in the real layout, FP8 with a scale for each block of 128 x 128, every byte of it zero, and
reads its one layer in this process: seconds, and the peak of anonymous memory. With all 256 experts the file has 11 GB.
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
from lmgraft.studies.bench.measure import interleave

V3: dict[str, Any] = {"model_type": "deepseek_v3", "hidden_size": 7168, "intermediate_size": 18432}
V3 |= {"num_hidden_layers": 1, "first_k_dense_replace": 0, "num_attention_heads": 128, "num_key_value_heads": 128}
V3 |= {"q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
V3 |= {"moe_intermediate_size": 2048, "n_shared_experts": 1, "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4}
V3 |= {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}


def v3_shapes(experts: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of one layer."""
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
    return shapes


def write_v3(folder: Path, experts: int) -> int:
    """A file of one layer, all holes; returns its bytes."""
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, shape in v3_shapes(experts).items():
        tensors[f"{name}.weight"] = ("F8_E4M3", shape)
        tensors[f"{name}.weight_scale_inv"] = ("F32", tuple(math.ceil(n / 128) for n in shape))
    norms = {"input_layernorm": 7168, "post_attention_layernorm": 7168}
    norms |= {"self_attn.q_a_layernorm": 1536, "self_attn.kv_a_layernorm": 512}
    tensors |= {f"{name}.weight": ("BF16", (width,)) for name, width in norms.items()}
    tensors["mlp.gate.weight"] = ("BF16", (experts, 7168))
    tensors["mlp.gate.e_score_correction_bias"] = ("F32", (experts,))
    header, at = {}, 0
    for name, (kind, shape) in tensors.items():
        size = math.prod(shape) * {"F8_E4M3": 1, "BF16": 2, "F32": 4}[kind]
        entry = {"dtype": kind, "shape": shape, "data_offsets": [at, at + size]}
        header[f"model.layers.0.{name}"] = entry
        at += size
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)
    (folder / "config.json").write_text(json.dumps(V3 | {"n_routed_experts": experts}))
    return at


def load(folder: Path, experts: int, dtype: str) -> str:
    """One line of figures."""
    stored = write_v3(folder, experts)
    with Watch() as watch:
        block = lmgraft.load_block(str(folder), dtype=dtype)
    held = sum(p.numel() * p.element_size() for p in block.parameters())
    peak = (watch.peak - watch.before) * 1024
    return (
        f"{experts} experts, {dtype}: file {stored / MIB:,.0f} MiB, {watch.seconds:.1f} s, layer "
        f"{held / MIB:,.0f} MiB, peak {peak / MIB:,.0f} MiB: {peak / held:.2f} x layer, {peak / stored:.2f} x file"
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
    parser.add_argument("--experts", type=int, default=32)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--batch", type=int, default=8)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.what == "load":
            line = load(Path(folder), arguments.experts, arguments.dtype)
        else:
            line = train(Path(folder), arguments.experts, arguments.batch)
    print(line)


if __name__ == "__main__":
    main()
