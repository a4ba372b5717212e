"""Tiny image data sets in their real layouts on disk."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from lmgraft.data.image.image_files import ImageFiles

WNIDS = ("n01440764", "n01443537", "n01484850")


def picture(key: int, size: tuple[int, int] = (50, 40), mode: str = "RGB") -> Image.Image:
    """Smooth colours with some noise; different for each key."""
    rng = np.random.default_rng(key)
    small = Image.fromarray(rng.integers(0, 255, (5, 5, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    noisy = np.asarray(small) + rng.integers(0, 20, (size[1], size[0], 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).convert(mode)


def encoded(key: int, form: str = "JPEG", **options) -> bytes:
    stream = io.BytesIO()
    picture(key, **options).save(stream, form)
    return stream.getvalue()


def write_folder(root: Path, counts: dict[str, int], classes=WNIDS) -> Path:
    """root/<split>/<class>/<class>_<i>.JPEG; a split named "" is root itself."""
    key = 0
    for split, count in counts.items():
        for name in classes:
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                key += 1
                (folder / f"{name}_{i}.JPEG").write_bytes(encoded(key))
    return root


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def tar_of(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def write_shards(root: Path, split: str, shards: int, each: int, label=lambda key: key % 3, as_json=False) -> None:
    """WebDataset's layout: imagenet-<split>-0000.tar with KEY.jpg beside KEY.cls or KEY.json."""
    root.mkdir(exist_ok=True)
    for shard in range(shards):
        files = {}
        for key in range(shard * each, (shard + 1) * each):
            files[f"s{key:06d}.jpg"] = encoded(key)
            said = json.dumps({"label": label(key)}).encode() if as_json else str(label(key)).encode()
            files[f"s{key:06d}.{'json' if as_json else 'cls'}"] = said
        write_tar(root / f"imagenet-{split}-{shard:04d}.tar", files)


def image_files(root: Path | None, **options) -> ImageFiles:
    """`ImageFiles` of tiny images, in this process, set up."""
    small = {"img_size": 32, "batch_size": 4, "eval_batch_size": 4, "num_workers": 0}
    data = ImageFiles(root=None if root is None else str(root), **(small | options))
    data.setup()
    return data


def shown(data: ImageFiles, split: str) -> list[str]:
    """Names of the images of a split, in order."""
    images = data.split(split)
    return [images.table.name(int(i)) for i in images.indices]
