"""What looking costs: `observe` and the measures of a batch, against a plain pass of the same model.

    python benchmarks/observe_cost.py [--block qwen2.5-1.5b] [--batch 8] [--rounds 7]

Both in turn in one process: a ViT-S with the block in dense form, all tokens read, and the same model as it comes,
looked at: all stages, attention of what the head reads, magnitude and frequency at each stage, IoU, average precision
and pointing.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import timm
import torch

import lmgraft
from lmgraft.analysis.activations import frequency, magnitude
from lmgraft.analysis.masks import average_precision, best_iou, pointing
from lmgraft.analysis.observe import observe
from lmgraft.studies.bench.blocks import make_block


def seconds(function: Callable[[], object]) -> float:
    """Wall time of one call."""
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--block", default="qwen2.5-1.5b")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.manual_seed(0)
    model = timm.create_model("vit_small_patch16_224").eval()
    lmgraft.graft(model, make_block(options.block))
    dense = copy.deepcopy(model)  # shares the block's weights
    dense.graft.config = replace(dense.graft.config, form="dense")
    x = torch.randn(options.batch, 3, 224, 224)
    truth = torch.rand(options.batch, 196) > 0.7

    @torch.no_grad()
    def plain() -> None:
        with lmgraft.reading_all_tokens(dense):
            dense(x)

    @torch.no_grad()
    def looked_at() -> None:
        noted = observe(model, x)
        for features in noted.at.values():
            for measure in (magnitude, frequency):
                maps = measure(features.tokens)
                for score in (best_iou, average_precision, pointing):
                    score(maps, truth)

    plain()
    looked_at()
    pairs = [(seconds(plain), seconds(looked_at)) for _ in range(options.rounds)]
    ratios = sorted(b / a for a, b in pairs)
    print(f"one pass, dense, all tokens read: {statistics.median(a for a, _ in pairs):.2f} s (median)")
    print(f"looked at, over it: {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
