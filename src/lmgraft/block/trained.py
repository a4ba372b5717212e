"""Which part of a block is trained: nothing, its norms, low-rank additions, or all of it.

The digest of a block is that of the values it starts from, and stays so; that more was trained
than the mappers is written beside it, in `Provenance.trained`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

from torch import nn

from lmgraft.block.block import FrozenBlock
from lmgraft.block.frozen import FrozenModule
from lmgraft.block.lora import LoraProjection
from lmgraft.block.parts import Norm, Projection
from lmgraft.errors import BlockError
from lmgraft.registry import suggest

TrainBlock = Literal["none", "all", "norms", "lora"]
"""What of a block is trained:

    none    nothing: the block is frozen, as published
    all     every tensor of it (the paper's "FT")
    norms   the gains and shifts of its norms
    lora    its projections by a low-rank addition each, themselves frozen
"""

LORA_TARGETS = ("q", "k", "v", "o", "gate", "up", "down")
"""The projections of a layer; "gate" only where the MLP is gated."""


def trainable(
    block: FrozenBlock,
    kind: TrainBlock,
    *,
    lora_rank: int = 8,
    lora_alpha: float = 16.0,
    lora_targets: Sequence[str] | None = None,
) -> FrozenBlock:
    """A copy of `block` of which a part is to be trained; what stays frozen shares its storage.

    A final norm of gain one has nothing to train; a pretrained one counts as one of the norms.

    Args:
        block: Left alone.
        kind: See `TrainBlock`.
        lora_rank: Rank of what is added to each projection.
        lora_alpha: The addition is multiplied by lora_alpha / lora_rank.
        lora_targets: Names in `LORA_TARGETS`; None for every projection that the block has.

    Raises:
        BlockError: If a value is not among those, a target is absent, or `block` is trained already.
    """
    check_training(kind, lora_rank, lora_alpha, lora_targets)
    if kind == "none":
        return block
    if block.provenance.trained is not None:
        raise BlockError(
            f"this block is trained already ({block.provenance.trained['kind']})", "start from load_block's"
        )
    made = copy.deepcopy(block)
    how: dict[str, Any] = {"kind": kind}
    if kind == "lora":
        targets = _present(block, lora_targets)
        how |= {"rank": lora_rank, "alpha": float(lora_alpha), "targets": list(targets)}
        for layer in made.layers:
            for target in targets:
                parent = layer.get_submodule(_parent(target))
                setattr(parent, target, LoraProjection(getattr(parent, target), lora_rank, lora_alpha))
    else:
        for module in made.modules():
            if isinstance(module, FrozenModule) and (kind == "all" or isinstance(module, Norm)):
                train_all(module)
    made.provenance = replace(made.provenance, trained=how)
    return made


def train_all(module: FrozenModule) -> None:
    """Train the own parameters of `module`, in storage of their own."""
    for parameter in module.parameters(recurse=False):
        parameter.data = parameter.data.clone()
        parameter.requires_grad_(True)
    module.trained = frozenset(name for name, _ in module.named_parameters(recurse=False))


def check_training(kind: str, lora_rank: int, lora_alpha: float, lora_targets: Sequence[str] | None) -> None:
    """Refuse values that name no way to train a block.

    Raises:
        BlockError: Naming the value.
    """
    if kind not in get_args(TrainBlock):
        raise BlockError(f"train_block={kind!r} is not known", f"one of {', '.join(get_args(TrainBlock))}")
    if not isinstance(lora_rank, int) or isinstance(lora_rank, bool) or lora_rank < 1:
        raise BlockError(f"lora_rank={lora_rank!r} is no rank", "give a whole number from 1 on; 8 is usual")
    if not lora_alpha > 0:
        raise BlockError(f"lora_alpha={lora_alpha!r} must be positive", "give for instance twice the rank")
    if lora_targets is None:
        return
    if isinstance(lora_targets, str) or not lora_targets:
        raise BlockError(f"lora_targets={lora_targets!r} is no list of names", f"of {', '.join(LORA_TARGETS)}")
    for target in lora_targets:
        if target not in LORA_TARGETS:
            raise BlockError(f"lora_targets: {target!r} is no projection of a block", suggest(target, LORA_TARGETS))


def _present(block: FrozenBlock, targets: Sequence[str] | None) -> tuple[str, ...]:
    """The targets in the order of `LORA_TARGETS`, once each."""
    own = [n for n in LORA_TARGETS if all(_has(layer, n) for layer in block.layers)]
    absent = [n for n in targets or () if n not in own]
    if absent or not own:
        raise BlockError(
            f"lora_targets: this block has no {absent[0]!r}" if absent else "this block has no projections for LoRA",
            f"it has {', '.join(own) or 'none'}",
        )
    return tuple(n for n in own if targets is None or n in targets)


def _has(layer: nn.Module, target: str) -> bool:
    return isinstance(getattr(getattr(layer, _parent(target), None), target, None), Projection)


def _parent(target: str) -> str:
    return "attention" if target in "qkvo" else "mlp"
