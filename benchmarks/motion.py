"""How long one scene takes, plain and grafted, in PyTorch and as an exported ONNX file.

    python benchmarks/motion.py [--blocks smollm2-135m qwen2.5-1.5b] [--agents 16] [--lanes 64] [--small]

VectorNet and mmTransformer at their published sizes, or with --small as the recipes on simulated traffic have them;
one random scene, 2 s seen and 3 s forecast at 10 Hz. Ways run in turn, PyTorch on one thread: medians and quartiles of
the time by the clock on the wall, and of the ratio to the plain model's in the same round. What a file says is compared
with PyTorch when it is written.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import lmgraft
from lmgraft.backbones import mmtransformer, vectornet
from lmgraft.data.motion.scenes import AGENT_TYPES, LANE_ATTRIBUTES
from lmgraft.graft.export import export_onnx, onnx_file
from lmgraft.recipes import load_recipe
from lmgraft.studies.bench.blocks import make_block
from lmgraft.studies.bench.measure import interleave, ratios, spread

HISTORY, FUTURE, POINTS = 20, 30, 10
HOSTS = {"vectornet": vectornet.create, "mmtransformer": mmtransformer.create}
PLAIN = "plain"


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def scene(agents: int, lanes: int) -> tuple[Tensor, ...]:
    """One random scene, nothing of it padded."""
    draw = torch.Generator().manual_seed(0)
    paths = torch.randn(1, agents, HISTORY, 2, generator=draw).cumsum(2)
    known = [torch.randint(len(names), (1, lanes), generator=draw) for names in LANE_ATTRIBUTES.values()]
    return (
        paths - paths[:, :1, -1:],
        torch.ones(1, agents, HISTORY, dtype=torch.bool),
        torch.randint(len(AGENT_TYPES), (1, agents), generator=draw),
        20 * torch.randn(1, lanes, POINTS, 2, generator=draw),
        torch.ones(1, lanes, POINTS, dtype=torch.bool),
        torch.stack(known, -1),
    )


def make(name: str, small: bool, block: str) -> nn.Module:
    """A host of its published size or of the recipe's, plain or with a block."""
    size = load_recipe(f"motion/{name}_sumo", ["--arm", "plain"]).backbone.kwargs if small else {}
    torch.manual_seed(0)
    model: nn.Module = HOSTS[name](name, {"history": HISTORY, "future": FUTURE, **size})
    return (model if block == PLAIN else lmgraft.graft(model, make_block(block))).eval()


def in_torch(model: nn.Module, inputs: tuple[Tensor, ...]) -> Callable[[], None]:
    def run() -> None:
        with torch.inference_mode():
            model(*inputs)

    return run


def in_onnx(model: nn.Module, inputs: tuple[Tensor, ...], file: Path) -> Callable[[], None]:
    report = export_onnx(model, inputs, file)
    say(f"- {file.name}: {sum(report.files.values()) / 1e6:.1f} MB, relative error at most "
        f"{max(check.relative_error for check in report.checks):.1e}")  # fmt: skip
    session = onnx_file.runner(file)

    def run() -> None:
        session(inputs)

    return run


def table(times: dict[str, list[float]], arms: Sequence[str]) -> None:
    say("\n| | ms a scene | over plain |\n| --- | ---: | ---: |")
    for way in times:
        own, ratio = spread(times[way]), spread(ratios(times, way, f"{arms[0]}, {way.rpartition(', ')[2]}"))
        say(f"| {way} | {1e3 * own.median:.2f} ({1e3 * own.q1:.2f} to {1e3 * own.q3:.2f}) | {ratio.median:.2f} "
            f"({ratio.q1:.2f} to {ratio.q3:.2f}) |")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", nargs="+", default=list(HOSTS), choices=list(HOSTS))
    parser.add_argument("--blocks", nargs="+", default=["smollm2-135m", "qwen2.5-1.5b"], help="as of lmgraft bench")
    parser.add_argument("--agents", type=int, default=16)
    parser.add_argument("--lanes", type=int, default=64)
    parser.add_argument("--small", action="store_true", help="the recipes' sizes")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=90, help="after which no round begins")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    inputs, arms = scene(arguments.agents, arguments.lanes), [PLAIN, *arguments.blocks]
    for name in arguments.hosts:
        size = "the recipe's size" if arguments.small else "its published size"
        of = f"{arguments.agents} agents, {arguments.lanes} lanes"
        say(f"\n{name}, {size}, {of}, one thread, torch {torch.__version__}\n")
        with tempfile.TemporaryDirectory() as folder:
            ways: dict[str, Callable[[], None]] = {}
            for arm in arms:
                model = make(name, arguments.small, arm)
                ways[f"{arm}, PyTorch"] = in_torch(model, inputs)
                ways[f"{arm}, ONNX"] = in_onnx(model, inputs, Path(folder) / f"{name}_{arm}.onnx")
            table(interleave(ways, rounds=arguments.rounds, seconds=arguments.seconds, warmup=2), arms)


if __name__ == "__main__":
    main()
