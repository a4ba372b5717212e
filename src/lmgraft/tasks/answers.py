"""Answers of a vocabulary in words: what a model gives and what is right; knows neither images nor rooms."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

_MOST = 5


def likeliest(beliefs: Tensor, names: Sequence[str]) -> list[dict[str, float]]:
    """Each question's likeliest answers, up to five, with the model's belief in each.

    Args:
        beliefs: (B, A) in [0, 1].
        names: Of the A answers.
    """
    most, answers = beliefs.topk(min(_MOST, beliefs.shape[1]))
    return [
        {names[a]: round(belief, 6) for a, belief in zip(row, of, strict=True)}
        for row, of in zip(answers.tolist(), most.tolist(), strict=True)
    ]


def best(worths: Tensor, names: Sequence[str]) -> list[str]:
    """The answers that are worth most of each question, with commas; empty where none is worth anything.

    Args:
        worths: (B, A) in [0, 1].
        names: Of the A answers.
    """
    is_best = (worths == worths.amax(1, keepdim=True)) & (worths > 0)
    return [", ".join(name for name, right in zip(names, row, strict=True) if right) for row in is_best.tolist()]
