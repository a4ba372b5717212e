"""Control blocks: the same wiring with other weights, or with less than a block, to tell what matters.

Three kinds, in this order below. What question each answers stands in `recipes.arms.ARMS`.

1. *Redrawn*: the block's wiring with numbers drawn from a seed.
   random_frozen, random_trained
2. *Rearranged*: the pretrained numbers in another arrangement, entries or singular values. Only matrices
   change. Gains, shifts and biases stay as they are, and that is enough: each meets a matrix on either side
   that is random with respect to it, so a gain scales coordinates that mean nothing any more, and what a
   bias adds is the same for every token and every image.
   shuffled, spectrum
3. *Reduced*: one of the block's two branches, or of its random one's, a function of each token by itself, or nothing.
   attention_only, mlp_only, random_attention_only, random_mlp_only, mlp, linear

Draws come from NumPy's Philox and are scaled by a float32 factor, so that a seed gives the same digest on
every machine. Every tensor has a draw of its own: one permutation or rotation shared along the residual
axis, the heads or the MLP's inner axis would be no control, since the trained mappers undo it.
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
from lmgraft.block.config import Branches
from lmgraft.block.load import place, storage
from lmgraft.block.tokenwise import TokenwiseBlock
from lmgraft.block.trained import trainable
from lmgraft.checkpoint.digest import json_digest
from lmgraft.errors import BlockError

INITIALIZER_RANGE = 0.02
"""Standard deviation of a weight matrix before training, as llama's and most other configs have it."""
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


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
    minus_one = block.config.is_minus_one
    return _redrawn(block, provenance, lambda tensor, index, name: _draw(tensor, seed, index, name, minus_one(name)))


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

    def draw(tensor: Tensor, index: int, name: str) -> Tensor:
        if is_bias(name):
            return torch.zeros(tensor.shape)
        if not is_matrix(name, tensor):
            return torch.full(tensor.shape, 0.0 if block.config.is_minus_one(name) else 1.0)
        return torch.from_numpy(noise(tensor, seed, index, name) * np.float32(std))

    return trainable(_redrawn(block, provenance, draw), "all")


def shuffled(block: FrozenBlock, seed: int) -> FrozenBlock:
    """A frozen block whose matrices hold the pretrained entries in random places.

    Each matrix's distribution stays, its outliers too; its singular values, and any row or column
    that stood out, do not. The same digest on every machine: entries are moved, not computed.

    Args:
        block: The pretrained block; it is left alone.
        seed: Recorded in the provenance.

    Raises:
        BlockError: If `block` is trained on.
    """

    def shuffle(tensor: Tensor, index: int, name: str) -> Tensor:
        moved = tensor.cpu().contiguous().clone()
        bits = moved.view(_BITS[moved.element_size()]).reshape(-1).numpy()  # NumPy has no bfloat16
        philox(seed, index, name).shuffle(bits)
        return moved

    return _rearranged(block, {"kind": "shuffled", "seed": seed}, shuffle, None)


def spectrum(block: FrozenBlock, seed: int) -> FrozenBlock:
    """A frozen block of matrices U S V^T: the pretrained singular values S between random orthogonal U and V.

    U and V are uniformly distributed (Haar). A matrix is one of q, k, v, o, gate, up, down, also
    where a file fuses several. Stored in 16 bits, singular values are kept up to that rounding.

    The last bits of U S V^T differ between machines, so digests are not those of values: each says
    how its matrix was made, from seed, name and the pretrained matrix's digest. A run that is resumed
    on another machine may therefore see other last bits, as it does of every product.

    Args:
        block: The pretrained block; it is left alone.
        seed: Recorded in the provenance.

    Raises:
        BlockError: If `block` is trained on.
    """

    def redraw(tensor: Tensor, index: int, name: str) -> Tensor:
        rows, columns = tensor.shape
        values = singular_values(tensor.cpu()).float()
        generator = philox(seed, index, name)
        left = _orthonormal(generator, rows, len(values))
        right = _orthonormal(generator, columns, len(values))
        return (left * values @ right.T).to(tensor.dtype)

    stored = storage(block)

    def digest(name: str, of: str) -> str:
        return json_digest({"control": "spectrum", "seed": seed, "stored": stored, "tensor": name, "of": of})

    return _rearranged(block, {"kind": "spectrum", "seed": seed}, redraw, digest)


def singular_values(matrix: Tensor) -> Tensor:
    """All of a matrix's, float64, largest first; exact to about 1e-8 of the largest.

    Of its Gram matrix along the shorter axis: several times as quick as an SVD of a long matrix.
    """
    wide = matrix.double()
    gram = wide.T @ wide if wide.shape[0] >= wide.shape[1] else wide @ wide.T
    values: Tensor = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt().flip(0)
    return values


def _orthonormal(generator: np.random.Generator, rows: int, columns: int) -> Tensor:
    """(rows, columns) with orthonormal columns, uniformly distributed; rows >= columns.

    Q of a Gaussian matrix's QR, each column's sign set as if R's diagonal were positive: without it
    Q follows LAPACK's convention and is not uniform (Mezzadri 2007, section 5).
    """
    drawn = torch.from_numpy(generator.standard_normal((rows, columns), dtype=np.float32))
    q, r = torch.linalg.qr(drawn)
    signed: Tensor = q * torch.where(r.diagonal() < 0, -1.0, 1.0)
    return signed


def _rearranged(
    block: FrozenBlock,
    control: dict[str, Any],
    change: Callable[[Tensor, int, str], Tensor],
    digest: Callable[[str, str], str] | None,
) -> FrozenBlock:
    """A block with every matrix from `change`(matrix, layer, name), all in its dtype and place.

    Args:
        digest: Of a changed matrix, from its name and the digest before; None for that of its values.
    """
    # Values are those of the weights as stored: the same seed needs the same storage.
    provenance = made_from(block, control | {"stored": storage(block)})
    known = dict(block.provenance.tensors)
    layers, final_norm = block.tensors()
    changed = []
    for index, tensors in enumerate(layers):
        kept = {}
        for name, tensor in tensors.items():
            key = f"{index}.{name}"
            kept[name] = tensor.clone()
            if is_matrix(name, tensor):
                kept[name] = _each_matrix(change, tensor, index, name).to(tensor.device)
                before = known.pop(key)
                known |= {key: digest(key, before)} if digest is not None else {}
        changed.append(kept)
    norm = final_norm and {name: tensor.clone() for name, tensor in final_norm.items()}
    return block.with_tensors(changed, provenance=provenance, final_norm=norm, digests=known)


def attention_only(block: FrozenBlock, seed: int = 0) -> FrozenBlock:
    """`block` without its MLPs: each layer adds what attention gives, and that alone.

    An MLP and the norms before and behind it are left out, of its memory too. A norm that lies on the
    residual stream itself (OPT-350M, BLOOM's variant) belongs to no branch and stays.

    Args:
        block: The pretrained block; it is left alone, and shares the storage of what is kept.
        seed: Nothing is drawn; here so that all controls are called alike.

    Raises:
        BlockError: If `block` is trained on, or is a half already.
    """
    return _half(block, "attention", made_from(block, {"kind": "attention_only", "seed": seed}))


def mlp_only(block: FrozenBlock, seed: int = 0) -> FrozenBlock:
    """`block` without attention: no tokens are mixed, so those that are not read cost nothing. See `attention_only`."""
    return _half(block, "mlp", made_from(block, {"kind": "mlp_only", "seed": seed}))


def random_attention_only(block: FrozenBlock, seed: int) -> FrozenBlock:
    """`attention_only` of what `random_frozen` draws from the same seed: a control of that control.

    Args:
        block: The pretrained block; it is left alone.
        seed: Recorded in the provenance.

    Raises:
        BlockError: If `block` is trained on, or is a half already.
    """
    return _random_half(block, "attention", seed)


def random_mlp_only(block: FrozenBlock, seed: int) -> FrozenBlock:
    """`mlp_only` of what `random_frozen` draws from the same seed. See `random_attention_only`."""
    return _random_half(block, "mlp", seed)


def _random_half(block: FrozenBlock, branch: Branches, seed: int) -> FrozenBlock:
    control = {"kind": f"random_{branch}_only", "seed": seed, "stored": storage(block)}
    return _half(random_frozen(block, seed), branch, made_from(block, control))


def _half(block: FrozenBlock, branch: Branches, provenance: Provenance) -> FrozenBlock:
    if block.config.branches != "both" or not block.layers or block.opaque:
        raise BlockError(
            "this block has no two branches of which one could be left out"
            + (": its layers are not computed by lmgraft's code" if block.opaque else ""),
            "start from load_block's, of a family that docs/families.md lists as native",
        )
    config = replace(block.config, branches=branch)
    kept = config.tensor_shapes()
    layers, final_norm = block.tensors()
    return FrozenBlock(
        config,
        [{name: tensor for name, tensor in tensors.items() if name in kept} for tensors in layers],
        provenance=provenance,
        final_norm=final_norm,
        digests=block.provenance.tensors,
    )


def mlp(block: FrozenBlock, seed: int = 0) -> FrozenBlock:
    """In place of `block`: GELU, then a LayerNorm whose gains and shifts are trained.

    Args:
        block: Only its width counts.
        seed: Nothing is drawn; here so that all controls are called alike.
    """
    return TokenwiseBlock("mlp", block.config, made_from(block, {"kind": "mlp", "seed": seed}))


def linear(block: FrozenBlock, seed: int = 0) -> FrozenBlock:
    """In place of `block`: nothing. See `mlp`."""
    return TokenwiseBlock("linear", block.config, made_from(block, {"kind": "linear", "seed": seed}))


CONTROLS: dict[str, Callable[..., FrozenBlock]] = {
    "random_frozen": random_frozen,
    "shuffled": shuffled,
    "spectrum": spectrum,
    "random_trained": random_trained,
    "attention_only": attention_only,
    "mlp_only": mlp_only,
    "random_attention_only": random_attention_only,
    "random_mlp_only": random_mlp_only,
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
    made = block.with_tensors(drawn, provenance=provenance, final_norm=norm)
    like = next(block.parameters())
    return made.to(device=like.device, dtype=like.dtype)


def _draw(tensor: Tensor, seed: int, index: int, name: str, plus_one: bool) -> Tensor:
    values = tensor.float().cpu()
    if is_bias(name):
        return torch.zeros_like(values)
    if not is_matrix(name, tensor):
        gain = _rms(values + 1) - 1 if plus_one else _rms(values)
        return torch.full_like(values, gain)
    if tensor.dim() > 2:
        return torch.stack([_draw(t, seed, index, f"{name}.{i}", False) for i, t in enumerate(tensor)])
    drawn = noise(values, seed, index, name)
    norm = math.sqrt(float(values.double().square().sum()))
    # Rounding the factor to float32 first hides summation-order noise of the two norms.
    factor = np.float32(norm / math.sqrt(float(np.square(drawn, dtype=np.float64).sum())))
    return torch.from_numpy(drawn * factor)


def is_matrix(name: str, tensor: Tensor) -> bool:
    """Whether a tensor of a block is a matrix or a stack of them (experts), and not a gain, shift or bias."""
    return tensor.dim() > 1 and "norm" not in name and not is_bias(name)


def is_bias(name: str) -> bool:
    """Whether a tensor of a block is a shift or a bias."""
    return name.endswith("bias")


def _each_matrix(change: Callable[[Tensor, int, str], Tensor], tensor: Tensor, index: int, name: str) -> Tensor:
    """`tensor` with `change` applied to each matrix in it: to each expert's by itself."""
    if tensor.dim() == 2:
        return change(tensor, index, name)
    return torch.stack([_each_matrix(change, part, index, f"{name}.{i}") for i, part in enumerate(tensor)])


def philox(seed: int, index: int, name: str) -> np.random.Generator:
    """The generator of one tensor of one layer (-1: the final norm); a function of its arguments."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, index, *name.encode()])))


def noise(like: Tensor, seed: int, index: int, name: str) -> NDArray[np.float32]:
    """Standard normal numbers in the shape of `like`, float32; a function of the other arguments."""
    return philox(seed, index, name).standard_normal(tuple(like.shape), dtype=np.float32)


def _rms(values: Tensor) -> float:
    return float(values.double().square().mean().sqrt())
