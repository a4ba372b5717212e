"""Blocks of the shapes of known LLMs with random weights: cost depends on shapes alone."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from lmgraft.block import BlockConfig, FrozenBlock, Provenance, load_block
from lmgraft.block.load import DTYPES

SHAPES: dict[str, dict[str, Any]] = {
    "smollm2-135m": {"dim": 576, "num_heads": 9, "num_kv_heads": 3, "head_dim": 64, "mlp_dim": 1536},
    "qwen2.5-1.5b": {
        "dim": 1536,
        "num_heads": 12,
        "num_kv_heads": 2,
        "head_dim": 128,
        "mlp_dim": 8960,
        "qkv_bias": True,
    },
    "llama-7b": {"dim": 4096, "num_heads": 32, "num_kv_heads": 32, "head_dim": 128, "mlp_dim": 11008},
    "llama-70b": {"dim": 8192, "num_heads": 64, "num_kv_heads": 8, "head_dim": 128, "mlp_dim": 28672},
    "llama-405b": {"dim": 16384, "num_heads": 128, "num_kv_heads": 8, "head_dim": 128, "mlp_dim": 53248},
}
"""Fields of `BlockConfig` by the name of an LLM, as its published configuration has them."""

_POOL = (1 << 22) - 3
"""Random numbers drawn for a whole block; a prime, so that no two rows of a matrix are alike."""


def make_block(name: str, storage: str = "float32", device: str = "cpu") -> FrozenBlock:
    """A block of a shape in `SHAPES` with random weights, or the last block of any source of `load_block`.

    Args:
        name: A name in `SHAPES`, or a source.
        storage: Dtype of the frozen weights.
        device: Where it lies.

    Raises:
        LmgraftError: As `load_block`, where `name` is a source.
    """
    if name not in SHAPES:
        return load_block(name, dtype=storage, device=device)
    config = BlockConfig(**SHAPES[name])
    dtype = DTYPES[storage]
    generator = torch.Generator().manual_seed(0)
    pool = torch.randn(_POOL, generator=generator).to(dtype)
    tensors = {n: _draw(pool, shape, n, dtype, device) for n, shape in config.tensor_shapes().items()}
    provenance = Provenance(
        source=f"random weights in the shape of {name}",
        family="llama",
        layers=(0,),
        final_norm="unit",
        num_layers=1,
        file_dtypes=(),
    )
    # Digests of what the weights are drawn from: hashing gigabytes of random numbers would say no more.
    digests = {f"0.{n}": _digest(f"{name} {n} {storage}") for n in tensors}
    return FrozenBlock(config, [tensors], provenance=provenance, digests=digests)


def _draw(pool: Tensor, shape: tuple[int, ...], name: str, dtype: torch.dtype, device: str) -> Tensor:
    """Numbers from the pool, over and over: copying is several times as quick as drawing."""
    if len(shape) == 1:
        fill = torch.zeros if name.endswith("bias") else torch.ones
        return fill(shape, dtype=dtype, device=device)
    scaled = (pool * shape[-1] ** -0.5).to(device)
    out = torch.empty(shape, dtype=dtype, device=device)
    flat = out.view(-1)
    for start in range(0, flat.numel(), _POOL):
        part = flat[start : start + _POOL]
        part.copy_(scaled[: part.numel()])
    return out


def _digest(text: str) -> str:
    return hashlib.sha256(f"synthetic: {text}".encode()).hexdigest()
