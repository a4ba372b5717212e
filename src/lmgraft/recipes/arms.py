"""The arms of a comparison, one row each: block, what is trained, and how it is spoken of and drawn.

A new arm is a row here. The values of a recipe's `arm:`, the nouns of a verdict, the colours of charts and
the help of commands are read from this table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lmgraft.block import FrozenBlock
from lmgraft.block.trained import TrainBlock
from lmgraft.errors import RecipeError
from lmgraft.graft.controls import (
    attention_only,
    linear,
    mlp,
    mlp_only,
    random_attention_only,
    random_frozen,
    random_mlp_only,
    random_trained,
    shuffled,
    spectrum,
)


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One arm. `block` turns the pretrained block into the arm's; None grafts nothing."""

    question: str
    keeps: str
    """What it has of the pretrained block."""
    destroys: str
    """What it has not, or what is done to it."""
    block: Callable[[FrozenBlock, int], FrozenBlock] | None
    train_block: TrainBlock | None = None
    """In place of the recipe's graft.train_block; None leaves it. A block that is trained already stays so."""
    layers: int | None = None
    """Load so many consecutive layers, the recipe's graft.layer the last of them; None loads graft.layer."""
    equal_flops: str | None = None
    """An encoder as large as makes a training step cost what it costs in this other arm; None leaves the recipe's."""
    noun: str
    """What it is called in a sentence, after "with"."""
    color: str
    """Its colour in charts, #rrggbb: told apart from the others' also without red-green vision."""
    better: str = ""
    """What follows where the LLM block is better than this control, a sentence's beginning; "" where nothing does."""
    unclear: str = ""
    """What is then neither shown nor excluded, after "not shown"."""
    explained: str = ""
    """After "explained by", where the LLM block and this control are equivalent."""


def arm_layer(name: str, layer: int | tuple[int, ...]) -> int | tuple[int, ...]:
    """The layers of the LLM that arm `name` loads where a recipe says graft.layer `layer`.

    Raises:
        RecipeError: If the arm wants layers before it, and there are none or several layers are given.
    """
    count = ARMS[name].layers
    if count is None:
        return layer
    if not isinstance(layer, int):
        raise RecipeError(
            f"arm {name} takes {count} layers by itself, and graft.layer is {list(layer)}",
            "give graft.layer the last of them, or choose arm llm with these layers",
        )
    first = layer - count + 1
    if layer >= 0 > first:
        raise RecipeError(
            f"arm {name} needs {count - 1} layer before graft.layer, and before layer {layer} there is none",
            f"give graft.layer {count - 1} or a later one",
        )
    return tuple(range(first, layer + 1))


def _pretrained(block: FrozenBlock, seed: int) -> FrozenBlock:
    return block


ARMS: dict[str, Arm] = {
    "plain": Arm(
        question="How good is the encoder by itself?",
        keeps="Nothing: no block and no mappers.",
        destroys="All of it.",
        block=None,
        noun="the encoder alone",
        color="#5b6b7f",
    ),
    "llm": Arm(
        question="How good is it with the frozen LLM block?",
        keeps="All of it, bit for bit.",
        destroys="Nothing.",
        block=_pretrained,
        noun="the frozen LLM block",
        color="#c2571a",
    ),
    "random_frozen": Arm(
        question="Would any frozen block do, without pretrained weights?",
        keeps="The wiring, each matrix's Frobenius norm, each gain's root mean square.",
        destroys="Everything learnt: matrices are Gaussian, gains constant, biases zero.",
        block=random_frozen,
        train_block="none",
        noun="a frozen random block",
        color="#2f7d6b",
        better="The language matters",
        unclear="whether the language matters",
        explained="a frozen random block",
    ),
    "shuffled": Arm(
        question="Would the same weights in random places do?",
        keeps="The entries of each matrix, outliers included; gains and biases.",
        destroys="Which entry stands where: singular values, directions, rows and columns that stand out.",
        block=shuffled,
        train_block="none",
        noun="the LLM block's weights in random places",
        color="#18a6f2",
        better="The places of the pretrained weights matter",
        unclear="whether the places of the pretrained weights matter",
        explained="a block of the same weights in random places",
    ),
    "spectrum": Arm(
        question="Would random matrices with the same singular values do?",
        keeps="The singular values of each matrix; gains and biases.",
        destroys="The directions that they belong to, and how entries are distributed.",
        block=spectrum,
        train_block="none",
        noun="random matrices with the LLM block's singular values",
        color="#0b3c5d",
        better="More than the singular values of the pretrained weights matters",
        unclear="whether more than the singular values of the pretrained weights matters",
        explained="random matrices with the same singular values",
    ),
    "random_trained": Arm(
        question="Would a block that is random at first and trained do?",
        keeps="The wiring.",
        destroys="Everything learnt: drawn as before any training, and then trained.",
        block=random_trained,
        train_block="none",
        noun="a trained block, random at first",
        color="#7fb2a3",
        better="The pretrained block does more than a trained one of its size",
        unclear="whether the pretrained block does more than a trained one of its size",
        explained="a trained block of the same size",
    ),
    "llm_finetuned": Arm(
        question="Is it better to train the LLM block too?",
        keeps="All of it, as the start of training.",
        destroys="Nothing at first; training may change every tensor.",
        block=_pretrained,
        train_block="all",
        noun="the LLM block trained too",
        color="#7a3510",
    ),
    "llm_lora": Arm(
        question="Is it better to adapt the LLM block at low rank?",
        keeps="All of it, frozen.",
        destroys="Nothing; training adds a matrix of low rank to each projection.",
        block=_pretrained,
        train_block="lora",
        noun="the LLM block adapted at low rank",
        color="#e39a6a",
    ),
    "attention_only": Arm(
        question="Would the block's attention alone do?",
        keeps="Attention, its norms and the residual stream.",
        destroys="The MLP: it is left out.",
        block=attention_only,
        train_block="none",
        noun="the block's attention alone",
        color="#d9a404",
        better="The whole block does more than its attention",
        unclear="whether the whole block does more than its attention",
        explained="the block's attention",
    ),
    "mlp_only": Arm(
        question="Would the block's MLP alone do?",
        keeps="The MLP, its norms and the residual stream.",
        destroys="Attention: it is left out, and with it all mixing of tokens.",
        block=mlp_only,
        train_block="none",
        noun="the block's feed-forward part alone",
        color="#5a1e18",
        better="The whole block does more than its feed-forward part",
        unclear="whether the whole block does more than its feed-forward part",
        explained="the block's feed-forward part",
    ),
    "random_attention_only": Arm(
        question="Would the attention of a random block alone do?",
        keeps="The wiring of attention, each matrix's Frobenius norm, each gain's root mean square.",
        destroys="Everything learnt, and the MLP: it is random_frozen's attention.",
        block=random_attention_only,
        train_block="none",
        noun="a random block's attention alone",
        color="#2323eb",
        better="The block does more than random attention",
        unclear="whether the block does more than random attention",
        explained="random attention",
    ),
    "random_mlp_only": Arm(
        question="Would the MLP of a random block alone do?",
        keeps="The wiring of the MLP, each matrix's Frobenius norm, each gain's root mean square.",
        destroys="Everything learnt, and attention: it is random_frozen's MLP.",
        block=random_mlp_only,
        train_block="none",
        noun="a random block's feed-forward part alone",
        color="#5f19a6",
        better="The block does more than a random feed-forward part",
        unclear="whether the block does more than a random feed-forward part",
        explained="a random feed-forward part",
    ),
    "two_blocks": Arm(
        question="Are two consecutive LLM blocks better than one?",
        keeps="All of the recipe's layer, and the layer before it.",
        destroys="Nothing.",
        block=_pretrained,
        layers=2,
        noun="two LLM blocks",
        color="#be7f65",
    ),
    "mlp": Arm(
        question="Would GELU and LayerNorm between the mappers do?",
        keeps="Its width.",
        destroys="The rest: between the mappers are GELU and a trained LayerNorm.",
        block=mlp,
        train_block="none",
        noun="GELU and LayerNorm between the mappers",
        color="#6a4c93",
        better="The block does more than the extra trained layers",
        unclear="whether the block does more than the extra trained layers",
        explained="the extra trained layers",
    ),
    "linear": Arm(
        question="Would the two mappers alone do?",
        keeps="Its width.",
        destroys="The rest: nothing is between the mappers.",
        block=linear,
        train_block="none",
        noun="the two mappers alone",
        color="#a89bc4",
        better="The block does more than the two mappers",
        unclear="whether the block does more than the two mappers",
        explained="the two mappers",
    ),
    "plain_equal_flops": Arm(
        question="Would an encoder that is larger by the graft's floating-point operations do?",
        keeps="What its training step costs, in floating-point operations.",
        destroys="All of it: no block and no mappers, but a deeper encoder.",
        block=None,
        equal_flops="llm",
        noun="the encoder alone at the same compute",
        color="#1f2933",
        better="The block does more than the same compute spent on the encoder",
        unclear="whether the block does more than the same compute spent on the encoder",
        explained="the compute",
    ),
}
