"""Which order of a product is quicker for few rows: x W^T and x W against (W x^T)^T and (W^T x^T)^T.

    python benchmarks/few_rows.py

Prints a Markdown table of ratios, the second order over the first, each the median of pairs
measured in turn. `lmgraft.block.products` takes the second where it is quicker.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch


def ratio(first: Callable[[], object], second: Callable[[], object], pairs: int) -> str:
    """Median of second / first, and its range."""
    found = []
    for _ in range(pairs + 2):
        begun = time.perf_counter()
        first()
        between = time.perf_counter()
        second()
        found.append((time.perf_counter() - between) / (between - begun))
    kept = found[2:]
    return f"{statistics.median(kept):.2f} ({min(kept):.2f} to {max(kept):.2f})"


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[2, 4, 8, 16, 32, 64, 128, 256, 512])
    parser.add_argument("--shape", type=int, nargs=2, default=(11008, 4096), help="of W")
    parser.add_argument("--pairs", type=int, default=9)
    arguments = parser.parse_args()
    weight = torch.randn(*arguments.shape)
    say(f"W {tuple(weight.shape)}, float32, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    say("| rows | (W x^T)^T over x W^T | (W^T x^T)^T over x W |")
    say("| ---: | ---: | ---: |")
    for rows in arguments.rows:
        x, y = torch.randn(rows, weight.shape[1]), torch.randn(rows, weight.shape[0])
        there = ratio(lambda x=x: x @ weight.T, lambda x=x: weight @ x.T, arguments.pairs)  # type: ignore[misc]
        back = ratio(lambda y=y: y @ weight, lambda y=y: weight.T @ y.T, arguments.pairs)  # type: ignore[misc]
        say(f"| {rows} | {there} | {back} |")


if __name__ == "__main__":
    main()
