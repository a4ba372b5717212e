"""Text -> token numbers: words of the training texts, or the tokenizer of a pretrained text encoder.

Knows no image. A text begins with a token that stands for all of it, which encoders pool.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from lmgraft.checkpoint.text_folders import text_source
from lmgraft.errors import DataError, first_line
from lmgraft.versions import optional

Ids = npt.NDArray[np.int32]
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
_UNKNOWN = 1
_WORD = re.compile(r"\w+|[^\w\s]")
WORDS = "words"
"""The name of the tokenizer that is made of the training texts."""


class Encoded(NamedTuple):
    """Texts as numbers, and what of them is lost."""

    ids: Ids
    """(N, L), padded to the longest text."""
    cut: int
    """Texts that are longer than allowed and end early."""
    unknown: int
    """Words that the vocabulary has not, which share one number."""


class Tokenizer(Protocol):
    """Texts to numbers and back."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def pad_token_id(self) -> int: ...

    def encode(self, texts: Sequence[str], most: int) -> Encoded:
        """Token numbers of texts; a text is cut behind `most` tokens."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of these numbers, without special tokens, as far as they keep it."""
        ...

    def record(self) -> dict[str, Any]:
        """What identifies it, as plain data."""
        ...


@dataclass(frozen=True)
class WordTokenizer:
    """Words and punctuation marks; others than the known ones share one number."""

    words: tuple[str, ...]
    ends: bool = True
    """Whether a text has a token at each end; without them words are numbered from 2."""
    lower_case: bool = True
    """Whether capital letters are taken for small ones."""

    pad_token_id = 0

    @classmethod
    def of(cls, texts: Iterable[str], ends: bool = True, lower_case: bool = True) -> WordTokenizer:
        """All words of these texts, in alphabetical order."""
        words = {word for text in texts for word in _split(text, lower_case)}
        return cls(tuple(sorted(words)), ends, lower_case)

    @property
    def names(self) -> tuple[str, ...]:
        """What each number stands for."""
        return (*(_SPECIAL if self.ends else _SPECIAL[: _UNKNOWN + 1]), *self.words)

    @property
    def vocab_size(self) -> int:
        return len(self.names)

    def encode(self, texts: Sequence[str], most: int) -> Encoded:
        numbers = {word: number for number, word in enumerate(self.names)}
        first, last = ([2], [3]) if self.ends else ([], [])
        most -= len(first + last)
        words = [_split(text, self.lower_case) for text in texts]
        rows = [[*first, *(numbers.get(word, _UNKNOWN) for word in of[:most]), *last] for of in words]
        return Encoded(
            _padded(rows, self.pad_token_id),
            cut=sum(len(of) > most for of in words),
            unknown=sum(row.count(_UNKNOWN) for row in rows),
        )

    def decode(self, ids: Sequence[int]) -> str:
        left_out = (0, 2, 3) if self.ends else (0,)
        return " ".join(self.names[number] for number in ids if number not in left_out)

    def record(self) -> dict[str, Any]:
        digest = hashlib.sha256("\n".join(self.words).encode()).hexdigest()
        return {"name": WORDS, "vocab_size": self.vocab_size, "sha256": digest}


def _split(text: str, lower_case: bool) -> list[str]:
    return _WORD.findall(text.lower() if lower_case else text)


def _padded(rows: Sequence[Sequence[int]], pad: int) -> Ids:
    out = np.full((len(rows), max(map(len, rows), default=0)), pad, np.int32)
    for row, numbers in zip(out, rows, strict=True):
        row[: len(numbers)] = numbers
    return out


class PretrainedTokenizer:
    """A tokenizer of transformers, from the Hub or a folder; no code from there is run.

    Args:
        name: As for `from_pretrained`.

    Raises:
        VersionError: If transformers is not installed.
        DataError: If there is no such tokenizer.
    """

    def __init__(self, name: str) -> None:
        from lmgraft.backbones.refusals import in_seconds  # needs timm, which a tokenizer of words does not

        transformers = optional("transformers", "transformers", f"data.tokenizer={name}")
        self.name = name
        try:
            source = text_source(name)
            with in_seconds(source):
                self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        except (OSError, ValueError) as error:
            reason = first_line(error)
            raise DataError(
                f"data.tokenizer={name}: transformers gives no tokenizer ({reason})",
                "give a name on the Hub that can be reached, or a folder with tokenizer.json",
            ) from None
        if self._tokenizer.pad_token_id is None:
            raise DataError(f"data.tokenizer={name} has no token for padding", "take the tokenizer of a text encoder")
        self.vocab_size = len(self._tokenizer)
        self.pad_token_id = int(self._tokenizer.pad_token_id)

    def encode(self, texts: Sequence[str], most: int) -> Encoded:
        rows = self._tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]
        cut = [place for place, row in enumerate(rows) if len(row) > most]
        for place in cut:
            rows[place] = self._tokenizer(texts[place], truncation=True, max_length=most)["input_ids"]
        unknown = self._tokenizer.unk_token_id
        count = 0 if unknown is None else sum(row.count(unknown) for row in rows)
        return Encoded(_padded(rows, self.pad_token_id), len(cut), count)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def record(self) -> dict[str, Any]:
        vocabulary = "\n".join(f"{word} {number}" for word, number in sorted(self._tokenizer.get_vocab().items()))
        digest = hashlib.sha256(vocabulary.encode()).hexdigest()
        return {"name": self.name, "vocab_size": self.vocab_size, "sha256": digest}


def make_tokenizer(name: str, texts: Iterable[str]) -> Tokenizer:
    """The tokenizer of this name.

    Args:
        name: "words", or of a pretrained text encoder.
        texts: All of training, of which "words" takes its words.

    Raises:
        DataError: If there is none.
    """
    return WordTokenizer.of(texts) if name == WORDS else PretrainedTokenizer(name)
