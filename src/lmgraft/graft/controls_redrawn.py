"""Controls with other weights: the block's wiring, its numbers drawn anew from a seed.

Draws come from NumPy's Philox and are scaled by a float32 factor, so that a seed gives the
same digest on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmgraft.block import FrozenBlock, Provenance
from lmgraft.block.load import storage
from lmgraft.block.trained import trainable
from lmgraft.errors import BlockError

INITIALIZER_RANGE = 0.02
"""Standard deviation of a weight matrix before training, as llama's and most other configs have it."""


def random_frozen(block: FrozenBlock, seed: int) -> FrozenBlock:
    """A frozen block of `block`'s shape and scale without anything it has learnt.

    Args:
        block: The pretrained block; it is left alone.
        seed: Recorded in the provenance.

    Raises:
        BlockError: If `block` is trained on.
    """
    # Norms are those of the weights as stored: the same seed needs the same storage.
    provenance = made_from(block, {"kind": "random_frozen", "seed": seed, "stored": storage(block)})
    plus_one = block.config.norm == "rms_plus_one"
    return _redrawn(block, provenance, lambda tensor, index, name: _draw(tensor, seed, index, name, plus_one))


def random_trained(block: FrozenBlock, seed: int, std: float = INITIALIZER_RANGE) -> FrozenBlock:
    """A block of `block`'s shape as before any training, all of it to be trained.

    Args:
        block: The pretrained block; it is left alone.
        seed: Recorded in the provenance.
        std: Standard deviation of its matrices, an LLM's `initializer_range`; 0.02 for most.

    Raises:
        BlockError: If `block` is trained on.
    """
    provenance = made_from(block, {"kind": "random_trained", "seed": seed, "std": std})
    gain = 0.0 if block.config.norm == "rms_plus_one" else 1.0

    def draw(tensor: Tensor, index: int, name: str) -> Tensor:
        if name.endswith(".bias"):
            return torch.zeros(tensor.shape)
        if "norm" in name:
            return torch.full(tensor.shape, gain)
        return torch.from_numpy(noise(tensor, seed, index, name) * np.float32(std))

    return trainable(_redrawn(block, provenance, draw), "all")


def made_from(block: FrozenBlock, control: dict[str, Any]) -> Provenance:
    """The provenance of a control of `block`: that block's, and how it was changed.

    Raises:
        BlockError: If `block` is trained on.
    """
    if block.provenance.trained is not None:
        raise BlockError(
            f"this block is trained on ({block.provenance.trained['kind']})", "make the control of load_block's"
        )
    return replace(block.provenance, control=control | {"of": block.provenance.digest})


def _redrawn(block: FrozenBlock, provenance: Provenance, draw: Callable[[Tensor, int, str], Tensor]) -> FrozenBlock:
    """A block of `block`'s shape, dtype and place with every tensor from `draw`(tensor, layer, name)."""
    layers, final_norm = block.tensors()
    drawn = [{name: draw(t, index, name) for name, t in tensors.items()} for index, tensors in enumerate(layers)]
    norm = final_norm and {n: draw(t, -1, f"norm.{n}") for n, t in final_norm.items()}
    made = FrozenBlock(block.config, drawn, provenance=provenance, final_norm=norm)
    like = next(block.parameters())
    return made.to(device=like.device, dtype=like.dtype)


def _draw(tensor: Tensor, seed: int, index: int, name: str, plus_one: bool) -> Tensor:
    values = tensor.float().cpu()
    if name.endswith(".bias"):
        return torch.zeros_like(values)
    if "norm" in name:
        gain = _rms(values + 1) - 1 if plus_one else _rms(values)
        return torch.full_like(values, gain)
    drawn = noise(values, seed, index, name)
    norm = math.sqrt(float(values.double().square().sum()))
    # Rounding the factor to float32 first hides summation-order noise of the two norms.
    factor = np.float32(norm / math.sqrt(float(np.square(drawn, dtype=np.float64).sum())))
    return torch.from_numpy(drawn * factor)


def is_matrix(name: str) -> bool:
    """Whether a canonical tensor is a projection's matrix, and not a gain, shift or bias."""
    return name.endswith(".weight") and "norm" not in name


def philox(seed: int, index: int, name: str) -> np.random.Generator:
    """The generator of one tensor of one layer (-1: the final norm); a function of its arguments."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, index, *name.encode()])))


def noise(like: Tensor, seed: int, index: int, name: str) -> NDArray[np.float32]:
    """Standard normal numbers in the shape of `like`, float32; a function of the other arguments."""
    return philox(seed, index, name).standard_normal(tuple(like.shape), dtype=np.float32)


def _rms(values: Tensor) -> float:
    return float(values.double().square().mean().sqrt())
