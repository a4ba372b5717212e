"""`lmgraft bench`, and `lmgraft bench --explain`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lmgraft.cli.command import Command, option, say
from lmgraft.errors import LmgraftError

if TYPE_CHECKING:
    from lmgraft.studies.bench.cells import Cell
    from lmgraft.studies.bench.results import CellResult

_16BIT = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class Bench(Command):
    """Measure what a frozen block costs: training step and evaluation, plain encoder against the planner's choice, in
    turn in one process; peak memory in processes of their own. Writes bench.json, bench.md, and charts of cost against
    tokens and against LLM width where cells differ in these. Cells that would need more than 70 % of memory are
    refused. With --explain: for one model, which form was chosen and why."""

    examples = """grids:
  quick    ViT-S with a LLaMA-7B-sized and a SmolLM2-sized block, batch 8; a few minutes
  goals    ViT-S and ViT-B, video and points with a LLaMA-7B-sized block: where a block should cost little
  tokens   ViT-S at 112 to 640 pixels: cost against tokens
  large    70B- and 405B-sized blocks in 16 bits behind ViT-S
  full     ViT-T, S and B with three blocks, batch 1 to 128, the dense form for ViT-S, video, points, large, tokens

encoders:  vit-t, vit-s, vit-b, any timm VisionTransformer, with @448 for another image size; videomae-like,
           point-bert-like; any recipe, fed its own training items, with its own loss
blocks:    smollm2-135m, qwen2.5-1.5b, llama-7b, llama-70b, llama-405b: random weights in that shape;
           anything else is a source as for lmgraft inspect

examples:
  lmgraft bench
  lmgraft bench --grid full --out runs/full       # interrupted, the same command goes on
  lmgraft bench --hosts vit-s --blocks llama-7b --batch 8 32 --phase eval --forms auto dense
  lmgraft bench --hosts motion/vectornet_sumo my_recipe.yaml --blocks qwen2.5-1.5b --batch 64 --phase train
  lmgraft bench --explain --host vit-s --block llama-7b --batch 8 --phase train
  lmgraft bench --explain runs/quickstart/llm --batch 64"""
    grid: Literal["quick", "goals", "tokens", "large", "full"] = "quick"
    """What to measure."""
    hosts: list[str] = option([], "--host", metavar="HOST")
    """Encoders, instead of the grid's."""
    blocks: list[str] = option([], "--block", metavar="BLOCK")
    """Blocks, instead of the grid's."""
    batch: list[int] = option([], metavar="N")
    """Batch sizes, instead of the grid's."""
    phase: list[Literal["train", "eval"]] = option([])
    """What of a run, instead of the grid's: train, eval."""
    forms: list[str] = option([], metavar="FORM")
    """auto, dense, reads, folded, absorbed."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Computing; bfloat16 is autocast."""
    storage: _16BIT | None = None
    """Of the frozen weights."""
    device: str | None = None
    """cpu (default) or cuda."""
    compile: bool = False
    """torch.compile every arm."""
    rounds: int = 5
    """At least so many of each cell."""
    seconds: float = 90
    """Of a cell, after which no round begins."""
    no_memory: bool = False
    """Leave peak memory out: half the time."""
    fresh: bool = False
    """Measure again what --out holds."""
    out: Path = option(Path("runs/bench"), metavar="DIR")
    """Folder of results."""
    explain: str | None = option(None, const="", metavar="FOLDER")
    """Explain the form of one model: --host, --block, --batch, --phase, or a saved model's or run's folder."""

    def run(self) -> int:
        return self._bench() if self.explain is None else self._explain()

    def _bench(self) -> int:
        from lmgraft import records
        from lmgraft.report.bench.figures import write_figures
        from lmgraft.report.bench.table import HEADER, line, markdown, rows
        from lmgraft.studies.bench.cells import GRIDS, narrowed
        from lmgraft.studies.bench.results import FILE, read_results
        from lmgraft.studies.bench.run import Settings, run_bench

        grid = narrowed(
            GRIDS[self.grid](),
            hosts=self.hosts or None,
            blocks=self.blocks or None,
            batches=self.batch or None,
            phases=self.phase or None,
            **self._fields(),
        )
        settings = Settings(rounds=self.rounds, seconds=self.seconds, memory=not self.no_memory, fresh=self.fresh)

        def show(result: CellResult) -> None:
            for row in rows(result):
                print(line(row), flush=True)

        print(line(HEADER), flush=True)
        results = run_bench(grid, self.out, settings, say=say, show=show)
        kept = read_results(self.out)  # those of other grids with the same --out too
        records.write_text(self.out / "bench.md", markdown(kept))
        written = [self.out / FILE, self.out / "bench.md", *write_figures(kept, self.out)]
        print("\n" + "\n".join(f"written: {path}" for path in written))
        return 0 if all(result.status != "failed" for result in results) else 1

    def _explain(self) -> int:
        from lmgraft.report.bench.explained import describe
        from lmgraft.studies.bench.explain import explain_cell, explain_folder

        cell, folder = self._one_cell(), self.explain
        say("Measuring each form in turn")
        rounds, seconds = self.rounds, min(self.seconds, 30.0)
        if not folder:
            explained = explain_cell(cell, rounds=rounds, seconds=seconds)
        else:
            explained = explain_folder(Path(folder), cell, rounds=rounds, seconds=seconds)
        print(describe(explained))
        return 0

    def _fields(self) -> dict[str, Any]:
        from lmgraft.studies.bench.cells import PLAIN

        return {
            "forms": (PLAIN, *(form for form in self.forms if form != PLAIN)) if self.forms else None,
            "dtype": self.dtype,
            "storage": self.storage,
            "device": _device(self.device),
            "compiled": self.compile or None,
        }

    def _one_cell(self) -> Cell:
        from lmgraft.studies.bench.cells import BLOCKS, VIT_S, cells

        given: dict[str, list[Any]] = {
            "--host": self.hosts or [VIT_S],
            "--block": self.blocks or [BLOCKS[0]],
            "--batch": self.batch or [8],
            "--phase": self.phase or ["train"],
        }
        for name, values in given.items():
            if len(values) > 1:
                raise LmgraftError(f"{name} names {len(values)} values, and one model is explained", "give one")
        known = {n: value for n, value in self._fields().items() if value is not None and n != "compiled"}
        (cell,) = cells(*given.values(), **known)
        return cell


COMMAND = Bench


def _device(name: str | None) -> str | None:
    import torch

    try:
        kind = torch.device(name or "cpu").type
    except RuntimeError:
        kind = ""
    if kind == "cpu" or (kind == "cuda" and torch.cuda.is_available()):
        return name
    raise LmgraftError(f"device {name!r} is not here", "cpu, or cuda where PyTorch finds a GPU")
