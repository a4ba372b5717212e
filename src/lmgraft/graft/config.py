"""Every choice made when grafting, as plain data: a recipe's `graft:` group and a saved graft's record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lmgraft.block import FrozenBlock
from lmgraft.block.block import without_defaults
from lmgraft.block.config import FinalNorm, Order
from lmgraft.block.load import layer_indices, storage
from lmgraft.block.trained import TrainBlock, check_training
from lmgraft.contracts import MeanOf, Reads, Tokens, count_tokens
from lmgraft.errors import HostError
from lmgraft.graft.budget import Rule

Residual = Literal["none", "out", "in", "gated"]
Form = Literal["auto", "dense", "reads", "folded", "absorbed"]
MapperInit = Literal["trunc_normal", "default"]
Precision = Literal["host", "bfloat16"]
_LATER = {"budget": None, "budget_rule": "every", "precision": "host"}


@dataclass(frozen=True, kw_only=True)
class GraftConfig:
    """Which block goes where, and how it is wired.

    Raises:
        HostError: If a value is none of those listed.
        BlockError: If one of `layer`, `train_block` and `lora_*` is not.
    """

    llm: str = "smollm2-135m"
    """Source of the block: a known name, a Hub repository, a file, a folder or a pypi:// source."""
    layer: int | tuple[int, ...] = -1
    """Layer index, negative from the end; several consecutive ones make a stack."""
    at: str | int = "tail"
    """tail, middle, head, the index of an encoder layer to follow, or a dotted module path."""
    reads: int | str | tuple[int, ...] | None = None
    """Tokens read after the graft: an index, several, a slice as text ("1:", "0:8:2"), or "mean 1:"
    where only the mean over those is read. By default the host's head is asked at each call."""
    residual: Residual = "none"
    """none (as published): f(x); out: x + f(x); in: W2(block(W1 x) + W1 x); gated: x + g f(x), g from 0."""
    form: Form = "auto"
    """How it is computed; every form gives the same numbers.

    auto      the quickest by counted multiply-adds and bytes, chosen at each call
    dense     the whole block on every token, as published: the reference
    reads     keys and values of every token, the rest for read tokens only
    folded    keys and values by folded matrices, never D wide
    absorbed  keys or values, where exact both, not formed at all
    """
    read_token: bool = False
    """A learnable token that alone is read from the block; every token gets its output."""
    budget: int | None = None
    """Where more tokens than this are read, compute the block's queries, MLP and W2 for so many only, class and
    register tokens among them; each other token gets the output of the computed one most like it. None: no bound."""
    budget_rule: Rule = "every"
    """Which tokens are computed within the budget.

    every      evenly spaced ones
    mean       means: each of all tokens most like one of these
    norm       those of largest norm before the block
    attention  those that got the most attention in the encoder layer before the block
    """
    precision: Precision = "host"
    """What mappers and block are computed in, in training too: as the host, or bfloat16 by autocast, in which norms and
    Gram matrices stay float32."""
    mapper_init: MapperInit | None = None
    """Initialisation of W1 and W2; by default the host's own convention."""
    final_norm: FinalNorm = "unit"
    """The LLM's final norm after the block: unit gain (as published), pretrained gain, or none."""
    train_block: TrainBlock = "none"
    """What of the block is trained.

    none      nothing: frozen, as published
    all       every tensor of it: fine-tuning
    norms     the gains and shifts of its norms
    lora      a low-rank addition to each projection; the block itself stays frozen
    """
    lora_rank: int = 8
    """Rank of what LoRA adds."""
    lora_alpha: float = 16.0
    """The addition is multiplied by lora_alpha / lora_rank."""
    lora_targets: tuple[str, ...] | None = None
    """Projections that LoRA adds to, of q, k, v, o, gate, up, down; by default all that the block has."""
    dtype: str | None = None
    """Storage of the frozen weights; by default the file's own, float32 if quantised."""
    revision: str | None = None
    """Revision of a Hub source."""
    tower: str | None = None
    """Which layers of a model that holds several towers ("encoder", "vision"); by default the language model's."""
    order: Order = "none"
    """"causal" runs a layer that is recurrent by nature in the order of its tokens; any other is refused."""

    def __post_init__(self) -> None:
        choices = {
            "residual": Residual,
            "form": Form,
            "budget_rule": Rule,
            "precision": Precision,
            "final_norm": FinalNorm,
            "order": Order,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in get_args(allowed):
                raise HostError(
                    f"{name}={getattr(self, name)!r} is not known", f"one of {', '.join(get_args(allowed))}"
                )
        if self.mapper_init not in (None, *get_args(MapperInit)):
            raise HostError(
                f"mapper_init={self.mapper_init!r} is not known", f"one of {', '.join(get_args(MapperInit))}"
            )
        layer_indices(self.layer)
        check_training(self.train_block, self.lora_rank, self.lora_alpha, self.lora_targets)
        self._check_budget(parse_reads(self.reads))

    def _check_budget(self, reads: Reads) -> None:
        if self.budget is None:
            return
        if self.budget < 1:
            raise HostError(f"budget={self.budget} computes no token", "give how many, or leave it out")
        if self.read_token:
            raise HostError(f"budget={self.budget} with a read token, which alone is computed", "leave one of them out")
        if isinstance(reads, int | tuple):
            raise HostError(f"budget={self.budget} with reads={reads}", "named tokens are all computed: leave one out")

    def describing(self, block: FrozenBlock) -> GraftConfig:
        """These choices with source, layers, final norm and storage of `block`, whatever they named before."""
        origin = block.provenance
        return replace(
            self,
            llm=origin.source,
            layer=origin.layers[0] if len(origin.layers) == 1 else origin.layers,
            final_norm=origin.final_norm,
            dtype=storage(block),
            revision=None,
            tower=origin.tower,
            order=origin.order,
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON types: tuples become lists. Without what came later, where it was not asked for."""
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return without_defaults({k: v for k, v in values.items() if (k, v) not in _LATER.items()})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GraftConfig:
        """The inverse of `to_dict`.

        Raises:
            HostError: If a field or a value is not known to this version.
        """
        unknown = sorted(set(values) - set(cls.__dataclass_fields__))
        if unknown:
            raise HostError(f"unknown graft options: {', '.join(unknown)}", "update lmgraft")
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**fields)


def parse_reads(value: int | str | tuple[int, ...] | None) -> Reads:
    """What `GraftConfig.reads` means.

    Raises:
        HostError: If text is no slice.
    """
    if not isinstance(value, str):
        return value
    mean, parts = value.startswith("mean "), value.removeprefix("mean ").split(":")
    try:
        if not 2 <= len(parts) <= 3:
            raise ValueError
        tokens = slice(*(int(part) if part.strip() else None for part in parts))
        if tokens.step is not None and tokens.step < 1:
            raise ValueError
        return MeanOf(tokens) if mean else tokens
    except ValueError:
        raise HostError(f"reads={value!r} is no slice", "write it as in Python: '1:', ':4', '0:8:2'") from None


def check_reads(reads: Reads, tokens: int) -> None:
    """Refuse reads that name no token, or one that is not there; tensors are left to the call that has them.

    Raises:
        HostError: If so, of `tokens` tokens.
    """
    named = reads.tokens if isinstance(reads, MeanOf) else reads
    if named is None or isinstance(named, Tensor):
        return
    indices = () if isinstance(named, slice) else (named,) if isinstance(named, int) else named
    if not count_tokens(tokens, named) or any(not -tokens <= index < tokens for index in indices):
        raise HostError(
            f"reads={plain_reads(reads)!r} of {tokens} tokens: that is none, or one that is not there",
            f"tokens count from 0 to {tokens - 1}, or from -1, the last, to -{tokens}",
        )


def plain_reads(reads: Reads) -> int | str | tuple[int, ...] | None:
    """`reads` as `GraftConfig` records it; the inverse of `parse_reads`.

    Raises:
        HostError: If `reads` names other tokens for each sample: those are given at the call.
    """
    if isinstance(reads, MeanOf):
        return f"mean {_slice_text(slice(None) if reads.tokens is None else reads.tokens)}"
    if isinstance(reads, slice):
        return _slice_text(reads)
    if not isinstance(reads, Tensor):
        return reads
    if reads.dim() != 1 or reads.is_floating_point() or reads.dtype == torch.bool:
        raise HostError(
            f"reads is a {reads.dtype} tensor of shape {tuple(reads.shape)}",
            "graft() takes indices (R,); tokens that differ by sample go into `with lmgraft.reading(model, indices):`",
        )
    return tuple(reads.tolist())


def _slice_text(tokens: Tokens) -> str:
    if not isinstance(tokens, slice):
        raise HostError(f"the mean of {tokens!r} is read", "give a slice: MeanOf(slice(1, None))")
    parts = [tokens.start, tokens.stop, *([] if tokens.step is None else [tokens.step])]
    return ":".join("" if part is None else str(part) for part in parts)
