"""What a token budget saves where every token is read: a LLaMA-7B-shaped block behind VideoMAE's ViT-S or Point-BERT.

    python benchmarks/budget.py video eval [--arms exact int8 every-196 mean-98 folded dense ...]
    python benchmarks/budget.py video train
    python benchmarks/budget.py points eval --arms folded dense --batch 8

`video` has 1,568 tokens, `points` 65. Arms, beside the plain encoder: the exact graft; the same in `bfloat16` and, in
evaluation, `int8`; RULE-N, a budget of N tokens by a rule; a form by its name. With `--count`, 1e9 multiply-adds of
forward and training step alone, on fake tensors, in seconds.

All arms share the host's first weights, the mappers and the block, and run in turn, in an order drawn anew each round:
medians and quartiles of seconds of processor time (with OMP_NUM_THREADS=1, other work on the machine does them little
harm), and of the ratio to the plain encoder of the same round. The error is that of the model's output against the
exact graft's, ||a - b|| / ||b||: weights are random and the input is noise, so it says more of the rules' order than of
what a trained model loses.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import lmgraft
from lmgraft.backbones.point_bert import PointBert
from lmgraft.backbones.video_mae import VideoMAE
from lmgraft.block import FrozenBlock
from lmgraft.graft.budget import RULES
from lmgraft.studies.bench.blocks import make_block
from lmgraft.studies.bench.measure import interleave, ratios, spread

PLAIN, EXACT, INT8 = "plain", "exact", "int8"
HOSTS: Mapping[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "video": (lambda: VideoMAE(init_scale=1.0), (3, 16, 224, 224)),
    "points": (lambda: PointBert(num_classes=40), (1024, 3)),
}
ARMS = [EXACT, *(f"{rule}-{budget}" for budget in (392, 196, 98) for rule in RULES)]
OPTIONS: Mapping[str, Mapping[str, Any]] = {EXACT: {}, INT8: {}, "bfloat16": {"precision": "bfloat16"}}


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def make(host: str, block: FrozenBlock, arm: str) -> nn.Module:
    """The encoder of an arm; equal weights in all arms."""
    torch.manual_seed(0)
    model = HOSTS[host][0]()
    if arm == PLAIN:
        return model
    torch.manual_seed(1)
    rule, _, budget = arm.partition("-")
    options = {"budget": int(budget), "budget_rule": rule} if budget else OPTIONS.get(arm, {"form": arm})
    return lmgraft.graft(model, block, **options)


def step_of(model: nn.Module, x: Tensor, phase: str) -> Callable[[], None]:
    """What is timed: a forward without gradients, or a whole training step."""
    if phase == "eval":
        model.eval()

        def evaluate() -> None:
            with torch.inference_mode():
                model(x)

        return evaluate
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    y = torch.zeros(len(x), dtype=torch.long)

    def train() -> None:
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(F.cross_entropy(model(x), y))
        optimizer.step()

    return train


def counted(run: Callable[[], Any]) -> tuple[Any, float]:
    """What `run` returns, and its multiply-adds in thousand millions."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        out = run()
    return out, float(counter.get_total_flops()) / 2e9


def count(host: str, batch: int, arms: list[str], block: FrozenBlock) -> None:
    """Multiply-adds, nothing being multiplied."""
    say("| | forward | over plain | training step | over plain |\n| --- | ---: | ---: | ---: | ---: |")
    first: list[float] = []
    for arm in arms:
        with warnings.catch_warnings(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
            warnings.simplefilter("ignore")  # the graft asks for an address, and can do without
            model, x = make(host, block, arm), mode.from_tensor(torch.empty(batch, *HOSTS[host][1]))
            with torch.no_grad():
                _, forward = counted(lambda model=model, x=x: model.eval()(x))  # type: ignore[misc]
            _, both = counted(lambda model=model, x=x: torch.autograd.backward(model.train()(x).sum()))  # type: ignore[misc]
        first = first or [forward, both]
        say(f"| {arm} | {forward:.1f} | {forward / first[0]:.2f} | {both:.1f} | {both / first[1]:.2f} |")


def measure(host: str, arms: list[str], block: FrozenBlock, arguments: argparse.Namespace) -> None:
    """Times, and errors of the output."""
    x = torch.randn(arguments.batch, *HOSTS[host][1], generator=torch.Generator().manual_seed(2))
    models = {arm: make(host, block, arm).eval() for arm in arms}
    if INT8 in models:
        lmgraft.approximate(models[INT8], x, "int8", repeats=1)
    with torch.inference_mode():
        outputs = {arm: model(x) for arm, model in models.items()}
    steps = {arm: step_of(model, x, arguments.phase) for arm, model in models.items()}
    times = interleave(steps, rounds=arguments.rounds, seconds=arguments.seconds, warmup=0, clock=time.process_time)
    say(f"{host}, batch {arguments.batch}, {arguments.block}, {arguments.phase}, {len(times[PLAIN])} rounds\n")
    say("| | seconds | over plain | error of the output |\n| --- | ---: | ---: | ---: |")
    exact = outputs.get(EXACT, outputs[arms[1]])
    for arm, values in times.items():
        own, ratio = spread(values), spread(ratios(times, arm, PLAIN))
        error = "" if arm == PLAIN else f"{100 * float((outputs[arm] - exact).norm() / exact.norm()):.2g} %"
        say(
            f"| {arm} | {own.median:.2f} ({own.q1:.2f} to {own.q3:.2f}) | {ratio.median:.2f} ({ratio.q1:.2f} to "
            f"{ratio.q3:.2f}) | {error} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("host", choices=sorted(HOSTS))
    parser.add_argument("phase", choices=["eval", "train"])
    parser.add_argument("--arms", nargs="+", default=ARMS)
    parser.add_argument("--block", default="llama-7b", help="as of lmgraft bench")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=600, help="after which no round begins, once three are done")
    parser.add_argument("--count", action="store_true")
    arguments = parser.parse_args()
    say(f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}\n")
    arms, block = [PLAIN, *arguments.arms], make_block(arguments.block)
    if arguments.count:
        count(arguments.host, arguments.batch, arms, block)
    else:
        measure(arguments.host, arms, block, arguments)


if __name__ == "__main__":
    main()
