"""The arms of a comparison, as data: what each trains, and the question it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lmgraft.block import FrozenBlock
from lmgraft.graft.controls import random_frozen


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One arm. `block` turns the pretrained block into the arm's; None grafts nothing."""

    question: str
    block: Callable[[FrozenBlock, int], FrozenBlock] | None


def _pretrained(block: FrozenBlock, seed: int) -> FrozenBlock:
    return block


ARMS: dict[str, Arm] = {
    "plain": Arm(question="How good is the encoder by itself?", block=None),
    "llm": Arm(question="How good is it with the frozen LLM block?", block=_pretrained),
    "random_frozen": Arm(question="Would any frozen block do, without pretrained weights?", block=random_frozen),
}
