"""Emoji in three art styles with their names and keywords: captions and pictures that anyone can have.

<set>/images/<style>/<code points>.png       64 pixels, on white
<set>/{train,val,style,concepts,both}.jsonl  image, caption, concept, category, wording
<set>/set.json                               source, licence, split, counts; written last

style: the concepts of training in an art style that it does not have; concepts: others, in a style that it has; both:
others in the other style. Each of these has one picture of a concept, and so has val: of some concepts of training, in
a style in which those are not trained on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lmgraft import records
from lmgraft.checkpoint.cache import scratch_dir
from lmgraft.data.files import prepared_place
from lmgraft.data.image.emoji import LICENCES, STYLES, UNSEEN, Emoji, fetch_styles, on_white, read_emoji, split_emoji
from lmgraft.data.npm import Package, fetch_package, read_members
from lmgraft.data.vision_language.caption_files import PreparedCaptions
from lmgraft.data.vision_language.caption_table import count_captions, plain

WORDS = Package("emojilib", "4.0.3", "7f9a6b43cff31d18985b7d65d11faba5bd971cbcc60020cf6d09322fbaaaf303", 53_353)
_LIST = "dist/emoji-en-US.json"
_SIDE = 64
_KEYWORDS = (2, 8)  # fewest and most in a caption
_WORDY = re.compile(r"\w[\w '&.-]+")
"""What is no smiley of punctuation marks."""
_SPLIT = (
    "concepts by a hash of their code points without joiners, genders and directions, of each the plainest emoji. A "
    "fifth is unseen: {seen[0]} in concepts, {unseen} in both. Of the others {seen[0]} and {seen[1]} are in train and "
    "{unseen} in style; but of a tenth {seen[1]} is in val alone"
)


class EmojiCaptions(PreparedCaptions):
    """Emoji with their names and keywords, after `lmgraft prepare emoji-captions`.

    Args:
        root: The set's folder; None is lmgraft's cache.
        unseen: What the test shows that training has not: another art style of the concepts it has, other concepts in
            a style it has, or both.
        img_size: See `Settings`.
        max_text_len: See `Settings`.
        options: See `CaptionData`.
    """

    name = "emoji-captions"

    def __init__(
        self,
        root: str | None = None,
        *,
        unseen: Literal["style", "concepts", "both"] = "style",
        img_size: int = _SIDE,
        max_text_len: int = 24,
        **options: Any,
    ) -> None:
        super().__init__(root, test=unseen, img_size=img_size, max_text_len=max_text_len, **options)


def prepare(out: Path | None) -> Path:
    """Fetch the emoji and their words and write the set, unless it is there."""
    folder = prepared_place(EmojiCaptions.name) if out is None else out
    if not (folder / "set.json").exists():
        with scratch_dir(EmojiCaptions.name) as scratch:
            write_set(fetch_styles(scratch), fetch_package(WORDS, scratch), folder)
    return folder


class Wording(NamedTuple):
    """A caption, and how it is put."""

    kind: str
    """name or keywords."""
    text: str


def write_set(files: Mapping[str, Path], words: Path, folder: Path) -> None:
    """The set in `folder`, from the packages' files.

    Args:
        files: Style -> its package's file, see `read_emoji`.
        words: emojilib's.
    """
    emoji, lost = read_emoji(files)
    said = {code: wordings(keywords) for code, keywords in _keywords(words).items()}
    parts = split_emoji(plainest([one for one in emoji if one.code in said]))
    lost["without words"] = sum(one.code not in said for one in emoji)
    first, second = (style for style in files if style != UNSEEN)
    seen = [*parts["train"], *parts["val"]]
    tables = {
        "train": [(one, first) for one in seen] + [(one, second) for one in parts["train"]],
        "val": [(one, second) for one in parts["val"]],
        "style": [(one, UNSEEN) for one in seen],
        "concepts": [(one, first) for one in parts["test"]],
        "both": [(one, UNSEEN) for one in parts["test"]],
    }
    for style in files:
        (folder / "images" / style).mkdir(parents=True, exist_ok=True)
        for one in (*seen, *parts["test"]):
            on_white(one.pictures[style], _SIDE).save(folder / _image(one, style), compress_level=1)
    for name, pictures in tables.items():
        lines = [_row(one, style, wording) for one, style in pictures for wording in said[one.code]]
        records.write_text(folder / f"{name}.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    about = {
        "name": EmojiCaptions.name,
        "source": {style: str(package) for style, package in (STYLES | {"words": WORDS}).items()},
        "licence": LICENCES | {"words": "emojilib, MIT, copyright 2014 Mu-An Chiou"},
        "changes": "emoji were cut to what is opaque, scaled, and laid on white",
        "split": _SPLIT.format(seen=(first, second), unseen=UNSEEN),
        "left_out": lost,
        "tables": {name: count_captions(folder / f"{name}.jsonl") for name in tables},
    }
    records.write_json(folder / "set.json", about)


def plainest(emoji: Sequence[Emoji]) -> list[Emoji]:
    """Of each concept the emoji with the fewest code points: without gender or direction, where there is one."""
    chosen: dict[str, Emoji] = {}
    for one in sorted(emoji, key=lambda one: (one.code.count("-"), one.code)):
        chosen.setdefault(one.concept, one)
    return [one for one in emoji if chosen[one.concept] is one]


def wordings(keywords: Sequence[str]) -> list[Wording]:
    """The captions of an emoji: its name, and its keywords, as far as they are not the name's words.

    Args:
        keywords: emojilib's, of which the first is the name.
    """
    name, *others = (plain(word.replace("_", " ")) for word in keywords)
    kept = [word for word in dict.fromkeys(others) if _WORDY.fullmatch(word) and word != name]
    least, most = _KEYWORDS
    captions = [Wording("name", name)]
    return [*captions, Wording("keywords", ", ".join(kept[:most]))] if len(kept) >= least else captions


def _keywords(file: Path) -> dict[str, list[str]]:
    """Code points, as emoji-datasource writes them, -> emojilib's keywords."""
    content = read_members(file, (_LIST,))
    return {"-".join(f"{ord(point):04x}" for point in one): of for one, of in json.loads(content[_LIST]).items()}


def _image(one: Emoji, style: str) -> str:
    return f"images/{style}/{one.code}.png"


def _row(one: Emoji, style: str, wording: Wording) -> dict[str, str]:
    return {
        "image": _image(one, style), "caption": wording.text, "concept": one.concept, "category": one.category,
        "wording": wording.kind,
    }  # fmt: skip
