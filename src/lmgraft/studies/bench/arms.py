"""One arm of a cell: a model with its optimiser and its batch, and the step that is timed.

A training step is zero_grad, forward, the encoder's own loss, backward and AdamW's step, the same in
every arm. An evaluation step is a forward in inference mode. Arms of a cell share the host's initial
weights, the batch and the frozen block.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from lmgraft.block import FrozenBlock
from lmgraft.graft import find_graft, graft
from lmgraft.graft.config import Form
from lmgraft.studies.bench.cells import PLAIN, Cell
from lmgraft.studies.bench.hosts import Draw, build
from lmgraft.studies.bench.observe import observed


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A model and its step."""

    model: nn.Module
    """The model itself; what is timed may be compiled from it."""
    draw: Draw
    step: Callable[[], None]


def make_arm(cell: Cell, form: str, block: FrozenBlock | None) -> Arm:
    """The arm of `cell` in `form`.

    Args:
        cell: What is measured.
        form: "plain", or a value of `GraftConfig.form`.
        block: The frozen block; unused by "plain".
    """
    host = build(cell.host, device=cell.device)
    if form != PLAIN:
        assert block is not None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            kind: Form = form  # type: ignore[assignment]
            graft(host.model, block, form=kind, **host.graft)
    return Arm(model=host.model, draw=host.draw, step=make_step(host.model, host.draw, cell))


def make_step(model: nn.Module, draw: Draw, cell: Cell) -> Callable[[], None]:
    """The step of `cell` on `model`, with a batch of its own."""
    inputs, loss_of = draw(cell.batch, cell.device)
    called = torch.compile(model) if cell.compiled else model

    def autocast() -> AbstractContextManager[object]:
        kind = torch.device(cell.device).type
        return torch.autocast(kind, torch.bfloat16) if cell.dtype == "bfloat16" else nullcontext()

    if cell.phase == "eval":
        model.eval()

        def evaluate() -> None:
            with torch.inference_mode(), autocast():
                called(*inputs)

        return evaluate
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def train() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast():
            loss = loss_of(called(*inputs))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return train


def chosen_plan(arm: Arm, cell: Cell) -> str:
    """How the graft of `arm` computes its block in this cell, in words; runs one step."""
    inserted = find_graft(arm.model)
    if inserted is None:
        return ""
    if inserted.config.form == "dense":
        return "dense"
    if cell.compiled:
        return "made when compiled, for 32 samples of 197 tokens"
    with observed(inserted) as calls:
        arm.step()
    return "; ".join(map(str, calls[-1].plans))
