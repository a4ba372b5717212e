"""For one model: which form its graft takes, and why; counted beside measured.

The planner's problem is taken from a real call of the graft, so that batch, reads, gradients and
cached folds are those of the model as it stands. Then every plan of interest is timed on that
call's own tokens, in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lmgraft.contracts import MeanOf
from lmgraft.errors import HostError, LmgraftError
from lmgraft.graft import GraftLayer, find_graft, load_pretrained, ungraft
from lmgraft.graft.budget import exceeds
from lmgraft.graft.forms.cost import operations, seconds
from lmgraft.graft.forms.plan import exact_plans
from lmgraft.graft.forms.problem import LayerPlan, Problem
from lmgraft.studies.bench.arms import Arm, make_arm, make_step
from lmgraft.studies.bench.blocks import make_block
from lmgraft.studies.bench.cells import PLAIN, Cell
from lmgraft.studies.bench.hosts import Draw, facts, image_draw
from lmgraft.studies.bench.measure import Spread, interleave, spread
from lmgraft.studies.bench.memory import SHARE, block_config, estimate, total_memory
from lmgraft.studies.bench.observe import Call, following, observed

_BEST = 6
_TOO_LONG = 20.0  # expected seconds above which a plan that is not chosen is not timed


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way to compute a layer, the chosen one or another."""

    name: str
    plan: LayerPlan | None
    """None for the dense form."""
    multiply_adds: int
    """Of the layer in one step, forward and backward."""
    bytes_moved: int
    expected: float
    """Seconds of the layer."""
    measured: Spread | None
    """Seconds of the whole graft, mappers included; None where it would have taken too long."""
    is_chosen: bool


@dataclass(frozen=True, kw_only=True)
class LayerExplained:
    """One layer of the block: what the planner was asked, and its answers, best first."""

    problem: Problem
    candidates: list[Candidate]

    def chosen(self) -> Candidate:
        return next(one for one in self.candidates if one.is_chosen)


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """All that is shown of one model."""

    cell: Cell
    form: str
    """Of the graft's config: "auto" leaves the choice to the planner."""
    budget: str
    """How many tokens are computed and by which rule, in words; empty where no budget bounds this call."""
    host_width: int
    layers: list[LayerExplained]
    why_not: str
    """Where the planner was not asked, why; then `layers` is empty."""
    host_multiply_adds: int
    """Counted, of one sample's forward through the host without the graft."""
    graft_multiply_adds: int
    """Counted, of one sample's share of the graft's forward, W1, W2 and folds that have to be made included."""


def explain_cell(cell: Cell, *, rounds: int = 5, seconds: float = 30.0) -> Explanation:
    """Explain the form that the planner's arm of `cell` takes.

    Raises:
        LmgraftError: If encoder or block are not known.
    """
    form = next(form for form in cell.forms if form != PLAIN)
    needed = estimate(cell, facts(cell.host), block_config(cell.block))[form]
    allowed = int(SHARE * total_memory(cell.device))
    if needed > allowed:
        raise LmgraftError(
            f"{cell} would need about {needed / 2**30:.1f} GiB; {allowed / 2**30:.1f} GiB are allowed, "
            f"{100 * SHARE:.0f} % of memory",
            "give a smaller --batch, --block or --storage bfloat16",
        )
    return _explain(make_arm(cell, form, make_block(cell.block, cell.storage, cell.device)), cell, rounds, seconds)


def explain_folder(folder: Path, cell: Cell, *, rounds: int = 5, seconds: float = 30.0) -> Explanation:
    """Explain the graft of a saved model or of a run; batch, phase and dtype are those of `cell`.

    Raises:
        LmgraftError: If the folder holds no grafted model, or one whose inputs are not known.
    """
    model, called, draw = load_folder(folder)
    inserted = find_graft(model)
    if inserted is None:
        raise HostError(f"the model in {folder} has no graft", "give one with a block: arm llm of a run, for instance")
    cell = replace(cell, host=type(model).__qualname__, block=inserted.block.provenance.source)
    return _explain(Arm(model=model, draw=draw, step=make_step(called, draw, cell)), cell, rounds, seconds)


def load_folder(folder: Path) -> tuple[nn.Module, nn.Module, Draw]:
    """The model that `save_pretrained` or a run left in `folder`; what calls it in a step; and what it is fed.

    Of a run that is its task, with its own loss; of a model alone, images that it says itself it takes.
    """
    if not (folder / "config.yaml").is_file():
        model = load_pretrained(folder)
        return model, model, image_draw(model)
    from lmgraft.recipes import load_trained
    from lmgraft.studies.bench.recipe_hosts import draw_items

    recipe, model = load_trained(folder)
    task = recipe.task(model)
    return model, task, draw_items(task, recipe.data.example)


def _explain(arm: Arm, cell: Cell, rounds: int, seconds: float) -> Explanation:
    inserted = find_graft(arm.model)
    if inserted is None:
        raise LmgraftError("this model has no graft", "call lmgraft.graft(model, ...) first")
    with observed(inserted) as calls:
        arm.step()
    if not calls:
        raise LmgraftError("the graft was not called", "the model's forward does not pass its place")
    call = calls[-1]
    graft_step = _graft_step(inserted, call, cell)
    asked = inserted.config.form != "dense"
    layers = _layers(inserted, call, cell, graft_step, rounds, seconds) if asked else []
    graft_counted = _count_graft(inserted, call)
    host_counted = _count_host(arm, cell)
    return Explanation(
        cell=cell,
        form=inserted.config.form,
        budget=_budget(inserted, call),
        host_width=inserted.host.embed_dim,
        layers=layers,
        why_not="" if layers else _why_not(inserted),
        host_multiply_adds=host_counted,
        graft_multiply_adds=graft_counted // cell.batch,
    )


def _budget(inserted: GraftLayer, call: Call) -> str:
    config = inserted.config
    return (
        f"{config.budget} tokens, by the rule {config.budget_rule}"
        if exceeds(call.x, call.reads, config.budget)
        else ""
    )


def _why_not(inserted: GraftLayer) -> str:
    if inserted.config.form == "dense":
        return "form='dense' was asked for: the whole block on every token"
    if inserted.block.tokenwise:
        return "nothing in this block mixes tokens: it is computed as it is, on the tokens that are read and no others"
    if inserted.block.opaque:
        return "the block's layers are not computed by lmgraft's code: the dense form is the only one"
    return "W1 is not a plain linear layer, or a module inside the block has hooks: the readable form is taken"


def _graft_step(inserted: GraftLayer, call: Call, cell: Cell) -> Callable[[], None]:
    """Forward of the graft alone on the tokens of `call`, and backward when training."""
    train = cell.phase == "train"
    x = call.x.detach().clone().requires_grad_(train and call.x.requires_grad)
    kind = torch.device(cell.device).type

    def run() -> None:
        with ExitStack() as stack:
            if cell.dtype == "bfloat16":
                stack.enter_context(torch.autocast(kind, torch.bfloat16))
            stack.enter_context(torch.inference_mode(not train))
            out: Tensor = inserted(x, call.mask, reads=call.reads, received=call.received)
        if train:
            out.backward(torch.ones_like(out))  # type: ignore[no-untyped-call]
            for tensor in (x, *inserted.parameters()):
                tensor.grad = None

    return run


def _layers(
    inserted: GraftLayer, call: Call, cell: Cell, step: Callable[[], None], rounds: int, budget: float
) -> list[LayerExplained]:
    explained = []
    for index, problem in enumerate(call.problems):
        plans = _of_interest(problem, call.plans[index])
        steps: dict[str, Callable[[], None]] = {}
        for name, plan in plans.items():
            if plan == call.plans[index] or seconds(*_costed(plan, problem)) <= _TOO_LONG:
                whole = None if plan is None else (*call.plans[:index], plan, *call.plans[index + 1 :])
                steps[name] = _following(inserted, whole, step)
        times = interleave(steps, rounds=rounds, seconds=budget, warmup=1, device=cell.device)
        candidates = [_candidate(name, plan, problem, times, call.plans[index]) for name, plan in plans.items()]
        explained.append(LayerExplained(problem=problem, candidates=candidates))
    return explained


def _following(inserted: GraftLayer, plans: Sequence[LayerPlan] | None, step: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        with following(inserted, plans):
            step()

    return run


def _of_interest(problem: Problem, chosen: LayerPlan) -> dict[str, LayerPlan | None]:
    """The best few exact plans, the chosen, the readable and the dense one; by name, quickest first."""
    ranked = sorted(exact_plans(problem), key=lambda plan: seconds(plan, problem))
    readable = LayerPlan()
    picked = [plan for plan in ranked if plan in (*ranked[:_BEST], chosen, readable)]
    named: dict[str, LayerPlan | None] = {str(p): p for p in picked if p != readable}
    named[f"{readable} (readable)"] = readable
    named["dense: the whole block on every token"] = None
    return dict(sorted(named.items(), key=lambda item: seconds(*_costed(item[1], problem))))


def _costed(plan: LayerPlan | None, problem: Problem) -> tuple[LayerPlan, Problem]:
    """Plan and problem to count by: the dense form is the readable plan with every token read."""
    if plan is None:
        return LayerPlan(), replace(problem, reads=problem.tokens, mean_early=False)
    return plan, problem


def _candidate(
    name: str, plan: LayerPlan | None, problem: Problem, times: Mapping[str, list[float]], chosen: LayerPlan
) -> Candidate:
    counted, posed = _costed(plan, problem)
    products = operations(counted, posed)
    return Candidate(
        name=name,
        plan=plan,
        multiply_adds=sum(op.multiply_adds for op in products),
        bytes_moved=sum(op.bytes_moved(posed.itemsize) for op in products),
        expected=seconds(counted, posed),
        measured=spread(times[name]) if name in times else None,
        is_chosen=plan == chosen,
    )


def _count(run: Callable[[], Any]) -> int:
    """Multiply-adds of matrix products in `run`, without gradients."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run()
    return int(counter.get_total_flops()) // 2


def _count_graft(inserted: GraftLayer, call: Call) -> int:
    """A forward by the plans of `call`: counted without gradients, the planner might take others."""
    if not call.problems or inserted.config.form == "dense":
        return _count(lambda: inserted(call.x.detach(), call.mask, reads=call.reads, received=call.received))
    products = [op for plan, posed in zip(call.plans, call.problems, strict=True) for op in operations(plan, posed)]
    last = call.problems[-1]
    rows = last.batch * (1 if isinstance(call.reads, MeanOf) and not _budget(inserted, call) else last.reads)
    mapper_out = rows * last.config.dim * inserted.host.embed_dim
    return sum(op.count * op.m * op.k * op.n for op in products) + mapper_out


def _count_host(arm: Arm, cell: Cell) -> int:
    """One sample's forward without the graft, which is taken out for good."""
    ungraft(arm.model.eval())
    inputs, _ = arm.draw(1, cell.device)
    return _count(lambda: arm.model(*inputs))
