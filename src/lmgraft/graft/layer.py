"""The graft itself: tokens -> W1 -> frozen block -> W2 -> tokens (paper, Section 3).

Knows the block and the width of the host's tokens, not the host. Which form computes it is
decided in `forms`; every form gives the numbers of the dense one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lmgraft.block import FrozenBlock
from lmgraft.block.frozen import thawed
from lmgraft.contracts import Host, MeanOf, Reads, count_tokens, is_traced, take_reads
from lmgraft.errors import BlockError, HostError
from lmgraft.graft.budget import Budgeted, exceeds, within
from lmgraft.graft.config import GraftConfig, check_reads
from lmgraft.graft.forms.compute import Compute
from lmgraft.graft.forms.plan import layer_problems
from lmgraft.graft.forms.problem import LayerPlan, Problem
from lmgraft.graft.forms.run import is_watched
from lmgraft.graft.packing import packed
from lmgraft.graft.reads import ReadState
from lmgraft.graft.trained import prepared

NAME = "graft"
"""Attribute of the host under which its first graft lies, and prefix of its tensors in `state_dict()`. Further
ones are called graft_2, graft_3, ..."""


class ThawedBlockWarning(UserWarning):
    """A block that was to be frozen is being trained."""


class GraftLayer(nn.Module):
    """W2 · block(W1 x), with the residual that the config asks for.

    Trained: `mapper_in.weight` (D, V), `mapper_out.weight` (V, D), `gate` when gated, and
    `read_token` (V,) where the config asks for one. Frozen: everything in `block`, unless
    `train_block` says otherwise: then `block` is a copy of the one that was given.

    Raises:
        BlockError: If the block is trained in another way than the config asks for.
    """

    def __init__(
        self,
        block: FrozenBlock,
        host: Host,
        config: GraftConfig,
        host_spec: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.host = host
        self.host_spec = dict(host_spec) if host_spec else None
        self.mapper_in = nn.Linear(host.embed_dim, block.config.dim, bias=False)
        self.block = block
        self.mapper_out = nn.Linear(block.config.dim, host.embed_dim, bias=False)
        if (config.mapper_init or host.mapper_init) == "trunc_normal":
            nn.init.trunc_normal_(self.mapper_in.weight, std=0.02)
            nn.init.trunc_normal_(self.mapper_out.weight, std=0.02)
        self.gate = nn.Parameter(torch.zeros(())) if config.residual == "gated" else None
        self.read_token = nn.Parameter(torch.empty(host.embed_dim)) if config.read_token else None
        if self.read_token is not None:
            nn.init.trunc_normal_(self.read_token, std=0.02)
        # Last, since LoRA draws: whatever of the block is trained, the mappers start alike.
        self.block, self.config = prepared(block, config)
        if block.opaque and config.form not in ("auto", "dense"):
            raise BlockError(
                f"form={config.form!r}: this block's layers are not computed by lmgraft's code",
                "leave form out: such a block has the dense form only",
            )
        if block.opaque and config.budget is not None:
            raise BlockError(
                f"budget={config.budget}: this block's layers are not computed by lmgraft's code, but for every token",
                "leave budget out: it would save nothing",
            )
        self.read_state = ReadState()
        self.compute = Compute(block.config, len(block.layers), host.embed_dim)

    def forward(
        self,
        x: Tensor,
        key_padding_mask: Tensor | None = None,
        *,
        reads: Reads = None,
        received: Tensor | None = None,
    ) -> Tensor:
        """(B, T, V) -> (B, T, V), or (B, R, V) for `reads`; the dtype of `x` is kept.

        With a read token, the block is computed for that token alone, and every token gets its output.
        Where only a mean is read, every token gets the mean: (B, T, V). Where more tokens are read than a
        budget allows, each gets the output of the one that stands for it, see `budget.py`.

        Args:
            received: (B, T), the attention that each token got in the layer before, for that rule of a budget.
        """
        if x.is_meta:  # for shapes alone: the graft has values, so it lies elsewhere
            read = take_reads(x, reads)
            return read.expand_as(x) if isinstance(reads, MeanOf) else read
        if not is_traced():
            check_reads(reads, x.shape[1])
        if self.training and not torch.compiler.is_compiling() and self.compute.trains(self.block):
            self._warn_of_thawing()
        chosen = self._chosen(x, key_padding_mask, reads, received)
        whole = self.config.form == "dense" or self.read_token is not None or chosen is not None
        if isinstance(reads, MeanOf) and whole:
            reads = None
        residual = self.config.residual
        with self._precision(x):
            if chosen is not None:
                y, h = self.compute(self, chosen.x, chosen.mask, chosen.reads)
            elif self.read_token is not None:
                y, h = self.compute(self, *with_token(x, key_padding_mask, self.read_token), -1)
            elif key_padding_mask is not None and reads is None and self._may_pack():
                y, h = packed(partial(self.compute, self), x, key_padding_mask)
            else:
                y, h = self.compute(self, x, key_padding_mask, reads)
            out: Tensor = self.mapper_out(y + h if residual == "in" else y).to(x.dtype)
        if chosen is not None:
            out = chosen.spread(out, reads)
        if self.read_token is not None:
            out = out.expand(-1, count_tokens(x.shape[1], reads), -1)
        if self.gate is not None:
            out = self.gate * out
        if residual in ("out", "gated"):
            out = take_reads(x, reads) + out
        return out.expand(-1, x.shape[1], -1) if isinstance(reads, MeanOf) else out

    def _chosen(self, x: Tensor, mask: Tensor | None, reads: Reads, received: Tensor | None) -> Budgeted | None:
        """What the budget leaves of the tokens that are to be computed; None where it is no bound."""
        budget, prefix = self.config.budget, self.host.layout.num_prefix_tokens
        if budget is None or not exceeds(x, reads, budget):
            return None
        return within(x, mask, budget, self.config.budget_rule, prefix, received)

    def _may_pack(self) -> bool:
        """Whether it is trained, by code that knows masks of pairs, and nobody's hook would see rows for samples."""
        return self.training and not self.block.opaque and not is_watched(self.modules())

    def _precision(self, x: Tensor) -> AbstractContextManager[Any]:
        if self.config.precision == "bfloat16":
            return torch.autocast(x.device.type, torch.bfloat16)
        return nullcontext()

    def _warn_of_thawing(self) -> None:
        if thawed(self.block):
            warnings.warn(
                "the LLM block is trained too: requires_grad_(True) of the whole model unfroze it. Freeze it again "
                "(model.graft.block.requires_grad_(False)), or say that it is meant "
                "(graft(..., train_block='all'), or requires_grad_(True) of the block)",
                ThawedBlockWarning,
                stacklevel=2,
            )

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        metadata = getattr(destination, "_metadata", {}).get(prefix[:-1])
        if metadata is not None:
            metadata["block_digest"] = self.block.provenance.digest

    def plan(self, x: Tensor, reads: Reads = None) -> tuple[LayerPlan, ...]:
        """How each layer of the block would be computed for this input, as things stand now."""
        return self.compute.plan(self, x, self._within_budget(x, reads))

    def problems(self, x: Tensor, reads: Reads = None) -> list[Problem]:
        """The block's layers as the planner sees them for this input, as things stand now."""
        whole = self.compute.problem(self, x, self._within_budget(x, reads))
        return layer_problems(whole, len(self.block.layers))

    def _within_budget(self, x: Tensor, reads: Reads) -> Reads:
        """`reads`, or as many tokens as the budget allows."""
        budget = self.config.budget
        return slice(-budget, None) if budget is not None and exceeds(x, reads, budget) else reads

    def place(self, at: str | int | None = None) -> tuple[str, str]:
        """Where the graft lies, or a graft at `at` would: the module's path in its host, and "before" or "after"."""
        at = self.config.at if at is None else at
        point = self.host.point(at)
        return (str(at), "after") if point is None else (point.module, point.when)

    def train(self, mode: bool = True) -> GraftLayer:
        if mode != self.training:
            self.compute.clear()
        super().train(mode)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Any:
        """Go where `fn` goes and take its dtype, but keep every value: no state dict could bring the block's back.

        So `to_empty` empties the host alone, and the meta device, which holds no values, gets none.
        """

        def keep(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return tensor if moved.is_meta else tensor.to(device=moved.device, dtype=moved.dtype)

        self.compute.clear()
        return super()._apply(keep, *args, **kwargs)  # type: ignore[no-untyped-call]

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, strict: bool, missing: Any, unknown: Any, errors: Any
    ) -> None:
        self.compute.clear()
        self.compute.approximation.clear()
        theirs, ours = local_metadata.get("block_digest"), self.block.provenance.digest
        if theirs not in (None, ours):
            errors.append(
                f"the weights of {prefix[:-1]} were trained around another block (digest {theirs[:12]}, this one "
                f"{ours[:12]}): graft the block that they belong to"
            )
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unknown, errors)


def with_token(x: Tensor, mask: Tensor | None, token: Tensor) -> tuple[Tensor, Tensor | None]:
    """Tokens and padding mask with one more token, which is never padded, behind them."""
    x = torch.cat([x, token.to(x.dtype).expand(x.shape[0], 1, -1)], dim=1)
    return x, None if mask is None else torch.cat([mask, mask.new_zeros(mask.shape[0], 1)], dim=1)


@contextmanager
def baked(model: nn.Module) -> Iterator[None]:
    """Inside, folds are constants: for exporting or compiling a model whose weights stay as they are.

    Weights must not change inside. Where gradients are wanted of W1 or of the block, folds are made
    in every call as always: freeze W1 or use `torch.no_grad()`.
    """
    grafts = list(find_grafts(model).values())
    for inserted in grafts:
        inserted.compute.bake(inserted)
    try:
        yield
    finally:
        for inserted in grafts:
            inserted.compute.baked = None


def find_grafts(model: nn.Module, at: str | int | None = None) -> dict[str, GraftLayer]:
    """The grafts of `model` and of the models inside it, by path as in `named_modules()`, first inserted first.

    Args:
        model: Grafted or not.
        at: Only those at this place: as it was given to `graft`, another name of the same place, the path of
            a module inside `model`, or the path of the graft itself.
    """
    grafts = {path: module for path, module in model.named_modules() if isinstance(module, GraftLayer)}
    return {path: inserted for path, inserted in grafts.items() if at is None or _lies_at(path, inserted, at)}


def find_graft(model: nn.Module, at: str | int | None = None) -> GraftLayer | None:
    """The first of `find_grafts`; None where there is none."""
    return next(iter(find_grafts(model, at).values()), None)


def require_grafts(model: nn.Module, at: str | int | None = None) -> dict[str, GraftLayer]:
    """As `find_grafts`.

    Raises:
        HostError: If there is none.
    """
    grafts = find_grafts(model, at)
    if not grafts:
        where = "" if at is None else f" at {at!r}"
        raise HostError(f"this model has no {NAME!r}: it is not grafted{where}", "call lmgraft.graft(model, ...) first")
    return grafts


def _lies_at(path: str, inserted: GraftLayer, at: str | int) -> bool:
    host = path.rpartition(".")[0]
    place = inserted.place()
    return at in (path, f"{host}.{place[0]}") or inserted.place(at) == place
