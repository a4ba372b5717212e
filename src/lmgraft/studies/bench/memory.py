"""What a cell will need, estimated from shapes, and what there is: cells that are too large are refused.

Estimates are for refusing, not for reporting: they are meant to lie above what is measured, by
not much.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from lmgraft.block import BlockConfig, inspect_llm
from lmgraft.checkpoint.memory import container_limit
from lmgraft.graft.forms.cost import operations
from lmgraft.graft.forms.plan import choose
from lmgraft.graft.forms.problem import LayerPlan, Problem
from lmgraft.studies.bench.blocks import SHAPES
from lmgraft.studies.bench.cells import PLAIN, Cell
from lmgraft.studies.bench.hosts import HostFacts

SHARE = 0.7
"""Of all memory, what a cell may need."""

_PROCESS = 760 << 20  # Python, torch and timm, and what allocators keep
_HOST_NUMBERS = 20  # kept for backward by one encoder layer for a token, in multiples of its width: 17, and slack
_GRAFT_SLACK = 1.6  # norms, activations and residuals between products, which are not counted
_ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}


def block_config(name: str) -> BlockConfig:
    """The shape of a block, without its weights.

    Raises:
        LmgraftError: As `inspect_llm`, where `name` is a source.
    """
    return BlockConfig(**SHAPES[name]) if name in SHAPES else inspect_llm(name).config


def block_bytes(config: BlockConfig, storage: str) -> int:
    """What the frozen weights take."""
    return config.num_params() * _ITEMSIZE[storage]


def estimate(cell: Cell, host: HostFacts, config: BlockConfig) -> dict[str, int]:
    """Bytes at the peak of each arm, run by itself; the block and AdamW's moments included."""
    train = cell.phase == "train"
    copies = 4 if train else 1  # a parameter, its gradient and two moments
    rows = cell.batch * host.tokens
    layers = host.depth if train else 1
    plain = _PROCESS + 4 * (host.params * copies + 2 * cell.batch * host.numbers_in)
    plain += 4 * rows * host.embed_dim * _HOST_NUMBERS * layers
    mappers = 4 * copies * 2 * host.embed_dim * config.dim
    needed = {PLAIN: plain}
    for form in cell.forms:
        if form != PLAIN:
            own = _graft_bytes(cell, host, config, form)
            needed[form] = plain + mappers + block_bytes(config, cell.storage) + own
    return needed


def plan_of(cell: Cell, host: HostFacts, config: BlockConfig, form: str) -> tuple[LayerPlan, Problem]:
    """How `form` computes the block in this cell: the dense form is the readable plan that reads all."""
    train = cell.phase == "train"
    problem = Problem(
        config=config,
        batch=cell.batch,
        tokens=host.tokens,
        reads=host.tokens if form == "dense" else host.reads,
        narrow=host.embed_dim,
        x_grad=train,
        mapper_grad=train,
        folds_ready=not train,
        itemsize=4 if cell.dtype == "float32" else 2,
        device=cell.device,
    )
    return LayerPlan() if form == "dense" else choose(problem, form), problem


def _graft_bytes(cell: Cell, host: HostFacts, config: BlockConfig, form: str) -> int:
    plan, problem = plan_of(cell, host, config, form)
    outputs = [op.count * op.m * op.n for op in operations(plan, problem)]
    rows = problem.batch * problem.reads
    between = rows * (6 * config.dim + 2 * config.mlp_dim)
    # Without gradients little lives at a time; the largest outputs come in threes (gate, up, their product).
    kept = sum(outputs) + between if cell.phase == "train" else 3 * max(outputs) + between
    projections = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    folds = projections * host.embed_dim if plan.space == "narrow" else 0
    return round(4 * (_GRAFT_SLACK * kept + 2 * folds))


def total_memory(device: str = "cpu") -> int:
    """Bytes of the device, or of this machine: the smallest of what is built in and what a container may use."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_properties(device).total_memory
    built_in, limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), container_limit()
    return built_in if limit is None else min(built_in, limit)


def peak_resident() -> int:
    """Bytes at the peak of this process; of its own pages, which `ru_maxrss` of a spawned process is not."""
    try:
        peak = re.search(r"^VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        peak = None
    if peak:
        return int(peak[1]) * 1024
    from lmgraft.training.callbacks import peak_memory

    return peak_memory()
