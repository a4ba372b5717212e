"""Control blocks: the same wiring with other frozen weights, to tell what the weights matter.

    random_frozen   Is it the pretrained weights, or would any frozen block do?
                    Gaussian matrices at the pretrained Frobenius norm, gains constant at the
                    pretrained root mean square, biases zero.

Draws come from NumPy's Philox and are scaled by a float32 factor, so that a seed gives the
same digest on every machine.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmgraft.block import FrozenBlock
from lmgraft.block.load import place, storage
from lmgraft.errors import BlockError


def random_frozen(block: FrozenBlock, seed: int) -> FrozenBlock:
    """A frozen block of `block`'s shape and scale without anything it has learnt.

    Args:
        block: The pretrained block; it is left alone.
        seed: Recorded in the provenance.
    """
    layers, final_norm = block.tensors()
    plus_one = block.config.norm == "rms_plus_one"
    drawn = [
        {name: _draw(tensor, seed, index, name, plus_one) for name, tensor in tensors.items()}
        for index, tensors in enumerate(layers)
    ]
    # Norms are those of the weights as stored: the same seed needs the same storage.
    control = {"kind": "random_frozen", "seed": seed, "of": block.provenance.digest, "stored": storage(block)}
    new_norm = final_norm and {n: _draw(t, seed, -1, f"norm.{n}", plus_one) for n, t in final_norm.items()}
    provenance = replace(block.provenance, control=control)
    made = FrozenBlock(block.config, drawn, provenance=provenance, final_norm=new_norm)
    like = next(block.parameters())
    return made.to(device=like.device, dtype=like.dtype)


def apply_control(block: FrozenBlock, control: Mapping[str, Any]) -> FrozenBlock:
    """Repeat on `block` the control that a provenance records.

    Raises:
        BlockError: If the kind is unknown or `block` is not the one it was made from.
    """
    if control.get("kind") != "random_frozen" or not {"seed", "of"} <= control.keys():
        raise BlockError(f"control {control.get('kind')!r} is not known to this version", "update lmgraft")
    if control["of"] != block.provenance.digest:
        raise BlockError(
            f"the control was made from block {control['of'][:12]}, this is {block.provenance.digest[:12]}",
            "give the source that the run used",
        )
    return random_frozen(place(copy.deepcopy(block), control.get("stored"), None), control["seed"])


def _draw(tensor: Tensor, seed: int, index: int, name: str, plus_one: bool) -> Tensor:
    values = tensor.float().cpu()
    if name.endswith(".bias"):
        return torch.zeros_like(values)
    if "norm" in name:
        gain = _rms(values + 1) - 1 if plus_one else _rms(values)
        return torch.full_like(values, gain)
    key = [seed, index, *name.encode()]
    noise = np.random.Generator(np.random.Philox(np.random.SeedSequence(key))).standard_normal(
        tuple(values.shape), dtype=np.float32
    )
    norm = math.sqrt(float(values.double().square().sum()))
    # Rounding the factor to float32 first hides summation-order noise of the two norms.
    factor = np.float32(norm / math.sqrt(float(np.square(noise, dtype=np.float64).sum())))
    return torch.from_numpy(noise * factor)


def _rms(values: Tensor) -> float:
    return float(values.double().square().mean().sqrt())
