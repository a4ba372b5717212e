"""Which part of a block is trained: nothing, its norms, low-rank additions, or all of it.

The digest of a block is that of the values it starts from, and stays so; that more was trained
than the mappers is written beside it, in `Provenance.trained`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal, cast, get_args

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
        for layer in cast("Iterable[FrozenModule]", made.layers):
            places = _projections(layer)
            for path in (path for target in targets for path in places[target]):
                base = cast(Projection, layer.get_submodule(path))
                layer.put(path, LoraProjection(base, lora_rank, lora_alpha))
    else:
        for module in made.modules():
            if isinstance(module, FrozenModule) and (kind == "all" or is_norm(module)):
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


def is_norm(module: nn.Module) -> bool:
    """Whether a module of a block is a norm, lmgraft's or of the code of an opaque layer."""
    return isinstance(module, Norm) or getattr(module, "is_norm", False)


def _present(block: FrozenBlock, targets: Sequence[str] | None) -> tuple[str, ...]:
    """The targets in the order of `LORA_TARGETS`, once each."""
    held = [_projections(layer) for layer in block.layers]
    present = [n for n in LORA_TARGETS if held and all(n in places for places in held)]
    absent = [n for n in targets or () if n not in present]
    if absent or not present:
        raise BlockError(
            f"lora_targets: this block has no {absent[0]!r}" if absent else "this block has no projections for LoRA",
            f"it has {', '.join(present) or 'none'}",
        )
    return tuple(n for n in present if targets is None or n in targets)


def _projections(layer: nn.Module) -> dict[str, list[str]]:
    """Target -> paths of the projections of a layer that it stands for, under the names of its own code."""
    places: dict[str, list[str]] = {}
    for path, module in layer.named_modules():
        leaf = path.rpartition(".")[2]
        target = next((target for target, names in _NAMES.items() if leaf in names), leaf)
        if isinstance(module, Projection):
            places.setdefault(target, []).append(path)
    return places


_NAMES = {
    "q": ("q_proj", "query", "q_lin", "q_b_proj", "Wq", "q_up"),
    "k": ("k_proj", "key", "k_lin", "Wk", "k_up"),
    "v": ("v_proj", "value", "v_lin", "kv_b_proj", "Wv", "v_up"),
    "o": ("o_proj", "out_proj", "out_lin", "c_proj", "Wo"),
    "gate": ("gate_proj",),
    "up": ("up_proj", "fc1", "wi", "lin1", "c_fc", "gate_up_proj", "Wi"),
    "down": ("down_proj", "fc2", "wo", "lin2"),
}
"""Target -> what transformers and timm call it; a projection of another name is no target."""
