"""Texts for questions about rooms: word vectors, learnt or GloVe's from their text file, and an LSTM."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from lmgraft.errors import HostError

PADDING, UNKNOWN = 0, 1
"""Word numbers that are no words."""
_MANY, _MOST = 0.1, 0.5
"""Shares of words without a vector, above which it is said, or is refused."""


class WordVectorWarning(UserWarning):
    """Many words of the texts have no vector of their own."""


class TextEncoder(nn.Module):
    """Word numbers (B, L) to tokens (B, L, V): vectors, dropout, and one LSTM layer that reads from left to right.

    Args:
        num_words: With padding and the unknown word.
        word_dim: Of a word's vector.
        dim: V.
        drop_rate: Of numbers of word vectors.
    """

    def __init__(self, num_words: int, word_dim: int, dim: int, drop_rate: float) -> None:
        super().__init__()
        self.words = nn.Embedding(num_words, word_dim, padding_idx=PADDING)
        self.dropout = nn.Dropout(drop_rate)
        self.lstm = nn.LSTM(word_dim, dim, batch_first=True)
        self.out = nn.Sequential(nn.Linear(dim, dim), nn.GELU())

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, L, V), and which of them are padding, (B, L) bool; padding lies behind the words."""
        if ids.shape[1] == 0:
            ids = ids.new_zeros(len(ids), 1)
        hidden, _ = self.lstm(self.dropout(self.words(ids)))
        return self.out(hidden), ids == PADDING


def read_word_vectors(path: Path, words: Sequence[str]) -> Tensor:
    """The vectors of words from a text file as GloVe's: a word and its numbers a line.

    Args:
        path: The file, such as glove.6B.300d.txt.
        words: By number; the first two are padding, whose vector is 0, and the unknown word.

    Returns:
        (len(words), D). Words that the file lacks have the vector of its "unk", or 0 where that is missing too.

    Warns:
        WordVectorWarning: If it lacks more than a tenth of the words.

    Raises:
        HostError: If it cannot be read, is no such file, or lacks more than half of the words.
    """
    numbers = {word: number for number, word in enumerate(words) if number > UNKNOWN}
    vectors: dict[str, Tensor] = {}
    dim = 0
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for count, line in enumerate(lines, 1):
                dim = dim or len(line.split()) - 1
                word, *values = line.rstrip().rsplit(" ", max(dim, 1))
                if not _is_row(word, values, dim):
                    raise HostError(
                        f"{path}, line {count}: {line.count(' ')} numbers behind {line.split(' ')[0][:20]!r}, and "
                        f"{dim} in line 1",
                        "give word vectors as GloVe's text files have them: a word and its numbers a line, no header",
                    )
                if word in numbers or word == "unk":
                    vectors[word] = torch.tensor([float(value) for value in values])
                    if not vectors[word].isfinite().all():
                        raise HostError(f"{path}, line {count}: the vector of {word!r} is not finite", "fetch it again")
    except HostError:
        raise
    except (OSError, ValueError) as error:
        raise HostError(
            f"{path} gives no word vectors: {error}", "give GloVe's text file, such as glove.6B.300d.txt, unzipped"
        ) from None
    known = numbers.keys() & vectors.keys()
    lacking = [word for word in numbers if word not in known]
    sentence = f"{path} lacks {len(lacking):,} of the {len(numbers):,} words, such as {', '.join(lacking[:5])}"
    if len(lacking) > _MOST * len(numbers):
        raise HostError(sentence, "is it whole, of the texts' language, and in their letters (data.lower_case)?")
    if len(lacking) > _MANY * len(numbers):
        warnings.warn(sentence, WordVectorWarning, stacklevel=2)
    table = vectors.get("unk", torch.zeros(dim)).repeat(len(words), 1)
    table[PADDING] = 0
    for word in known:
        table[numbers[word]] = vectors[word]
    return table


def _is_row(word: str, values: Sequence[str], dim: int) -> bool:
    """Whether a line has as many numbers as the first; some of GloVe's words have spaces, but do not end in numbers."""
    if len(values) != dim or dim < 2:
        return False
    try:
        float(word.partition(" ")[2].rpartition(" ")[2])
    except ValueError:
        return True
    return False
