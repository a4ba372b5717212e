"""What is measured: cells, and the grids that are made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any, Literal, TypeVar, get_args

from lmgraft.errors import LmgraftError
from lmgraft.graft.config import Form
from lmgraft.studies.bench.hosts import SHORT, full_name

T = TypeVar("T")
Phase = Literal["train", "eval"]
PLAIN = "plain"
"""The arm without a block, to which the others are compared."""

BLOCKS = ("llama-7b", "qwen2.5-1.5b", "smollm2-135m")
VIT_T, VIT_S, VIT_B = SHORT.values()
VIDEO, POINTS = "videomae-like", "point-bert-like"
IMAGE_SIZES = (112, 160, 224, 320, 448, 640)
"""Of the grid `tokens`: 50 to 1,601 tokens."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One encoder, one block, one batch size, trained or evaluated: its arms are measured in turn.

    Raises:
        LmgraftError: If a value is none of those listed.
    """

    host: str
    block: str
    batch: int
    phase: Phase
    forms: tuple[str, ...] = (PLAIN, "auto")
    """Arms: "plain", and values of `GraftConfig.form`."""
    dtype: str = "float32"
    """What is computed in; "bfloat16" is autocast."""
    storage: str = "float32"
    """Dtype of the frozen weights."""
    device: str = "cpu"
    compiled: bool = False

    def __post_init__(self) -> None:
        choices = {
            "phase": (self.phase, get_args(Phase)),
            "dtype": (self.dtype, ("float32", "bfloat16")),
            "storage": (self.storage, ("float32", "bfloat16", "float16")),
        }
        for name, (value, allowed) in choices.items():
            if value not in allowed:
                raise LmgraftError(f"{name} {value!r} is not known", f"one of {', '.join(allowed)}")
        arms = (PLAIN, *get_args(Form))
        if unknown := [form for form in self.forms if form not in arms]:
            raise LmgraftError(f"form {unknown[0]!r} is not known", f"one of {', '.join(arms)}")
        if PLAIN not in self.forms or len(self.forms) < 2:
            raise LmgraftError(
                f"forms {', '.join(self.forms)} compare nothing", f"give {PLAIN!r} and at least one more"
            )
        if self.batch < 1:
            raise LmgraftError(f"batch {self.batch} holds no sample", "give 1 or more")

    def place(self) -> dict[str, Any]:
        """All fields but the arms: what a result is looked up by."""
        return {name: value for name, value in asdict(self).items() if name != "forms"}

    @property
    def name(self) -> str:
        """For progress lines."""
        return str(self)

    def __str__(self) -> str:
        return f"{self.host}, {self.block}, batch {self.batch}, {self.phase}"


def cells(
    hosts: Sequence[str],
    blocks: Sequence[str] = BLOCKS,
    batches: Sequence[int] = (8,),
    phases: Sequence[Phase] = ("train", "eval"),
    **fields: Any,
) -> list[Cell]:
    """The product of the values; for each host all blocks, for each block all batch sizes."""
    return [
        Cell(host=full_name(host), block=block, batch=batch, phase=phase, **fields)
        for host, block, batch, phase in product(hosts, blocks, batches, phases)
    ]


_WITH_DENSE = (PLAIN, "auto", "dense")


def _images() -> list[Cell]:
    return [
        *cells([VIT_T, VIT_B], batches=(1, 8, 32)),
        *cells([VIT_S], batches=(1, 8, 32), forms=_WITH_DENSE),
        *cells([VIT_T, VIT_S], batches=(128,), phases=("eval",)),
    ]


def _read_all() -> list[Cell]:
    return [*cells([VIDEO], batches=(4,)), *cells([POINTS], batches=(32,))]


def _large() -> list[Cell]:
    return cells([VIT_S], ("llama-70b", "llama-405b"), phases=("train",), storage="bfloat16")


def _tokens() -> list[Cell]:
    return cells([f"{VIT_S}@{size}" for size in IMAGE_SIZES], ("llama-7b",), (4,), forms=_WITH_DENSE)


def _goals() -> list[Cell]:
    return [
        *cells([VIT_S, VIT_B], ("llama-7b",), (8, 32)),
        *cells([VIDEO], ("llama-7b",), (4,)),
        *cells([POINTS], ("llama-7b",), (32,)),
    ]


GRIDS: dict[str, Callable[[], list[Cell]]] = {
    "quick": lambda: cells([VIT_S], ("llama-7b", "smollm2-135m"), (8,)),
    "goals": _goals,
    "large": _large,
    "tokens": _tokens,
    "full": lambda: [*_images(), *_read_all(), *_large(), *_tokens()],
}
"""Grids by name; what each is for is said by `lmgraft bench --help`."""


def narrowed(
    grid: Sequence[Cell],
    *,
    hosts: Sequence[str] | None = None,
    blocks: Sequence[str] | None = None,
    batches: Sequence[int] | None = None,
    phases: Sequence[Phase] | None = None,
    **fields: Any,
) -> list[Cell]:
    """`grid` with other values: those given in every combination, the rest as in the grid.

    Args:
        grid: Left as it is where nothing is given.
        hosts, blocks, batches, phases: What to measure instead of the grid's own.
        fields: Other fields of every cell; None keeps the grid's.
    """
    kept = {name: value for name, value in fields.items() if value is not None}
    asked = (hosts, blocks, batches, phases)
    if all(values is None for values in asked):
        return [replace(cell, **kept) for cell in grid]
    return cells(
        hosts or _distinct(cell.host for cell in grid),
        blocks or _distinct(cell.block for cell in grid),
        batches or _distinct(cell.batch for cell in grid),
        phases or _distinct(cell.phase for cell in grid),
        **kept,
    )


def _distinct(values: Iterable[T]) -> list[T]:
    return list(dict.fromkeys(values))
