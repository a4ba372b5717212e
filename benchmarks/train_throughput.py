"""Images a second of plain ViT training: lmgraft against timm's own training script, in turn.

    python benchmarks/train_throughput.py --timm-train PATH/TO/train.py

timm's train.py comes with its repository (github.com/huggingface/pytorch-image-models, the tag of
the installed version), not with its package. Both train the same model from scratch on the same
generated JPEGs with the same batch size, augmentation, mixup, optimiser and number of loader
processes. A rate is that of an epoch after the first, data loading included, validation not.
"""

from __future__ import annotations

import argparse
import json
import re
import runpy
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from timm.data import auto_augment

from lmgraft.data.image.transforms import _posterize

AS_TIMM = "--as-timm"
TIMM = {"timm": [], "timm without its prefetcher": ["--no-prefetcher"]}
RECIPE = """
arm: plain
backbone: {{name: {model}, kwargs: {{drop_path_rate: 0.1}}}}
data:
  class_path: lmgraft.data.image.image_files.ImageFiles
  init_args:
    root: {root}
    val_size: 0
    img_size: {size}
    batch_size: {batch}
    num_workers: {workers}
    augment: {{scale: [0.08, 1.0], auto_augment: rand-m9-mstd0.5-inc1, color_jitter: 0.4, re_prob: 0.25}}
task:
  class_path: lmgraft.tasks.classification.Classification
  init_args: {{mixup: 0.8, cutmix: 1.0, label_smoothing: 0.1}}
optim: {{lr: 0.0005}}
train: {{epochs: {epochs}, accelerator: cpu, save_every: 1000}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timm-train", type=Path, required=True)
    parser.add_argument("--model", default="vit_tiny_patch16_224")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=8, help="of an epoch")
    parser.add_argument("--epochs", type=int, default=3, help="of a launch; the first is left out")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3, help="launches of each, in turn")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "images"
        write_images(root, options.batch * options.steps)
        rounds: list[dict[str, float]] = []
        for number in range(options.rounds):
            rates = {"lmgraft": run_lmgraft(root, Path(folder) / f"ours_{number}", options)}
            for name, flags in TIMM.items():
                out = Path(folder) / f"theirs_{number}_{len(rates)}"
                rates[name] = run_timm(root, out, options, flags)
            rounds.append({name: statistics.median(values) for name, values in rates.items()})
            shown = ", ".join(f"{name} {rate:.2f}" for name, rate in rounds[-1].items())
            print(f"round {number + 1}: {shown} images/s", flush=True)
    for name in TIMM:
        ratios = sorted(rates["lmgraft"] / rates[name] for rates in rounds)
        middle = statistics.median(ratios)
        print(f"lmgraft over {name}: median {middle:.3f}, from {ratios[0]:.3f} to {ratios[-1]:.3f}")


def write_images(root: Path, count: int) -> None:
    """Two classes of smooth random pictures of ImageNet's usual size, and a few for validation."""
    rng = np.random.default_rng(0)
    for split, images in (("train", count), ("val", 8)):
        for number in range(images):
            small = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
            file = root / split / f"class_{number % 2}" / f"{number}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(small).resize((500, 375), Image.Resampling.BICUBIC).save(file, quality=90)


def run_lmgraft(root: Path, out: Path, options: argparse.Namespace) -> list[float]:
    recipe = out.with_suffix(".yaml")
    recipe.write_text(RECIPE.format(root=root, **vars(options)))
    call([sys.executable, "-m", "lmgraft", "train", str(recipe), "--out", str(out)])
    return [row["images_per_second"] for row in json.loads((out / "metrics.json").read_text())][1:]


def run_timm(root: Path, out: Path, options: argparse.Namespace, more: list[str]) -> list[float]:
    flags = f"""
        --data-dir {root} --train-split train --val-split val --output {out} --device cpu
        --model {options.model} --num-classes 2 --img-size {options.size} --drop-path 0.1
        --batch-size {options.batch} --validation-batch-size 8 --workers {options.workers}
        --opt adamw --weight-decay 0.05 --lr 5e-4 --warmup-epochs 0 --epochs {options.epochs} --log-interval 1
        --scale 0.08 1.0 --aa rand-m9-mstd0.5-inc1 --color-jitter 0.4 --reprob 0.25 --train-interpolation bicubic
        --mixup 0.8 --cutmix 1.0 --smoothing 0.1
    """
    said = call([sys.executable, __file__, AS_TIMM, str(options.timm_train), *flags.split(), *more])
    rates: dict[int, float] = {}
    for epoch, rate in re.findall(r"Train: (\d+) \[.*?Time: .*?\([\d.]+s, +([\d.]+)/s\)", said):
        rates[int(epoch)] = float(rate)  # the last line of an epoch has its mean
    return [rate for epoch, rate in sorted(rates.items())[1 : options.epochs]]


def be_timm(script: str, flags: list[str]) -> None:
    """Run timm's script with the one change it needs under Pillow 13: RandAugment may posterise to no bits."""
    names = auto_augment.NAME_TO_OP
    names |= {name: _posterize for name, operation in names.items() if operation is auto_augment.posterize}
    sys.argv = [script, *flags]
    runpy.run_path(script, run_name="__main__")


def call(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done.stdout + done.stderr


if __name__ == "__main__":
    if sys.argv[1:2] == [AS_TIMM]:
        be_timm(sys.argv[2], sys.argv[3:])
    else:
        main()
