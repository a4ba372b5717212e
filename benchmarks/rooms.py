"""The tokenizer of rooms against one that loops over clouds and centres, and training steps with a block and without.

    python benchmarks/rooms.py [--batch 8] [--rounds 7]

Ways run in turn on one thread, in processor time; times are medians over rounds, ratios medians of pairs. The model is
`scene_qa_tiny`, rooms have 1,024 points, texts 12 words; the block is random, in SmolLM2-135M's shape.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

import lmgraft
from lmgraft.backbones.scene_qa import point_net
from lmgraft.backbones.scene_qa.create import create
from lmgraft.backbones.scene_qa.model import SceneQA
from lmgraft.studies.bench.blocks import make_block
from lmgraft.studies.bench.measure import interleave

POINTS, WORDS = 1024, 12
OF_DATA = {"num_words": 200, "num_answers": 40, "mean_sizes": [[1.0, 1.0, 1.0]] * 12, "num_features": 4}


def farthest_by_loop(points: Tensor, count: int, *, skip_near_origin: bool = False) -> Tensor:
    """Cloud by cloud."""
    whole = []
    for cloud in points:
        far, chosen = torch.full((len(cloud),), torch.inf), [0]
        while len(chosen) < count:
            far = torch.minimum(far, (cloud - cloud[chosen[-1]]).square().sum(1))
            chosen.append(int(far.argmax()))
        whole.append(torch.tensor(chosen))
    return torch.stack(whole)


def balls_by_loop(points: Tensor, centres: Tensor, radius: float, count: int) -> Tensor:
    """Cloud by cloud and centre by centre."""
    whole = torch.zeros(*centres.shape[:2], count, dtype=torch.int64)
    for b, cloud in enumerate(points):
        for g, centre in enumerate(centres[b]):
            inside = ((cloud - centre).square().sum(1) < radius**2).nonzero()[:count, 0]
            if len(inside):
                whole[b, g] = inside[0]
                whole[b, g, : len(inside)] = inside
    return whole


def step(model: SceneQA, cloud: Tensor, texts: Tensor) -> None:
    """Forward and backward of all that learns."""
    out = model.train()(cloud, *texts)
    learnt = [part for part in (out.answers, *out.proposals) if part.requires_grad]
    torch.stack([part.square().mean() for part in learnt]).sum().backward()


def report(title: str, ways: dict[str, Callable[[], Any]], rounds: int, count: int) -> None:
    times = interleave(ways, rounds=rounds, clock=time.process_time)
    first = next(iter(times))
    print(f"| {title} | a second | times the first's time |\n|---|---:|---:|")
    for name, seconds in times.items():
        ratio = np.median(np.array(seconds) / np.array(times[first]))
        print(f"| {name} | {count / np.median(seconds):,.0f} | {ratio:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    cloud = torch.rand(options.batch, POINTS, 7) * torch.tensor([5.0, 5.0, 2.5, 1, 1, 1, 2.5])
    texts = torch.randint(2, 200, (2, options.batch, WORDS))
    models = {name: create("scene_qa_tiny", OF_DATA | kwargs) for name, kwargs in KINDS.items()}
    for name in list(models):
        torch.manual_seed(1)
        models[f"{name}, with a block"] = lmgraft.graft(
            create("scene_qa_tiny", OF_DATA | KINDS[name]), make_block("smollm2-135m")
        )
    detector = models["detector trained"].eval().detector

    @torch.no_grad()
    def tokens() -> None:
        detector(cloud)

    def by_loop() -> None:
        with patch.multiple(point_net, farthest_points=farthest_by_loop, ball_points=balls_by_loop):
            tokens()

    report("points", {"vectorised": tokens, "by loops": by_loop}, options.rounds, options.batch * POINTS)
    ways = {name: lambda m=model: step(m, cloud, texts) for name, model in models.items()}
    one_room = cloud[:1].expand_as(cloud).contiguous()
    for name in ("detector trained", "detector trained, with a block"):
        ways[f"{name}, all about one room"] = lambda m=models[name]: step(m, one_room, texts)
    report("questions in training", ways, options.rounds, options.batch)


KINDS: dict[str, dict[str, Any]] = {
    "detector trained": {},
    "detector frozen, asked each time": {"frozen": ["detector"], "remembered_rooms": 0},
    "detector frozen, asked once a room": {"frozen": ["detector"]},
}


if __name__ == "__main__":
    main()
