"""Controls with less than a block: one of its two branches, a function of each token by itself, or nothing."""

from __future__ import annotations

from dataclasses import replace

from lmgraft.block import FrozenBlock
from lmgraft.block.config import Branches
from lmgraft.block.tokenwise import TokenwiseBlock
from lmgraft.errors import BlockError
from lmgraft.graft.controls_redrawn import made_from


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
    return _half(block, "attention", seed)


def mlp_only(block: FrozenBlock, seed: int = 0) -> FrozenBlock:
    """`block` without attention: no tokens are mixed, so those that are not read cost nothing. See `attention_only`."""
    return _half(block, "mlp", seed)


def _half(block: FrozenBlock, branch: Branches, seed: int) -> FrozenBlock:
    if block.config.branches != "both" or not block.layers:
        raise BlockError("this block has no two branches of which one could be left out", "start from load_block's")
    provenance = made_from(block, {"kind": f"{branch}_only", "seed": seed})
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
