"""Tiny image data sets in their real layouts on disk."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from lmgraft.data.image.emoji import STYLES
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


def emoji_packages(folder: Path) -> dict[str, Path]:
    """Packages in npm's layout: two categories, men and women of one concept, a thin one, one that a style lacks."""
    rows = []
    for key in range(24):
        for code in (f"1F6{key:02}", f"1F468-200D-1F6{key:02}") if key % 4 == 0 else (f"1F6{key:02}",):
            rows.append((code, "Food & Drink" if key % 2 else "Objects"))
    rows += [("2796", "Symbols"), ("2797", "Symbols"), ("1F3FB", "Component")]
    files = {}
    for number, style in enumerate(STYLES):
        content: dict[str, bytes] = {}
        listed = [{"unified": code, "image": f"{code.lower()}.png", "category": kind} for code, kind in rows]
        content["package/emoji.json"] = json.dumps(listed).encode()
        for place, (code, _) in enumerate(rows):
            shown = np.zeros((40, 40, 4), np.uint8)
            shown[5:35, 8:30] = (place * 5, 80 * number, 200, 255)
            if code == "2796":
                shown[:19], shown[21:] = 0, 0
            if code == "2797" and style == "fluent":
                continue
            stream = io.BytesIO()
            Image.fromarray(shown).save(stream, "WEBP" if style == "fluent" else "PNG", lossless=True)
            name = f"assets/{code.lower()}.webp" if style == "fluent" else f"img/{style}/64/{code.lower()}.png"
            content[f"package/{name}"] = stream.getvalue()
        files[style] = folder / f"{style}.tgz"
        files[style].write_bytes(gzip.compress(tar_of(content)))
    return files
