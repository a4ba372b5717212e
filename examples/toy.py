"""What the examples share so that they run anywhere in seconds: toy images, a tiny random LLM, options.

In your own code none of this is needed: your data set takes the place of `images`, and `llm=` names a
real model, for instance `--llm smollm2-135m` or `--llm huggyllama/llama-7b`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import TensorDataset

CLASSES = 4
IMAGE_SIZE = 32


def options(description: str | None) -> argparse.Namespace:
    """`llm`, a source for `lmgraft.graft`, and `out`, the folder that the model is saved to."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm", help="a known name, Hub repository, folder or file; by default a tiny random LLM")
    parser.add_argument("--out", type=Path, default=Path("runs/example"))
    found = parser.parse_args()
    found.llm = found.llm or write_llm(found.out / "llm")
    return found


def images(count: int, seed: int) -> TensorDataset:
    """Noise with a tint, which is the class: images (3, 32, 32) in float32, labels 0 to 3."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    tints = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
    noise = torch.randn(count, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)
    return TensorDataset(noise + tints[labels, :, None, None], labels)


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of rows of (B, classes) whose largest entry is at the label."""
    return float((logits.argmax(1) == labels).float().mean())


def write_llm(folder: Path, dim: int = 32, mlp_dim: int = 64) -> str:
    """Write one random LLaMA layer to `folder`, as Hugging Face lays it out; returns the folder as a source."""
    config = {
        "model_type": "llama",
        "hidden_size": dim,
        "intermediate_size": mlp_dim,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "rms_norm_eps": 1e-5,
    }
    shapes = {f"self_attn.{name}_proj": (dim, dim) for name in "qkvo"}
    shapes |= {"mlp.gate_proj": (mlp_dim, dim), "mlp.up_proj": (mlp_dim, dim), "mlp.down_proj": (dim, mlp_dim)}
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=generator) * shape[1] ** -0.5 for name, shape in shapes.items()}
    tensors |= {name: torch.ones(dim) for name in ("input_layernorm", "post_attention_layernorm")}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({f"model.layers.0.{name}.weight": t for name, t in tensors.items()}, folder / "model.safetensors")
    return str(folder)
