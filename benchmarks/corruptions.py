"""What each corruption costs, how far it goes, and whether the package it comes from agrees.

python benchmarks/corruptions.py FOLDER [--package DIR] [--draws N]

FOLDER holds photographs. They are cut to 224 pixels and corrupted in all severities: milliseconds of processor
time an image, and the root mean square distance from the clean image, in grey levels.
With --package, the unpacked wheel of imagecorruptions 1.1.2 (needs scikit-image and opencv) is run
too, on the same images with other draws; its use of names that NumPy and SciPy dropped is bridged
here. Its elastic transform is another one than ImageNet-C's.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from lmgraft.data.image.corruptions import CORRUPTIONS, SEVERITIES, SIZE, corrupt
from lmgraft.data.image.corruptions_frost import frost_pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--package", type=Path)
    parser.add_argument("--draws", type=int, default=2)
    arguments = parser.parse_args()
    paths = sorted(p for p in arguments.folder.iterdir() if p.suffix.lower() in (".png", ".jpg", ".jpeg"))
    images = [ImageOps.fit(Image.open(p).convert("RGB"), (SIZE, SIZE), Image.Resampling.BICUBIC) for p in paths]
    package = _package(arguments.package) if arguments.package else None
    frost = frost_pictures()
    corrupt(images[0], "defocus_blur", 1)  # imports
    for name in CORRUPTIONS:
        ours, theirs, seconds = [], [], []
        for severity in SEVERITIES:
            started, distances = time.process_time(), []
            for draw in range(arguments.draws):
                for index, image in enumerate(images):
                    made = corrupt(image, name, severity, seed=draw, index=index, frost=frost)
                    distances.append(_distance(made, image))
            seconds.append((time.process_time() - started) / len(distances))
            ours.append(np.mean(distances))
            if package is not None and name != "elastic_transform":
                run = getattr(package, name)
                made = [np.uint8(run(image.copy(), severity)) for _ in range(arguments.draws) for image in images]
                theirs.append(np.mean([_distance(one, images[i % len(images)]) for i, one in enumerate(made)]))
        line = f"{name:18} {1000 * np.mean(seconds):5.1f} ms  {_row(ours)}"
        sys.stdout.write(line + (f"  package {_row(theirs)}" if theirs else "") + "\n")


def _row(values: list[Any]) -> str:
    return " ".join(f"{value:5.1f}" for value in values)


def _distance(a: Any, b: Any) -> float:
    return float(np.sqrt(np.mean((np.asarray(a, float) - np.asarray(b, float)) ** 2)))


def _package(folder: Path) -> Any:
    import scipy.ndimage
    import skimage.filters

    plain = skimage.filters.gaussian
    np.float_ = float  # type: ignore[attr-defined]
    skimage.filters.gaussian = lambda x, sigma=1, multichannel=False, **rest: plain(
        x, sigma=sigma, channel_axis=-1 if multichannel else None, **rest
    )
    bridge = types.ModuleType("scipy.ndimage.interpolation")
    bridge.map_coordinates = scipy.ndimage.map_coordinates  # type: ignore[attr-defined]
    sys.modules["scipy.ndimage.interpolation"] = bridge
    resources = types.ModuleType("pkg_resources")
    resources.resource_filename = lambda _, name: str(folder / "imagecorruptions" / name)  # type: ignore[attr-defined]
    sys.modules["pkg_resources"] = resources
    sys.path.insert(0, str(folder))
    module = importlib.import_module("imagecorruptions.corruptions")
    for name in ("gaussian_noise", "glass_blur", "fog", "frost", "snow"):
        _on_arrays(module, name)
    return module


def _on_arrays(module: Any, name: str) -> None:
    run = getattr(module, name)
    setattr(module, name, lambda image, severity: run(np.array(image), severity))


if __name__ == "__main__":
    main()
