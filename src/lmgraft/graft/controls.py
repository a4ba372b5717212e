"""Control blocks: the same wiring with other weights, or with less than a block, to tell what matters.

    random_frozen   Is it the pretrained weights, or would any frozen block do?
                    Gaussian matrices at the pretrained Frobenius norm, gains constant at the
                    pretrained root mean square, biases zero.
    random_trained  Is it the capacity? (the paper's "Random") The same block, drawn as LLMs are
                    before their training, and trained with the rest: normal matrices of one
                    standard deviation, gains one, shifts and biases zero.
    mlp             Is it the extra trained layers? (the paper's "+MLP") No block: GELU and a
                    trained LayerNorm between the mappers.
    linear          No block and nothing in its place: W2 W1 x.

Draws come from NumPy's Philox and are scaled by a float32 factor, so that a seed gives the
same digest on every machine.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmgraft.block import FrozenBlock, Provenance
from lmgraft.block.load import place, storage
from lmgraft.block.tokenwise import TokenwiseBlock
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
    provenance = _provenance(block, {"kind": "random_frozen", "seed": seed, "stored": storage(block)})
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
    provenance = _provenance(block, {"kind": "random_trained", "seed": seed, "std": std})
    gain = 0.0 if block.config.norm == "rms_plus_one" else 1.0

    def draw(tensor: Tensor, index: int, name: str) -> Tensor:
        if name.endswith(".bias"):
            return torch.zeros(tensor.shape)
        if "norm" in name:
            return torch.full(tensor.shape, gain)
        return torch.from_numpy(_noise(tensor, seed, index, name) * np.float32(std))

    return trainable(_redrawn(block, provenance, draw), "all")


def mlp(block: FrozenBlock, seed: int = 0) -> FrozenBlock:
    """In place of `block`: GELU, then a LayerNorm whose gains and shifts are trained.

    Args:
        block: Only its width counts.
        seed: Nothing is drawn; here so that all controls are called alike.
    """
    return TokenwiseBlock("mlp", block.config, _provenance(block, {"kind": "mlp", "seed": seed}))


def linear(block: FrozenBlock, seed: int = 0) -> FrozenBlock:
    """In place of `block`: nothing. See `mlp`."""
    return TokenwiseBlock("linear", block.config, _provenance(block, {"kind": "linear", "seed": seed}))


CONTROLS: dict[str, Callable[..., FrozenBlock]] = {
    "random_frozen": random_frozen,
    "random_trained": random_trained,
    "mlp": mlp,
    "linear": linear,
}


def apply_control(block: FrozenBlock, control: Mapping[str, Any]) -> FrozenBlock:
    """Repeat on `block` the control that a provenance records.

    Raises:
        BlockError: If the kind is unknown or `block` is not the one it was made from.
    """
    if control.get("kind") not in CONTROLS or not {"seed", "of"} <= control.keys():
        raise BlockError(f"control {control.get('kind')!r} is not known to this version", "update lmgraft")
    if control["of"] != block.provenance.digest:
        raise BlockError(
            f"the control was made from block {control['of'][:12]}, this is {block.provenance.digest[:12]}",
            "give the source that the run used",
        )
    options = {name: control[name] for name in ("std",) if name in control}
    stored = place(copy.deepcopy(block), control.get("stored"), None)
    return CONTROLS[control["kind"]](stored, control["seed"], **options)


def _provenance(block: FrozenBlock, control: dict[str, Any]) -> Provenance:
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
    noise = _noise(values, seed, index, name)
    norm = math.sqrt(float(values.double().square().sum()))
    # Rounding the factor to float32 first hides summation-order noise of the two norms.
    factor = np.float32(norm / math.sqrt(float(np.square(noise, dtype=np.float64).sum())))
    return torch.from_numpy(noise * factor)


def _noise(like: Tensor, seed: int, index: int, name: str) -> NDArray[np.float32]:
    """Standard normal numbers in the shape of `like`, float32; a function of the other arguments."""
    key = [seed, index, *name.encode()]
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
    return generator.standard_normal(tuple(like.shape), dtype=np.float32)


def _rms(values: Tensor) -> float:
    return float(values.double().square().mean().sqrt())
