"""The arms of a comparison, as data: what each trains, and the question it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lmgraft.block import FrozenBlock
from lmgraft.block.trained import TrainBlock
from lmgraft.graft.controls import linear, mlp, random_frozen, random_trained


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One arm. `block` turns the pretrained block into the arm's; None grafts nothing."""

    question: str
    block: Callable[[FrozenBlock, int], FrozenBlock] | None
    train_block: TrainBlock | None = None
    """In place of the recipe's graft.train_block; None leaves it. A block that is trained already stays so."""


def _pretrained(block: FrozenBlock, seed: int) -> FrozenBlock:
    return block


ARMS: dict[str, Arm] = {
    "plain": Arm(question="How good is the encoder by itself?", block=None),
    "llm": Arm(question="How good is it with the frozen LLM block?", block=_pretrained),
    "random_frozen": Arm(
        question="Would any frozen block do, without pretrained weights?", block=random_frozen, train_block="none"
    ),
    "random_trained": Arm(
        question="Would a block that is random at first and trained do?", block=random_trained, train_block="none"
    ),
    "llm_finetuned": Arm(question="Is it better to train the LLM block too?", block=_pretrained, train_block="all"),
    "llm_lora": Arm(question="Is it better to adapt the LLM block at low rank?", block=_pretrained, train_block="lora"),
    "mlp": Arm(question="Would GELU and LayerNorm between the mappers do?", block=mlp, train_block="none"),
    "linear": Arm(question="Would the two mappers alone do?", block=linear, train_block="none"),
}
