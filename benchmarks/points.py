"""Farthest point sampling and nearest neighbours: lmgraft's against a plain loop, and against fpsample where installed.

    python benchmarks/points.py [--batch 8] [--rounds 7]

Ways run in turn on one thread, in processor time; times are medians over rounds, ratios medians of pairs.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmgraft.geometry.points import farthest_points, group_points, take_points
from lmgraft.studies.bench.measure import interleave


def loop(points: Tensor, groups: int, size: int) -> Tensor:
    """Cloud by cloud and centre by centre, as one would write it down."""
    whole = []
    for cloud in points:
        far, chosen = torch.full((len(cloud),), torch.inf), 0
        tokens = []
        for _ in range(groups):
            gaps = (cloud - cloud[chosen]).square().sum(1)
            tokens.append(cloud[gaps.argsort()[:size]] - cloud[chosen])
            far = torch.minimum(far, gaps)
            chosen = int(far.argmax())
        whole.append(torch.stack(tokens))
    return torch.stack(whole)


def by_fpsample(points: Tensor, groups: int, size: int) -> Tensor:
    """fpsample's exact sampling, and lmgraft's neighbours."""
    import fpsample

    order = [fpsample.fps_sampling(cloud, groups, start_idx=0).astype(np.int64) for cloud in points.numpy()]
    centres = take_points(points, torch.from_numpy(np.stack(order)))
    near = torch.cdist(centres, points).topk(size, largest=False, sorted=False).indices
    return take_points(points, near) - centres.unsqueeze(2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| points | groups | way | ms a cloud | times lmgraft's |\n|---:|---:|---|---:|---:|")
    for count, groups in ((1024, 64), (4096, 256), (8192, 512)):
        points = torch.randn(options.batch, count, 3, generator=torch.Generator().manual_seed(0))
        ways: dict[str, Callable[[], Any]] = {
            "lmgraft": lambda p=points, g=groups: group_points(p, g, 32),
            "plain loop": lambda p=points, g=groups: loop(p, g, 32),
        }
        if importlib.util.find_spec("fpsample") is not None:
            ways["fpsample"] = lambda p=points, g=groups: by_fpsample(p, g, 32)
        ways["lmgraft, sampling alone"] = lambda p=points, g=groups: farthest_points(p, g)
        times = interleave(ways, rounds=options.rounds, clock=time.process_time)
        for name, seconds in times.items():
            ratio = np.median(np.array(seconds) / np.array(times["lmgraft"]))
            print(f"| {count:,} | {groups} | {name} | {np.median(seconds) / options.batch * 1e3:.2f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
