"""One arm's block into a model that is there already."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from lmgraft.block import load_block
from lmgraft.graft import GraftConfig
from lmgraft.graft.insert import insert
from lmgraft.recipes.arms import ARMS, arm_layer


def graft_arm(
    model: nn.Module,
    arm: str,
    config: GraftConfig,
    seed: int,
    *,
    host_spec: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Graft what `arm` has into `model`, in place; nothing where it has no block.

    New tensors are drawn from `seed` alone, so that the arms of a seed start with the same mappers.

    Args:
        model: The encoder.
        arm: A row of `ARMS`.
        config: How and what.
        seed: Of the mappers, and of what a control draws.
        host_spec: What makes the model again, for the record.

    Raises:
        LmgraftError: If the block cannot be had or the model cannot take it.
    """
    row = ARMS[arm]
    if row.block is None:
        return model
    block = load_block(
        config.llm,
        arm_layer(arm, config.layer),
        dtype=config.dtype,
        revision=config.revision,
        final_norm=config.final_norm,
        tower=config.tower,
        order=config.order,
    )
    trained = config.train_block if row.train_block is None else row.train_block
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # The block is stored as the recipe wants it; a control may hold tensors that are to stay float32.
        return insert(
            model, replace(config, train_block=trained, dtype=None), row.block(block, seed), host_spec=host_spec
        )
