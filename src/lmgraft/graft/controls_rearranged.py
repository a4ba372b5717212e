"""Controls with the pretrained numbers in another arrangement: the entries of each matrix, or its singular values.

Only matrices change. Gains, shifts and biases stay as they are, and that is enough: each meets a
matrix on either side that is random with respect to it, so a gain scales coordinates that mean
nothing any more, and what a bias adds is the same for every token and every image.

Every tensor has a draw of its own. One permutation or rotation shared along the residual axis, the
heads or the MLP's inner axis would be no control: the trained mappers undo it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmgraft.block import FrozenBlock
from lmgraft.block.load import storage
from lmgraft.checkpoint.digest import json_digest
from lmgraft.graft.controls_redrawn import is_matrix, made_from, philox

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


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
        own = {}
        for name, tensor in tensors.items():
            key = f"{index}.{name}"
            own[name] = tensor.clone()
            if is_matrix(name):
                own[name] = change(tensor, index, name).to(tensor.device)
                before = known.pop(key)
                known |= {key: digest(key, before)} if digest is not None else {}
        changed.append(own)
    norm = final_norm and {name: tensor.clone() for name, tensor in final_norm.items()}
    return FrozenBlock(block.config, changed, provenance=provenance, final_norm=norm, digests=known)
