"""What of a graft's block is trained: as the config asks, and as the planner must count it."""

from __future__ import annotations

from dataclasses import replace
from typing import TypedDict

import torch

from lmgraft.block import FrozenBlock
from lmgraft.block.lora import LoraProjection
from lmgraft.block.parts import Norm
from lmgraft.block.trained import trainable
from lmgraft.errors import BlockError
from lmgraft.graft.config import GraftConfig


def prepared(block: FrozenBlock, config: GraftConfig) -> tuple[FrozenBlock, GraftConfig]:
    """The block as `config` wants it trained, and the config as it then is.

    A block that is trained already, as a control or from another graft, is taken as it is.

    Raises:
        BlockError: If it is trained in another way than the config asks for.
    """
    given = block.provenance.trained
    if given is None:
        made = trainable(
            block,
            config.train_block,
            lora_rank=config.lora_rank,
            lora_alpha=config.lora_alpha,
            lora_targets=config.lora_targets,
        )
        return made, config
    own = replace(
        config,
        train_block=given["kind"],
        lora_rank=given.get("rank", config.lora_rank),
        lora_alpha=given.get("alpha", config.lora_alpha),
        lora_targets=tuple(given["targets"]) if "targets" in given else config.lora_targets,
    )
    if config.train_block not in ("none", own.train_block):
        raise BlockError(
            f"this block is trained already ({own.train_block}), train_block={config.train_block!r} is asked for",
            "leave train_block out, or start from load_block's",
        )
    return block, own


class TrainedParts(TypedDict):
    """Fields of `Problem`."""

    block_grad: bool
    norm_grad: bool
    lora: tuple[str, ...]
    lora_rank: int
    lora_grad: bool


def trained_parts(block: FrozenBlock) -> TrainedParts:
    """Which tensors of `block` a gradient is wanted of now. One trained matrix counts as all of them."""
    found: set[type] = set()
    low_rank: dict[str, int] = {}
    for name, module in block.named_modules():
        if isinstance(module, LoraProjection):
            low_rank[name.rpartition(".")[2]] = module.lora_a.shape[0]
            own: tuple[torch.nn.Parameter | None, ...] = (module.lora_a, module.lora_b)
        else:
            own = tuple(module.parameters(recurse=False))
        if any(p is not None and p.requires_grad for p in own):
            found.add(type(module))
    grad = torch.is_grad_enabled()
    return TrainedParts(
        block_grad=grad and bool(found - {Norm, LoraProjection}),
        norm_grad=grad and Norm in found,
        lora=tuple(sorted(low_rank)),
        lora_rank=max(low_rank.values(), default=0),
        lora_grad=grad and LoraProjection in found,
    )
