"""Tux Paint's stamps, photographs and drawings with a sentence each: a small image-text set that anyone can have.

<set>/images/<category>/.../<name>.png   at most 96 pixels a side, in the middle of a white square
<set>/{train,val,test}.jsonl             image, caption, concept, category
<set>/set.json                           source, licence, split, counts; written last

Pictures of one caption are one concept, and lie in one part of the split.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lmgraft import records
from lmgraft.data.debian import Pinned, prepare_out_of
from lmgraft.data.files import as_names
from lmgraft.data.holdout import name_hashes
from lmgraft.data.image.emoji import on_white
from lmgraft.data.vision_language.caption_files import PreparedCaptions
from lmgraft.data.vision_language.caption_table import count_captions
from lmgraft.errors import DataError

_PACKAGE = Pinned(
    "tuxpaint-stamps-default",
    "2022.06.04-1",
    "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
    160_880_444,
)
_STAMPS = Path("usr/share/tuxpaint/stamps")
_SIDE = 96
_PARTS = {"test": 0.2, "val": 0.1}
"""Shares of captions."""
ABOUT = {
    "name": "captioned-stamps",
    "source": f"{_PACKAGE}; https://tuxpaint.org/stamps",
    "licence": "GPL-2.0, copyright 2002-2022 Bill Kendrick and the contributors of Tux Paint's stamps",
    "changes": f"scaled to at most {_SIDE} pixels a side, laid on white; of the texts the English is kept",
    "split": "captions, without regard to case, by a hash: a fifth in test, a tenth in val",
}


class CaptionedStamps(PreparedCaptions):
    """Stamps with their sentences, after `lmgraft prepare captioned-stamps`; the test shows other things than training.

    Args:
        root: The set's folder; None is lmgraft's cache.
        img_size: See `Settings`.
        max_text_len: See `Settings`.
        options: See `CaptionData`.
    """

    name = ABOUT["name"]

    def __init__(
        self, root: str | None = None, *, img_size: int = _SIDE, max_text_len: int = 40, **options: Any
    ) -> None:
        super().__init__(root, img_size=img_size, max_text_len=max_text_len, **options)


def prepare(out: Path | None) -> Path:
    """Fetch Debian's package of stamps and write the set, unless it is there."""
    return prepare_out_of(_PACKAGE, (".png", ".txt"), ABOUT, write_set, out)


def write_set(files: Path, folder: Path) -> Path:
    """The set in `folder`, from the package's files.

    Raises:
        DataError: If they hold no stamp with a text.
    """
    stamps, left_out = find_stamps(files / _STAMPS)
    if not stamps:
        raise DataError(f"{files} holds no stamp with a text", "fetch the package again")
    hashes = name_hashes(as_names([_concept(caption) for caption in stamps.values()]))
    bounds = np.cumsum([*_PARTS.values()])
    names = np.array([*_PARTS, "train"])[np.searchsorted(bounds, hashes, side="right")]
    lines: dict[str, list[str]] = {name: [] for name in ("train", "val", "test")}
    for (file, caption), name in zip(stamps.items(), names, strict=True):
        image = Path("images") / file
        (folder / image).parent.mkdir(parents=True, exist_ok=True)
        with Image.open(files / _STAMPS / file, formats=("PNG",)) as picture:
            _stamp(picture).save(folder / image, compress_level=1)
        row = {"image": image.as_posix(), "caption": caption, "concept": _concept(caption), "category": file.parts[0]}
        lines[name].append(json.dumps(row) + "\n")
    for name, rows in lines.items():
        records.write_text(folder / f"{name}.jsonl", "".join(rows))
    tables = {name: count_captions(folder / f"{name}.jsonl") for name in lines}
    records.write_json(folder / "set.json", {**ABOUT, "left_out": left_out, "tables": tables})
    return folder


def find_stamps(root: Path) -> tuple[dict[Path, str], dict[str, int]]:
    """Each stamp's file below `root` -> its English sentence, by name; and how many are left out."""
    captions: dict[Path, str] = {}
    pictures = sorted(path.relative_to(root) for path in root.rglob("*.png"))
    for picture in pictures:
        text = (root / picture).with_suffix(".txt")
        first = text.read_text(encoding="utf-8", errors="replace").split("\n", 1)[0].strip() if text.is_file() else ""
        if first:
            captions[picture] = first
    return captions, {"without a text": len(pictures) - len(captions)}


def _concept(caption: str) -> str:
    return caption.casefold().rstrip(".!")


def _stamp(picture: Image.Image) -> Image.Image:
    scaled = picture.convert("RGBA")
    scaled.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    return on_white(scaled, _SIDE)
