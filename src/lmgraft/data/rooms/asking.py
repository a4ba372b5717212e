"""Situated questions about a furnished room, answered from its objects' boxes; nothing is asked where it is near.

Someone stands beside an object on the side towards another, and faces it, or has it at the left, the right or behind.
What lies on a side of them is what is at most 45 degrees off it. Both must hold with a margin from the place where they
stand and from the middle of what they stand beside, since the words do not say which it is.

Most of a room lies where its middle is. So that this alone does not answer, `Balance` has each answer given as often
from wherever one has the middle.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import NamedTuple

import numpy as np

KINDS = ("attribute", "count", "existence", "nearest", "relation")
SIDES: dict[str, float] = {"in front of me": 0.0, "to my left": 90.0, "behind me": 180.0, "to my right": -90.0}
"""Words -> degrees from where the asker faces, left positive."""
_PHRASES: dict[str, float] = {
    "facing the {}": 0.0, "with the {} on my left": -90.0, "with the {} behind me": 180.0,
    "with the {} on my right": 90.0,
}  # fmt: skip
"""Words -> degrees from the direction of the other object to where the asker faces."""
_AT = ("at", "next to", "beside")
_PLACES = 12  # of a room that are looked at, each in all phrases
_MARGIN = 10.0  # degrees from the borders between sides
_FARTHER = 1.3  # times as far at least, of two things of which one is nearer
_STEP = 0.3  # metres from the box of what the asker stands beside
_WITHIN, _UNSURE, _BEYOND = 1, 0, -1
DIRECTIONS = dict(zip(SIDES, ("front", "left", "back", "right"), strict=True))
"""Words of a side -> the answer to where something is."""
NUMBERS = ("zero", "one", "two", "three")
_SHARES: dict[str, dict[str, float]] = {
    "existence": {"yes": 0.5, "no": 0.5},
    "count": dict(zip(NUMBERS, (0.35, 0.35, 0.22, 0.08), strict=True)),
    "relation": dict.fromkeys(DIRECTIONS.values(), 0.25),
}
"""Kind of what is asked about a side -> how often each answer is to be given, wherever the room's middle is."""
_SECTORS, _RINGS = 8, (0.6, 1.2, 1.8)  # directions of the middle, and distances in metres, that are told apart
_SLACK, _TOLERANCE = 2.0, 0.04  # answers, and share of answers, that may be too many
_TRIES = 12  # pairs looked at for a question


class Thing(NamedTuple):
    """An object as questions see it."""

    label: str
    paint: str | None
    """Its colour, where one word says it."""
    box: tuple[float, ...]
    """(6,) centre and size along the axes, metres."""


class Situation(NamedTuple):
    """Where the asker stands and faces."""

    text: str
    place: tuple[float, float]
    """Metres."""
    heading: float
    """Degrees from +x towards +y."""
    beside: int
    other: int
    """The objects that the text names."""


class Asked(NamedTuple):
    """A question about a room."""

    situation: Situation
    question: str
    answer: str
    kind: str
    """One of `KINDS`."""
    objects: tuple[int, ...]
    """The objects that it is about, as far as they are there."""
    side: float | None = None
    """Degrees to the left of ahead, where it asks what is there, or on which side (0) something is, by its middle."""


def middle(place: tuple[float, float], heading: float) -> tuple[int, int]:
    """In which of eight directions, and in which of four distances, the origin lies from a place and heading."""
    (x, y), width = place, 360 / _SECTORS
    turn = math.degrees(math.atan2(-y, -x)) - heading
    return int((turn + width / 2) % 360 // width), sum(math.hypot(x, y) > ring for ring in _RINGS)


class Balance:
    """How often each answer is given, by kind and by where the asker has the room's middle, which is the origin."""

    def __init__(self) -> None:
        self._given: dict[tuple[str, int, int], Counter[str]] = defaultdict(Counter)

    def _of(self, asked: Asked) -> Counter[str] | None:
        """Answers given so far to such questions; None for those that the middle says nothing about."""
        if asked.side is None:
            return None
        situation = asked.situation
        return self._given[(asked.kind, *middle(situation.place, situation.heading + asked.side))]

    def allows(self, asked: Asked) -> bool:
        """Whether the answer is not given too often already."""
        given = self._of(asked)
        if given is None:
            return True
        total, share = given.total() + 1, _SHARES[asked.kind][asked.answer]
        return given[asked.answer] + 1 <= share * total + _SLACK + _TOLERANCE * total

    def add(self, asked: Asked) -> None:
        """Count a question that is asked."""
        given = self._of(asked)
        if given is not None:
            given[asked.answer] += 1


@dataclass(frozen=True)
class View:
    """A situation, and what is surely on which side of the asker."""

    situation: Situation
    things: Sequence[Thing]
    sure: Mapping[str, Sequence[int]]
    """Side -> of each thing whether it is within it, beyond it, or too near its borders to be sure."""
    far: Sequence[tuple[float, float]]
    """Of each thing how far it is from where the asker may stand, metres."""


def views(things: Sequence[Thing], rng: np.random.Generator) -> Iterator[View]:
    """From beside things that are the only ones of their label, with another one ahead or at a side, in all phrases."""
    counts = Counter(thing.label for thing in things)
    single = [number for number, thing in enumerate(things) if counts[thing.label] == 1]
    pairs = list(permutations(single, 2))
    for beside, other in [pairs[n] for n in rng.permutation(len(pairs))[:_PLACES].tolist()]:
        (x, y, _, *size), (to_x, to_y) = things[beside].box, things[other].box[:2]
        ahead, length = math.atan2(to_y - y, to_x - x), math.hypot(to_x - x, to_y - y)
        way = (to_x - x) / length, (to_y - y) / length
        step = _STEP + min(size[axis] / 2 / max(abs(way[axis]), 1e-9) for axis in (0, 1))
        places = ((x + way[0] * step, y + way[1] * step), (x, y))
        seen = [[(t.box[0] - at[0], t.box[1] - at[1]) for at in places] for t in things]
        turns = [[math.degrees(math.atan2(b, a) - ahead) for a, b in gaps] for gaps in seen]
        far = [(math.hypot(*gaps[0]), math.hypot(*gaps[1])) for gaps in seen]
        for phrase, degrees in _PHRASES.items():
            at = _AT[int(rng.integers(len(_AT)))]
            text = f"I am standing {at} the {things[beside].label}, {phrase.format(things[other].label)}."
            situation = Situation(text, places[0], math.degrees(ahead) + degrees, beside, other)
            sure = {side: [_is_on(side, [t - degrees for t in turn]) for turn in turns] for side in SIDES}
            yield View(situation, things, sure, far)


def _is_on(side: str, turns: Sequence[float]) -> int:
    """Whether what is so many degrees to the left, from each place, is on a side."""
    off = [abs((turn - SIDES[side] + 180) % 360 - 180) for turn in turns]
    return _WITHIN if max(off) <= 45 - _MARGIN else _BEYOND if min(off) >= 45 + _MARGIN else _UNSURE


def every_question(view: View) -> Iterator[Asked]:
    """All that can be asked from a situation and has one sure answer; never of what the situation names, except for
    distances.
    """
    situation, things = view.situation, view.things
    others = [n for n in range(len(things)) if n not in (situation.beside, situation.other)]
    # What the situation names lies ahead or behind, or left and right: one may ask "what" across that alone.
    along = {SIDES[side] % 180 for side, of in view.sure.items() if of[situation.other] == _WITHIN}
    for side, sure in view.sure.items():
        there = tuple(n for n in others if sure[n] == _WITHIN)
        if SIDES[side] % 180 not in along and len(there) == 1 and all(sure[n] != _UNSURE for n in others):
            yield Asked(situation, f"What is {side}?", things[there[0]].label, "relation", there)
            if paint := things[there[0]].paint:
                yield Asked(situation, f"What colour is the object {side}?", paint, "attribute", there)
    for label in dict.fromkeys(things[n].label for n in others):
        of = [n for n in others if things[n].label == label]
        for side, sure in view.sure.items():
            if all(sure[n] != _UNSURE for n in of):
                yield from _of_label(view, side, label, of)
        nearest = _nearest(view, of)
        if len(of) > 1 and nearest is not None and (paint := things[nearest].paint):
            yield Asked(situation, f"What colour is the {label} nearest to me?", paint, "attribute", (nearest,))
    counts = Counter(thing.label for thing in things)
    single = [n for n, thing in enumerate(things) if counts[thing.label] == 1 and n != situation.beside]
    for pair in combinations(sorted(single, key=lambda n: things[n].label), 2):
        nearest = _nearest(view, pair)
        if nearest is not None:
            names = " or ".join(f"the {things[n].label}" for n in pair)
            yield Asked(situation, f"Which is nearer to me, {names}?", things[nearest].label, "nearest", pair)


def _of_label(view: View, side: str, label: str, of: Sequence[int]) -> Iterator[Asked]:
    """Questions about all things of a label, of which it is sure whether they are on a side."""
    situation, things = view.situation, view.things
    there = tuple(n for n in of if view.sure[side][n] == _WITHIN)
    article, answer = ("an" if label[0] in "aeiou" else "a"), ("yes" if there else "no")
    degrees = SIDES[side]
    yield Asked(situation, f"Is there {article} {label} {side}?", answer, "existence", there, degrees)
    if len(of) > 1:
        yield Asked(situation, f"How many {label}s are {side}?", NUMBERS[len(there)], "count", there, degrees)
    elif there:
        yield Asked(situation, f"On which side of me is the {label}?", DIRECTIONS[side], "relation", there, 0.0)
    if len(there) == 1 and (paint := things[there[0]].paint):
        yield Asked(situation, f"What colour is the {label} {side}?", paint, "attribute", there)


def _nearest(view: View, among: Sequence[int]) -> int | None:
    """The nearest of these things, if no other is nearly as near from anywhere that the asker may stand."""
    first, *rest = sorted(among, key=lambda n: view.far[n][0])
    near = view.far[first]
    return first if all(view.far[n][at] >= _FARTHER * near[at] for n in rest for at in (0, 1)) else None


def ask(things: Sequence[Thing], pairs: int, rng: np.random.Generator, balance: Balance) -> list[Asked]:
    """Up to `pairs` pairs: the same question from two situations with different answers, so that it takes the situation
    to answer it; all kinds in turn as far as a room has them.

    Args:
        things: In the room.
        pairs: How many.
        rng: Of all draws.
        balance: Of the questions of other rooms; these are not added yet.
    """
    answers: dict[str, dict[str, list[Asked]]] = defaultdict(lambda: defaultdict(list))
    for view in views(things, rng):
        for asked in every_question(view):
            answers[asked.question][asked.answer].append(asked)
    kinds: dict[str, list[str]] = defaultdict(list)
    for question, by_answer in answers.items():
        if len(by_answer) > 1:
            kinds[next(iter(by_answer.values()))[0].kind].append(question)
    chosen: dict[tuple[str, str], Asked] = {}
    for turn in range(4 * pairs if kinds else 0):
        if turn % len(kinds) == 0:
            order = [list(kinds)[n] for n in rng.permutation(len(kinds)).tolist()]
        of = kinds[order[turn % len(kinds)]]
        by_answer = answers[of[int(rng.integers(len(of)))]]
        drawn = next((pair for _ in range(_TRIES) if all(map(balance.allows, pair := _pair(by_answer, rng)))), [])
        if len(chosen) < 2 * pairs and not any(_key(one) in chosen for one in drawn):
            chosen |= {_key(one): one for one in drawn}
    return list(chosen.values())


def _key(asked: Asked) -> tuple[str, str]:
    situation = asked.situation  # "at", "next to" and "beside" are one
    return f"{situation.beside} {situation.text.partition(',')[2]}", asked.question


def _pair(by_answer: Mapping[str, Sequence[Asked]], rng: np.random.Generator) -> list[Asked]:
    """Two of the answers, each from one of its situations."""
    drawn = [list(by_answer)[n] for n in rng.permutation(len(by_answer))[:2].tolist()]
    return [by_answer[answer][int(rng.integers(len(by_answer[answer])))] for answer in drawn]
