"""Texts for questions about rooms: word vectors, learnt or GloVe's from their text file, and an LSTM."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from lmgraft.errors import HostError

PADDING, UNKNOWN = 0, 1
"""Word numbers that are no words."""


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

    Raises:
        HostError: If it cannot be read, is no such file, or has none of the words.
    """
    numbers = {word: number for number, word in enumerate(words) if number > UNKNOWN}
    vectors: dict[str, Tensor] = {}
    dim = 0
    try:
        with path.open(encoding="utf-8") as lines:
            for count, line in enumerate(lines, 1):
                dim = dim or len(line.split()) - 1
                word, *values = line.rstrip().rsplit(" ", dim)
                if len(values) != dim or dim < 2:
                    raise HostError(
                        f"{path}, line {count}: {len(values)} numbers behind {word[:20]!r}, and {dim} in line 1",
                        "give a text file of word vectors as GloVe has them: a word and its numbers a line",
                    )
                if word in numbers or word == "unk":
                    vectors[word] = torch.tensor([float(value) for value in values])
    except (OSError, ValueError) as error:
        raise HostError(
            f"{path} gives no word vectors: {error}", "give GloVe's text file, such as glove.6B.300d.txt, unzipped"
        ) from None
    known = numbers.keys() & vectors.keys()
    if not known:
        raise HostError(f"{path} has none of the {len(numbers)} words", "is it of another language, or cased?")
    table = vectors.get("unk", torch.zeros(dim)).repeat(len(words), 1)
    table[PADDING] = 0
    for word in known:
        table[numbers[word]] = vectors[word]
    return table
