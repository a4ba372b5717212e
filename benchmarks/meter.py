"""What a 7B-shaped block costs METER at its own size, and what cached features save in the scoring of pairs.

    python benchmarks/meter.py steps [--img-size 224] [--block llama-7b] [--batch 8]
    python benchmarks/meter.py pairs [--texts 8] [--images 32]

`steps`: evaluation and training steps on questions, CLIP ViT-B/32 and roberta-base with random weights, the grafted
model over the plain one. `pairs`: every text with every image, by tokens that each was encoded to once, as the task
Retrieval does it, against encoding both anew for every pair; and what 1,000 images with 5,000 texts would take at that
rate, where encoding once is spread over more pairs than here.

Arms run in turn, in an order drawn anew each round: medians and quartiles of processor time, and of the ratio within a
round. Weights and inputs are random, which changes no time.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lmgraft
from lmgraft.backbones.meter import create
from lmgraft.studies.bench.blocks import make_block
from lmgraft.studies.bench.measure import interleave, ratios, spread

PLAIN, GRAFTED, SCRATCH, CACHED = "plain", "grafted", "from scratch", "cached"
PLANNED = 1_000 * 5_000
ANSWERS = 3129


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def make(arguments: argparse.Namespace, **kwargs: Any) -> dict[str, nn.Module]:
    """The plain model and the grafted one, of equal first weights."""
    models: dict[str, nn.Module] = {}
    for arm in (PLAIN, GRAFTED):
        torch.manual_seed(0)
        model = create(arguments.size, {"img_size": arguments.img_size, "max_text_len": arguments.words, **kwargs})
        models[arm] = model if arm == PLAIN else lmgraft.graft(model, make_block(arguments.block))
    return models


def inputs(arguments: argparse.Namespace, images: int, texts: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    side, words = arguments.img_size, arguments.words
    ids = torch.randint(4, 1000, (texts, words), generator=generator)
    return torch.randn(images, 3, side, side, generator=generator), ids, torch.ones_like(ids)


def training_step(model: nn.Module, batch: tuple[Tensor, ...]) -> Callable[[], None]:
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-5)
    answers = torch.rand(len(batch[0]), ANSWERS)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(F.binary_cross_entropy_with_logits(model.train()(*batch), answers))
        optimizer.step()

    return run


def evaluation_step(model: nn.Module, batch: tuple[Tensor, ...]) -> Callable[[], None]:
    def run() -> None:
        with torch.inference_mode():
            model.eval()(*batch)

    return run


def table(times: dict[str, list[float]], base: str, per: int, unit: str) -> None:
    say(f"| | seconds a {unit} | over {base} |\n| --- | ---: | ---: |")
    for arm, values in times.items():
        own, ratio = spread([value / per for value in values]), spread(ratios(times, arm, base))
        say(
            f"| {arm} | {own.median:.4f} ({own.q1:.4f} to {own.q3:.4f}) | {ratio.median:.3f} ({ratio.q1:.3f} to "
            f"{ratio.q3:.3f}) |"
        )


def measured(steps: dict[str, Callable[[], None]], arguments: argparse.Namespace) -> dict[str, list[float]]:
    rounds, seconds = arguments.rounds, arguments.seconds
    return interleave(steps, rounds=rounds, seconds=seconds, warmup=1, clock=time.process_time)


def compare_steps(arguments: argparse.Namespace) -> None:
    models, batch = make(arguments, num_classes=ANSWERS), inputs(arguments, arguments.batch, arguments.batch)
    for phase, step_of in (("evaluation", evaluation_step), ("training", training_step)):
        say(f"\n{phase}, batch {arguments.batch}\n")
        steps = {arm: step_of(model, batch) for arm, model in models.items()}
        table(measured(steps, arguments), PLAIN, arguments.batch, "question")


def compare_pairs(arguments: argparse.Namespace) -> None:
    model: Any = make(arguments, head="matching")[GRAFTED].eval()
    images, ids, mask = inputs(arguments, arguments.images, arguments.texts)
    text, image = (one.flatten() for one in torch.meshgrid(*map(torch.arange, (len(ids), len(images))), indexing="ij"))
    scores: dict[str, Tensor] = {}

    @torch.inference_mode()
    def score(arm: str) -> None:
        pictures, words = images, ids
        if arm == CACHED:
            pictures, words = model.encode_image(images), model.encode_text(ids, mask)
        parts = zip(*(torch.split(one, arguments.batch) for one in (text, image)), strict=True)
        scores[arm] = torch.cat([model(pictures[i], words[t], mask[t])[:, 0] for t, i in parts])

    times = measured({arm: lambda arm=arm: score(arm) for arm in (SCRATCH, CACHED)}, arguments)  # type: ignore[misc]
    torch.testing.assert_close(scores[CACHED], scores[SCRATCH], rtol=1e-3, atol=1e-4)
    say(f"\n{len(ids)} texts with {len(images)} images, {arguments.batch} pairs at a time\n")
    table(times, SCRATCH, len(text), "pair")
    hours = {arm: PLANNED * spread(values).median / len(text) / 3600 for arm, values in times.items()}
    say(f"\n{PLANNED:,} pairs on one thread: {', '.join(f'{arm} {value:,.0f} hours' for arm, value in hours.items())}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["steps", "pairs"])
    parser.add_argument("--size", default="meter", help="a name of METER's sizes")
    parser.add_argument("--block", default="llama-7b", help="as of lmgraft bench")
    parser.add_argument("--img-size", type=int, default=224)
    parser.add_argument("--words", type=int, default=50, help="tokens of a text")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--texts", type=int, default=8)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=600, help="after which no round begins")
    arguments = parser.parse_args()
    say(
        f"{arguments.size}, {arguments.img_size} pixels, {arguments.words} tokens of text, {arguments.block}; "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    compare_steps(arguments) if arguments.what == "steps" else compare_pairs(arguments)


if __name__ == "__main__":
    main()
