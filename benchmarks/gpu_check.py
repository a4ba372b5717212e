"""Whether lmgraft is right and cheap on this GPU: one script, at most six minutes, a page and JSON.

    make gpu-check                                             # or: python benchmarks/gpu_check.py --out runs/gpu_check
    python benchmarks/gpu_check.py --device cpu --tiny --out DIR      # the same code in tiny sizes, as the tests run it

No figure in this repository was measured on a GPU yet: this script is how that is done. It checks
parity of all forms in float32, bfloat16 and float16, torch.compile, resuming, and DDP of one process;
and times ViT-S and ViT-B with a block of LLaMA-7B's shape, and 1,568 tokens of a video shape, against
the plain encoder and the dense form. Blocks have random weights: cost depends on shapes alone.

    <out>/gpu_check.json   every check and its figures      <out>/gpu_check.md, .html   the same to read
    <out>/bench.json       the timed cells, round by round, as `lmgraft bench` writes them

A check that fails, or that memory or time do not suffice for, is recorded; the others go on. The exit
status is 1 if a check failed.
"""

from __future__ import annotations

import argparse
import copy
import gc
import html
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lmgraft import records
from lmgraft.errors import LmgraftError
from lmgraft.studies.bench.arms import make_arm
from lmgraft.studies.bench.blocks import make_block
from lmgraft.studies.bench.cells import PLAIN, VIDEO, VIT_B, VIT_S, Cell, cells
from lmgraft.studies.bench.hosts import image_draw
from lmgraft.studies.bench.measure import Spread
from lmgraft.studies.bench.results import METHOD
from lmgraft.studies.bench.run import Settings, run_bench

FORMS = ("dense", "auto", "reads", "folded", "absorbed")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FLOAT32_ERROR = 1e-4
"""Largest relative error of a float32 form against float64: GPUs add in another order than CPUs, in long sums."""


@dataclass(frozen=True)
class Sizes:
    """What is run: as large as the question, or tiny."""

    device: str
    host: str
    block: str
    batch: int
    timed: list[Cell]

    @property
    def small(self) -> Cell:
        """One cell for the checks that need no large sizes."""
        return Cell(host=self.host, block=self.block, batch=self.batch, phase="train", device=self.device)


@dataclass(frozen=True)
class Check:
    """One question and its answer."""

    name: str
    status: Literal["passed", "failed", "skipped"]
    figures: dict[str, Any] = field(default_factory=dict)
    message: str = ""


def sizes(device: str, tiny: bool) -> Sizes:
    """The real sizes, or those that a CPU does in seconds."""
    common: dict[str, Any] = {"device": device, "forms": (PLAIN, "auto", "dense")}
    if tiny:
        timed = cells(["test_vit@32"], ("smollm2-135m",), (2,), **common)
        return Sizes(device=device, host="test_vit@32", block="smollm2-135m", batch=2, timed=timed)
    common |= {"dtype": "bfloat16", "storage": "bfloat16"}
    timed = [
        *cells([VIT_S, VIT_B], ("llama-7b",), (64, 256), **common),
        *cells([VIDEO], ("llama-7b",), (8,), **common),  # 1,568 tokens, all read
        *cells([VIT_S, VIT_B], ("llama-7b",), (128, 512), **common),
    ]
    return Sizes(device=device, host=VIT_S, block="qwen2.5-1.5b", batch=8, timed=timed)


def relative_error(found: Tensor, true: Tensor) -> float:
    """||found - true|| / ||true|| in float64."""
    return float((found.double() - true.double()).norm() / true.double().norm().clamp_min(1e-300))


def grafted(cell: Cell, form: str = "auto") -> nn.Module:
    """The encoder of `cell` with its block."""
    return make_arm(cell, form, make_block(cell.block, cell.storage, cell.device)).model


def results(
    model: nn.Module, called: Callable[[Tensor], Tensor], x: Tensor, autocast: torch.dtype
) -> dict[str, Tensor]:
    """The output, and gradients of a loss in what is trained of the graft and in the images."""
    x = x.clone().requires_grad_()
    with torch.autocast(x.device.type, dtype=autocast, enabled=autocast in (torch.bfloat16, torch.float16)):
        out = called(x)
    model.zero_grad(set_to_none=True)
    out.to(torch.promote_types(out.dtype, torch.float32)).square().sum().backward()
    assert x.grad is not None
    of_graft = {n: p.grad for n, p in model.named_parameters() if n.startswith("graft.") and p.grad is not None}
    return {"output": out.detach(), "images": x.grad, **of_graft}


def worst(found: dict[str, Tensor], truth: dict[str, Tensor]) -> float:
    """The largest relative error of any tensor."""
    assert found.keys() == truth.keys()
    return max(relative_error(found[name], truth[name]) for name in truth)


def parity(sizes: Sizes) -> Iterator[Check]:
    """Every form in every precision, against the dense form in float64.

    In 16 bits a form may be wrong by twice what the dense form is wrong by.
    """
    dense = grafted(sizes.small, "dense").eval()
    (x,), _ = image_draw(dense)(sizes.batch, sizes.device)
    wide = copy.deepcopy(dense).double()
    truth = results(wide, wide, x.double(), torch.float64)
    del wide
    for name, dtype in DTYPES.items():
        bound = FLOAT32_ERROR
        for form in FORMS:
            model = dense if form == "dense" else grafted(sizes.small, form).eval()
            error = worst(results(model, model, x, dtype), truth)
            if form == "dense" and dtype != torch.float32:
                bound = 2 * error
            figures = {"largest relative error": error, "allowed": bound}
            yield Check(f"parity, {form}, {name}", "passed" if error <= bound else "failed", figures)


def compiling(sizes: Sizes) -> Iterator[Check]:
    """A compiled step gives what the eager step gives; on a CPU the graph is traced and not compiled."""
    model = grafted(sizes.small).train()
    (x,), _ = image_draw(model)(sizes.batch, sizes.device)
    expected = results(model, model, x, torch.float32)
    backend = "inductor" if sizes.device.startswith("cuda") else "aot_eager"
    begun = time.perf_counter()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    error = worst(results(model, compiled, x, torch.float32), expected)
    figures = {"backend": backend, "largest relative error": error, "first call, s": time.perf_counter() - begun}
    yield Check("torch.compile, one graph", "passed" if error <= FLOAT32_ERROR else "failed", figures)


def resuming(sizes: Sizes) -> Iterator[Check]:
    """Two steps, a checkpoint through a file, two more in another model: as four steps, bit for bit."""

    def make() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = grafted(sizes.small).train()
        return model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)

    def steps(model: nn.Module, optimizer: torch.optim.Optimizer, numbers: range) -> None:
        for number in numbers:
            (x,), loss_of = image_draw(model)(sizes.batch, sizes.device)
            optimizer.zero_grad(set_to_none=True)
            loss_of(model(x + number)).backward()
            optimizer.step()

    torch.use_deterministic_algorithms(True)
    try:
        whole, optimizer = make()
        steps(whole, optimizer, range(2))
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "last.pt"
            torch.save({"model": whole.state_dict(), "optimizer": optimizer.state_dict()}, file)
            steps(whole, optimizer, range(2, 4))
            resumed, other = make()
            state = torch.load(file, map_location=sizes.device, weights_only=True)
        resumed.load_state_dict(state["model"])
        other.load_state_dict(state["optimizer"])
        steps(resumed, other, range(2, 4))
    finally:
        torch.use_deterministic_algorithms(False)
    before, after = whole.state_dict(), resumed.state_dict()
    differing = [name for name in before if not torch.equal(before[name], after[name])]
    figures = {"tensors": len(before), "tensors that differ": len(differing)}
    yield Check("resume, bit for bit", "failed" if differing else "passed", figures)


def data_parallel(sizes: Sizes) -> Iterator[Check]:
    """DDP of one process: the gradients of the model by itself, and no frozen tensor in its state."""
    model = grafted(sizes.small).train()
    (x,), _ = image_draw(model)(sizes.batch, sizes.device)
    expected = results(model, model, x, torch.float32)
    backend = "nccl" if sizes.device.startswith("cuda") else "gloo"
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group(backend, init_method=f"file://{folder}/rendezvous", rank=0, world_size=1)
        try:
            wrapped = DistributedDataParallel(model)
            error = worst(results(model, wrapped, x, torch.float32), expected)
            frozen = [name for name in wrapped.state_dict() if "graft.block" in name]
        finally:
            dist.destroy_process_group()
    good = error <= FLOAT32_ERROR and not frozen
    figures = {"backend": backend, "largest relative error": error, "frozen tensors in the state": len(frozen)}
    yield Check("DDP of one process", "passed" if good else "failed", figures)


def here(function: Callable[..., Any], *args: Any) -> Any:
    """Call `function` in this process, with the GPU's memory as empty as it can be."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        return function(*args)
    except torch.OutOfMemoryError:
        raise LmgraftError("the GPU's memory ran out", "a smaller batch, or a larger GPU") from None


def timing(sizes: Sizes, out: Path, deadline: float) -> Iterator[Check]:
    """Each cell: arms in turn, the median of the rounds' ratios with its quartiles; on a GPU peak memory too."""
    on_gpu = sizes.device.startswith("cuda")
    for number, cell in enumerate(sizes.timed):
        left = deadline - time.perf_counter()
        name = f"time, {cell}"
        if left <= 0:
            yield Check(name, "skipped", message="no time was left")
            continue
        seconds = left / (2 * (len(sizes.timed) - number))
        settings = Settings(seconds=seconds, memory=on_gpu, fresh=True)
        (result,) = run_bench([cell], out, settings, apart=here)
        if not result.times:
            yield Check(name, "skipped", message=result.message or "memory does not suffice, by an estimate")
            continue
        figures: dict[str, Any] = {"tokens": result.tokens, "tokens read": result.reads}
        figures |= {"plain, s": asdict(result.seconds(PLAIN))}
        for form in result.grafted():
            figures[f"{form} over plain, time"] = asdict(result.ratio(form))
            if (memory := result.memory_ratio(form)) is not None:
                figures[f"{form} over plain and block, memory"] = memory
        figures |= {f"{arm}, peak GiB": peak / 2**30 for arm, peak in result.peaks.items()}
        missing = [arm for arm in cell.forms if arm not in result.times]
        message = f"memory does not suffice for {', '.join(missing)}, by an estimate" if missing else result.message
        yield Check(name, "passed", figures, message)


def guarded(name: str, checks: Iterator[Check]) -> Iterator[Check]:
    """The checks of one part; what ends the part early is recorded as one more."""
    try:
        yield from checks
    except torch.OutOfMemoryError:
        yield Check(name, "skipped", message="the GPU's memory ran out")
    except (LmgraftError, RuntimeError) as error:
        yield Check(name, "failed", message=f"{type(error).__name__}: {error}".partition("\n")[0])


def shown(value: Any) -> str:
    """A figure as text."""
    if isinstance(value, dict):
        spread = Spread(**value)
        return f"{spread.median:.4g} ({spread.q1:.4g} to {spread.q3:.4g}, {spread.count} rounds)"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def row(check: Check) -> tuple[str, str, str]:
    """Name, status and figures of a check, as text."""
    figures = [f"{name} {shown(value)}" for name, value in check.figures.items()]
    return check.name, check.status, "; ".join([*figures, *([check.message] if check.message else [])])


def write(out: Path, checks: list[Check], about: dict[str, Any]) -> None:
    """Write the JSON and both pages."""
    records.write_json(out / "gpu_check.json", about | {"checks": [asdict(check) for check in checks]})
    title, lead = f"lmgraft on {about['machine']}", f"{about['seconds']:.0f} s. {METHOD}"
    head = ("check", "status", "figures")
    table = [head, *map(row, checks)]
    lines = [f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |" for cells in table]
    lines.insert(1, "| --- | --- | --- |")
    records.write_text(out / "gpu_check.md", "\n".join([f"# {title}", "", lead, "", *lines, ""]))
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)}</tr>" for cells in table)
    page = (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{html.escape(title)}</title>"
        "<style>body{font:16px/1.5 sans-serif;max-width:70em;margin:2em auto;padding:0 1em}"
        "td{text-align:left;vertical-align:top;padding:.2em .8em;border-bottom:1px solid #ccc}</style>"
        f"<h1>{html.escape(title)}</h1><p>{html.escape(lead)}</p>"
        f"<table>{body}</table></html>\n"
    )
    records.write_text(out / "gpu_check.html", page)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes for a CPU")
    parser.add_argument("--minutes", type=float, default=5.5, help="no check begins after so many")
    options = parser.parse_args(arguments)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("no GPU is visible: give --device cpu --tiny to try the script itself")
    torch.backends.cudnn.allow_tf32 = False  # convolutions would be, unlike products, though they are float32
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch asks for it where results are to repeat
    begun = time.perf_counter()
    deadline, chosen = begun + 60 * options.minutes, sizes(options.device, options.tiny)
    parts = {"parity": parity, "torch.compile": compiling, "resume": resuming, "DDP of one process": data_parallel}
    checks: list[Check] = []

    def add(found: Iterator[Check]) -> None:
        for check in found:
            checks.append(check)
            print(*row(check), sep=": ", flush=True)

    for name, part in parts.items():
        add(guarded(name, here(part, chosen)))
    add(guarded("time", timing(chosen, options.out, deadline)))
    on_gpu = options.device.startswith("cuda")
    about = {
        "machine": torch.cuda.get_device_name(options.device)
        if on_gpu
        else f"the CPU, {torch.get_num_threads()} threads",
        "tiny": options.tiny,
        "seconds": time.perf_counter() - begun,
        "environment": records.environment(),
    }
    write(options.out, checks, about)
    print(f"pages and JSON in {options.out}")
    return int(any(check.status == "failed" for check in checks))


if __name__ == "__main__":
    sys.exit(main())
