"""What each kind of arm is called in a verdict, and what the LLM block's being better than it, or equal, would say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Words:
    """Of one kind of arm."""

    noun: str
    """After "with"."""
    better: str = ""
    """A sentence's beginning where the LLM block is better than this control; "" where none is drawn from it."""
    question: str = ""
    """What is then neither shown nor excluded."""
    explained: str = ""
    """After "explained by", where the two are equivalent."""


WORDS: dict[str, Words] = {
    "plain": Words(noun="the encoder alone"),
    "llm": Words(noun="the frozen LLM block"),
    "random_frozen": Words(
        noun="a frozen random block",
        better="The language matters",
        question="whether the language matters",
        explained="a frozen random block",
    ),
    "shuffled": Words(
        noun="the LLM block's weights in random places",
        better="The places of the pretrained weights matter",
        question="whether the places of the pretrained weights matter",
        explained="a block of the same weights in random places",
    ),
    "spectrum": Words(
        noun="random matrices with the LLM block's singular values",
        better="More than the singular values of the pretrained weights matters",
        question="whether more than the singular values of the pretrained weights matters",
        explained="random matrices with the same singular values",
    ),
    "random_trained": Words(
        noun="a trained block, random at first",
        better="The pretrained block does more than a trained one of its size",
        question="whether the pretrained block does more than a trained one of its size",
        explained="a trained block of the same size",
    ),
    "mlp": Words(
        noun="GELU and LayerNorm between the mappers",
        better="The block does more than the extra trained layers",
        question="whether the block does more than the extra trained layers",
        explained="the extra trained layers",
    ),
    "linear": Words(
        noun="the two mappers alone",
        better="The block does more than the two mappers",
        question="whether the block does more than the two mappers",
        explained="the two mappers",
    ),
    "attention_only": Words(
        noun="the block's attention alone",
        better="The whole block does more than its attention",
        question="whether the whole block does more than its attention",
        explained="the block's attention",
    ),
    "mlp_only": Words(
        noun="the block's feed-forward part alone",
        better="The whole block does more than its feed-forward part",
        question="whether the whole block does more than its feed-forward part",
        explained="the block's feed-forward part",
    ),
    "plain_equal_flops": Words(
        noun="the encoder alone at the same compute",
        better="The block does more than the same compute spent on the encoder",
        question="whether the block does more than the same compute spent on the encoder",
        explained="the compute",
    ),
    "llm_finetuned": Words(noun="the LLM block trained too"),
    "llm_lora": Words(noun="the LLM block adapted at low rank"),
    "two_blocks": Words(noun="two LLM blocks"),
}


def words_of(kind: str) -> Words:
    """Those of a kind of arm; one that is not in the table is called by its name."""
    return WORDS.get(kind, Words(noun=kind))


def block_name(block: Mapping[str, Any]) -> str:
    """Where a block comes from, which layers of how many, and how it was changed."""
    layers = list(block.get("layers") or ())
    name = str(block.get("source", "?"))
    if layers:
        whole = f" of {block['num_layers']}" if block.get("num_layers") else ""
        name += f", layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}{whole}"
    control = block.get("control")
    kind = control.get("kind") if isinstance(control, Mapping) else control
    return name + (f", {kind}" if kind else "")
