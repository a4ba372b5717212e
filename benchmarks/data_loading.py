"""Images a second of lmgraft's loader and of timm's, on the same files with the same settings.

    python benchmarks/data_loading.py

Writes a folder of JPEGs of about 500 x 375 pixels with photograph-like spectra, then loads it by turns with
lmgraft's loader, timm's, and timm's with its prefetcher (which on a CPU normalises in the main
process). Prints a Markdown table of medians, and of the ratios within a round. Keep the machine free meanwhile.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_dataset, create_loader

from lmgraft.data.image.image_files import ImageFiles
from lmgraft.data.image.transforms import Augment, allow_zero_bits

DEIT = {
    "scale": (0.08, 1.0),
    "color_jitter": 0.4,
    "auto_augment": "rand-m9-mstd0.5-inc1",
    "re_prob": 0.25,
    "re_mode": "pixel",
}


def write_images(root: Path, count: int) -> None:
    """JPEGs of varied sizes with 1/f noise, which compress about as photographs do (100 kB each)."""
    rng = np.random.default_rng(0)
    for i in range(count):
        width, height = (int(side * rng.uniform(0.9, 1.1)) for side in (500, 375))
        rows, columns = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None]
        falling = 1 / np.maximum(np.hypot(rows, columns), 1 / width) ** 1.1
        phases = np.exp(2j * np.pi * rng.random((3, height, width)))
        pixels = np.fft.ifft2(falling * phases).real
        pixels = 128 + 50 * (pixels - pixels.mean((1, 2), keepdims=True)) / pixels.std((1, 2), keepdims=True)
        folder = root / "train" / f"class{i % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))
        image.save(folder / f"{i}.jpg", quality=92)
    (root / "val").symlink_to(root / "train")


def ours(root: Path, training: bool, workers: int, batch: int) -> Callable[[], Iterator[Any]]:
    data = ImageFiles(
        root=str(root),
        val_size=0,
        batch_size=batch,
        eval_batch_size=batch,
        num_workers=workers,
        augment=Augment(**DEIT),
    )
    data.setup()
    epoch = iter(range(1_000_000))
    loader = data.loader("train" if training else "test", progress=lambda: (next(epoch), 0))
    return lambda: iter(loader)


def timms(root: Path, training: bool, workers: int, batch: int, prefetcher: bool) -> Callable[[], Iterator[Any]]:
    dataset = create_dataset("", str(root), split="train")
    loader = create_loader(
        dataset, 224, batch, is_training=training, interpolation="bicubic", num_workers=workers, crop_pct=0.875,
        use_prefetcher=prefetcher, device=torch.device("cpu"), persistent_workers=True, **DEIT,
    )  # fmt: skip
    if training:
        allow_zero_bits(dataset.transform)  # without it, Pillow 13 ends the epoch
    return lambda: iter(loader)


def seconds(batches: Callable[[], Iterator[Any]]) -> tuple[float, int]:
    """Of one pass, and how many images it gave."""
    begun, count = time.perf_counter(), 0
    for images, *_ in batches():
        count += len(images)
    return time.perf_counter() - begun, count


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--root", type=Path, help="use these images: a folder with train and val")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=ResourceWarning)
    with tempfile.TemporaryDirectory() as scratch:
        root = arguments.root or Path(scratch)
        if arguments.root is None:
            write_images(root, arguments.images)
        say(f"batch {arguments.batch}, {arguments.rounds} rounds, torch {torch.__version__}\n")
        say("| what | workers | lmgraft | timm | timm, prefetcher | over timm | over timm, prefetcher |")
        say("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
        for training in (True, False):
            for workers in arguments.workers:
                say(row(root, training, workers, arguments.batch, arguments.rounds))


def row(root: Path, training: bool, workers: int, batch: int, rounds: int) -> str:
    arms = [
        ours(root, training, workers, batch),
        timms(root, training, workers, batch, prefetcher=False),
        timms(root, training, workers, batch, prefetcher=True),
    ]
    rates = []
    for number in range(rounds + 1):
        order = [(number + k) % 3 for k in range(3)]
        measured = {arm: seconds(arms[arm]) for arm in order}
        rates.append([measured[arm][1] / measured[arm][0] for arm in range(3)])
    kept = np.array(rates[1:])  # the first starts workers and fills caches
    medians = np.median(kept, axis=0)
    ratios = [sorted(kept[:, 0] / kept[:, k]) for k in (1, 2)]
    said = [f"{statistics.median(r):.3f} ({r[0]:.3f} to {r[-1]:.3f})" for r in ratios]
    what = "training, DeiT's augmentation" if training else "evaluation"
    return f"| {what} | {workers} | {' | '.join(f'{rate:.0f}/s' for rate in medians)} | {' | '.join(said)} |"


if __name__ == "__main__":
    main()
