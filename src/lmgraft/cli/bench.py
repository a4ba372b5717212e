"""`lmgraft bench`, and `lmgraft bench --explain`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from lmgraft import records
from lmgraft.errors import LmgraftError
from lmgraft.studies.bench.cells import BLOCKS, GRIDS, PLAIN, VIT_S, Cell, cells, narrowed

_EXAMPLES = """grids:
  quick    ViT-S with a LLaMA-7B-sized and a SmolLM2-sized block, batch 8; a few minutes
  goals    ViT-S and ViT-B, video and points with a LLaMA-7B-sized block: where a block should cost little
  tokens   ViT-S at 112 to 640 pixels: cost against tokens
  large    70B- and 405B-sized blocks in 16 bits behind ViT-S
  full     ViT-T, S and B with three blocks, batch 1 to 128, the dense form for ViT-S, video, points, large, tokens

encoders:  vit-t, vit-s, vit-b, any timm VisionTransformer, with @448 for another image size; videomae-like,
           point-bert-like
blocks:    smollm2-135m, qwen2.5-1.5b, llama-7b, llama-70b, llama-405b: random weights in that shape;
           anything else is a source as for lmgraft inspect

examples:
  lmgraft bench
  lmgraft bench --grid full --out runs/full       # interrupted, the same command goes on
  lmgraft bench --hosts vit-s --blocks llama-7b --batch 8 32 --phase eval --forms auto dense
  lmgraft bench --explain --host vit-s --block llama-7b --batch 8 --phase train
  lmgraft bench --explain runs/quickstart/llm --batch 64
"""


def run(argv: list[str]) -> int:
    arguments = _parser().parse_args(argv)
    return _explain(arguments) if arguments.explain is not None else _bench(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lmgraft bench",
        description="Measure what a frozen block costs: training step and evaluation, plain encoder against the "
        "planner's choice, in turn in one process; peak memory in processes of their own. Writes bench.json, bench.md, "
        "and charts of cost against tokens and against LLM width where cells differ in these. Cells that would need "
        "more than 70 % of memory are refused. With --explain: for one model, which form was chosen and why.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--grid", choices=list(GRIDS), default="quick", help="what to measure (default: %(default)s)")
    parser.add_argument("--hosts", "--host", nargs="+", metavar="HOST", help="encoders, instead of the grid's")
    parser.add_argument("--blocks", "--block", nargs="+", metavar="BLOCK", help="blocks, instead of the grid's")
    parser.add_argument("--batch", nargs="+", type=int, metavar="N", help="batch sizes, instead of the grid's")
    parser.add_argument("--phase", nargs="+", choices=["train", "eval"], help="what of a run, instead of the grid's")
    parser.add_argument("--forms", nargs="+", metavar="FORM", help="auto, dense, reads, folded, absorbed")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="computing; bfloat16 is autocast")
    parser.add_argument("--storage", choices=["float32", "bfloat16", "float16"], help="of the frozen weights")
    parser.add_argument("--device", help="cpu (default) or cuda")
    parser.add_argument("--compile", action="store_true", help="torch.compile every arm")
    parser.add_argument("--rounds", type=int, default=5, help="at least so many of each cell (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=90, help="of a cell, after which no round begins (default: %(default)g)"
    )
    parser.add_argument("--no-memory", action="store_true", help="leave peak memory out: half the time")
    parser.add_argument("--fresh", action="store_true", help="measure again what --out holds")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder of results (default: %(default)s)")
    parser.add_argument(
        "--explain",
        nargs="?",
        const="",
        metavar="FOLDER",
        help="explain the form of one model: --host, --block, --batch, --phase, or a saved model's or run's folder",
    )
    return parser


def _fields(arguments: argparse.Namespace) -> dict[str, Any]:
    forms = arguments.forms and (PLAIN, *(form for form in arguments.forms if form != PLAIN))
    return {
        "forms": forms,
        "dtype": arguments.dtype,
        "storage": arguments.storage,
        "device": _device(arguments.device),
        "compiled": arguments.compile or None,
    }


def _device(name: str | None) -> str | None:
    import torch

    try:
        kind = torch.device(name or "cpu").type
    except RuntimeError:
        kind = ""
    if kind == "cpu" or (kind == "cuda" and torch.cuda.is_available()):
        return name
    raise LmgraftError(f"device {name!r} is not here", "cpu, or cuda where PyTorch finds a GPU")


def _bench(arguments: argparse.Namespace) -> int:
    from lmgraft.report.bench.figures import write_figures
    from lmgraft.report.bench.table import HEADER, line, markdown, rows
    from lmgraft.studies.bench.results import FILE, CellResult, read_results
    from lmgraft.studies.bench.run import Settings, run_bench

    grid = narrowed(
        GRIDS[arguments.grid](),
        hosts=arguments.hosts,
        blocks=arguments.blocks,
        batches=arguments.batch,
        phases=arguments.phase,
        **_fields(arguments),
    )
    settings = Settings(
        rounds=arguments.rounds,
        seconds=arguments.seconds,
        memory=not arguments.no_memory,
        fresh=arguments.fresh,
    )

    def show(result: CellResult) -> None:
        for row in rows(result):
            print(line(row), flush=True)

    print(line(HEADER), flush=True)
    results = run_bench(grid, arguments.out, settings, say=_say, show=show)
    kept = read_results(arguments.out)  # those of other grids with the same --out too
    records.write_text(arguments.out / "bench.md", markdown(kept))
    written = [arguments.out / FILE, arguments.out / "bench.md", *write_figures(kept, arguments.out)]
    print("\n" + "\n".join(f"written: {path}" for path in written))
    return 0 if all(result.status != "failed" for result in results) else 1


def _explain(arguments: argparse.Namespace) -> int:
    from lmgraft.report.bench.explained import describe
    from lmgraft.studies.bench.explain import explain_cell, explain_folder

    options = {"rounds": arguments.rounds, "seconds": min(arguments.seconds, 30.0)}
    cell = _one_cell(arguments)
    _say("Measuring each form in turn")
    folder = arguments.explain
    explained = explain_folder(Path(folder), cell, **options) if folder else explain_cell(cell, **options)
    print(describe(explained))
    return 0


def _one_cell(arguments: argparse.Namespace) -> Cell:
    given = {
        "--host": arguments.hosts or [VIT_S],
        "--block": arguments.blocks or [BLOCKS[0]],
        "--batch": arguments.batch or [8],
        "--phase": arguments.phase or ["train"],
    }
    for name, values in given.items():
        if len(values) > 1:
            raise LmgraftError(f"{name} names {len(values)} values, and one model is explained", "give one")
    fields = {n: value for n, value in _fields(arguments).items() if value is not None and n != "compiled"}
    (cell,) = cells(*given.values(), **fields)
    return cell


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
