"""The block of a graft as its config wants it trained."""

from __future__ import annotations

from dataclasses import replace

from lmgraft.block import FrozenBlock
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
    actual = replace(
        config,
        train_block=given["kind"],
        lora_rank=given.get("rank", config.lora_rank),
        lora_alpha=given.get("alpha", config.lora_alpha),
        lora_targets=tuple(given["targets"]) if "targets" in given else config.lora_targets,
    )
    if config.train_block not in ("none", actual.train_block):
        raise BlockError(
            f"this block is trained already ({actual.train_block}), train_block={config.train_block!r} is asked for",
            "leave train_block out, or start from load_block's",
        )
    return block, actual
