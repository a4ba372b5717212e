"""Answers to questions: how they are spelt to be compared, which ones a model can give, and what each is worth.

The rules are VQAv2's: those of its evaluation code for scores, and of ViLT and METER (arXiv 2111.02387) for training.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

_PUNCTUATION = ';/[]"{}()=+\\_->@<`,?!'
_PERIOD = re.compile(r"(?!<=\d)\.(?!\d)")  # VQAv2's own, in which the look-behind never matches
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_MOST_PERIODS = 32  # VQAv2 gives re.UNICODE where `sub` takes a count
_ARTICLES = ("a", "an", "the")
_DIGITS = "none zero one two three four five six seven eight nine ten"
_NUMBERS = {word: str(max(0, number - 1)) for number, word in enumerate(_DIGITS.split())}
_CONTRACTED = (
    "'ow's'at 'twas I'd've I'm I've ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't "
    "hadn't've hasn't haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't "
    "mightn't've must've mustn't needn't not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've "
    "somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've "
    "something'll that's there'd there'd've there're there's they'd they'd've they'll they're they've wasn't we'd've "
    "we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've "
    "why'll why're why's won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll "
    "you're you've"
)


def _without_one_apostrophe(words: Iterable[str]) -> dict[str, str]:
    return {w[:at] + w[at + 1 :]: w for w in words for at, letter in enumerate(w) if letter == "'"}


_CONTRACTIONS = _without_one_apostrophe(_CONTRACTED.split()) | {"somebody'd": "somebodyd"}

SOFT = (0.0, 0.3, 0.6, 0.9, 1.0)
"""What an answer is worth in training that 0, 1, 2, 3, or more of ten people gave."""


def plain(answer: str) -> str:
    """An answer on one line without space around it."""
    return answer.replace("\n", " ").replace("\t", " ").strip()


def normalised(answer: str) -> str:
    """An answer as VQAv2's evaluation compares it: no punctuation, articles or capitals, digits for small numbers."""
    is_number = _COMMA_IN_NUMBER.search(answer) is not None
    text = answer
    for mark in _PUNCTUATION:
        is_apart = f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if is_apart or is_number else " ")
    text = _PERIOD.sub("", text, count=_MOST_PERIODS)
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def spelt(answer: str) -> str:
    """An answer as `normalised` has it; where that leaves nothing (the letter "A", "?"), in small letters alone."""
    return normalised(answer) or plain(answer).lower()


def score(answer: str, given: Sequence[str]) -> float:
    """VQAv2's accuracy of an answer: the mean over all but one person of min(people who gave it / 3, 1).

    Of a single person's answer, as other data sets have it, 1 where it is that one.

    Args:
        answer: As the model gives it.
        given: Of each person.
    """
    answer, given = plain(answer), [plain(one) for one in given]
    if len(set(given)) > 1:
        answer, given = normalised(answer), [normalised(one) for one in given]
    return _accuracy(given.count(answer), len(given))


def _accuracy(count: int, people: int) -> float:
    """VQAv2's accuracy of an answer that `count` of `people` gave."""
    if people == 1:
        return float(count)
    return (count * min(1.0, (count - 1) / 3) + (people - count) * min(1.0, count / 3)) / people


class Worth(NamedTuple):
    """What the answers of a vocabulary are worth for one question; all others are worth nothing."""

    labels: tuple[int, ...]
    """Numbers of answers in the vocabulary."""
    soft: tuple[float, ...]
    """In training."""
    scores: tuple[float, ...]
    """By the official rule."""


def vocabulary(answers: Iterable[str], least: int, spell: Callable[[str], str] = spelt) -> tuple[str, ...]:
    """Answers that are the usual one of at least `least` questions, in the order of their first coming.

    Args:
        answers: Of each question the usual one, in the order of the files.
        least: 9 in METER, for VQAv2's train and val together.
        spell: How answers are spelt; METER's way is `normalised`.
    """
    spellings: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for answer in answers:
        if answer not in spellings:
            spellings[answer] = spell(answer)
        counts[spellings[answer]] += 1
    return tuple(answer for answer, count in counts.items() if count >= least)


def usual(given: Sequence[str]) -> str:
    """The answer that most people gave; of equally frequent ones the first."""
    return Counter(given).most_common(1)[0][0]


def worth(given: Sequence[str], numbers: dict[str, int]) -> Worth:
    """What each answer of the vocabulary is worth for a question; spellings of one answer count as one.

    In training an answer that one, two or three of several people gave is worth METER's shares (`SOFT`); a single
    person's is right.

    Args:
        given: Of each person.
        numbers: Answer, as `spelt` has it -> its number.
    """
    counts = Counter(map(spelt, given))
    known = [answer for answer in counts if answer in numbers]
    return Worth(
        labels=tuple(numbers[answer] for answer in known),
        soft=tuple(1.0 if len(given) == 1 else SOFT[min(counts[answer], len(SOFT) - 1)] for answer in known),
        scores=tuple(_accuracy(counts[answer], len(given)) for answer in known),
    )


def worth_as_written(given: Sequence[str], numbers: dict[str, int]) -> Worth:
    """As `worth`, by the rules of VQAv2 and METER for its ten people.

    In training the answers count as people wrote them, as in METER; the score is VQAv2's, which does not spell
    answers in which all people agree.

    Args:
        given: Of each person.
        numbers: Answer, as `normalised` has it -> its number.
    """
    counts = Counter(given)
    known = [answer for answer in dict.fromkeys((*counts, *map(normalised, counts))) if answer in numbers]
    return Worth(
        labels=tuple(numbers[answer] for answer in known),
        soft=tuple(SOFT[min(counts[answer], len(SOFT) - 1)] for answer in known),
        scores=tuple(score(answer, given) for answer in known),
    )
