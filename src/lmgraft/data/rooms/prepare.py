"""`lmgraft prepare rooms`: fetch the furniture, draw the rooms, ask, and measure what needs no model to answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lmgraft import records
from lmgraft.data.base import SPLITS
from lmgraft.data.debian import prepare_out_of
from lmgraft.data.files import SlowLines
from lmgraft.data.points.furniture import ORIGIN, PACKAGE
from lmgraft.data.rooms.asking import Asked, Balance, Thing, ask, middle
from lmgraft.data.rooms.furnished import FORMAT, FurnishedRooms, say_baselines, write_split
from lmgraft.data.rooms.furnishing import Layout, draw_layout, scan
from lmgraft.data.rooms.part import best_in_hindsight, best_of_training
from lmgraft.data.rooms.pieces import Piece, pieces_of, read_pieces
from lmgraft.versions import optional

ROOMS = {"train": 1500, "val": 200, "test": 300}
PAIRS = {"train": 20, "val": 4, "test": 4}
"""Pairs of questions of a room."""
POINTS = 4096
PROCEDURE = (
    "Rooms of 4 to 6.5 m a side with 3 to 8 pieces of furniture that do not overlap, turned by about a quarter turn, "
    "most of them painted, each in another of eight colours. Situations name two pieces that are the only ones of "
    "their label: one stands beside one and has the other ahead, behind, left or right. Sides are quarters of the "
    "circle. Nothing is asked that lies within 10 degrees of a border between them, or where others are not 1.3 times "
    "as far as the nearest, from where one stands or from the middle of what one stands beside. Each question is asked "
    "of a room in pairs of situations with different answers. Answers about sides are as frequent wherever the room's "
    "middle lies from the asker."
)
ABOUT = {
    "name": FurnishedRooms.name,
    **ORIGIN,
    "changes": "2,048 points were drawn evenly on each surface with its materials' colours, scaled to the size in the "
    "catalogue, painted or not, and placed in drawn rooms",
}


class Drawn(NamedTuple):
    """A room and its questions."""

    layout: Layout
    points: npt.NDArray[np.int16]
    """(4096, 3) millimetres."""
    colours: npt.NDArray[np.uint8]
    of: npt.NDArray[np.int8]
    questions: Sequence[Asked]


def draw_room(
    pieces: Mapping[str, Sequence[Piece]], pairs: int, seed: Sequence[int], balance: Balance, points: int = POINTS
) -> Drawn:  # fmt: skip
    """A room of which so many pairs of questions can be asked: the same for the same pieces, numbers and rooms before.

    Args:
        pieces: Label -> what there is of it.
        pairs: Of questions.
        seed: Numbers that decide every draw.
        balance: Of the questions of the rooms before; this one's are added.
        points: Of the room.
    """
    rng = np.random.default_rng(list(seed))
    while True:
        layout = draw_layout(pieces, rng)
        things = [Thing(one.label, one.paint, tuple(one.box.tolist())) for one in layout.objects]
        questions = ask(things, pairs, rng, balance)
        if len(questions) == 2 * pairs:
            for one in questions:
                balance.add(one)
            places, colours, of = scan(layout, points, rng)
            return Drawn(layout, np.rint(places * 1000).astype(np.int16), colours, of, questions)


def make_set(
    pieces: Sequence[Piece], folder: Path, about: Mapping[str, Any], rooms: Mapping[str, int], points: int = POINTS
) -> Path:  # fmt: skip
    """The set in `folder`.

    Args:
        pieces: The furniture.
        about: Name, source and licence, for set.json.
        rooms: Split -> how many.
        points: Of a room.
    """
    digests, counts, asked = {}, {}, {}
    for number, split in enumerate(SPLITS):
        shown, drawn, progress, balance = pieces_of(pieces, split), [], SlowLines(), Balance()
        for index in range(rooms[split]):
            drawn.append(draw_room(shown, PAIRS[split], (0, number, index), balance, points))
            progress(f"[rooms] {index + 1:,} of {rooms[split]:,} rooms of {split}")
        asked[split] = [row for index, one in enumerate(drawn) for row in _rows(index, one.questions)]
        arrays: dict[str, npt.NDArray[Any]] = {
            "points": np.stack([one.points for one in drawn]),
            "colours": np.stack([one.colours for one in drawn]),
            "objects": np.stack([one.of for one in drawn]),
        }
        digests[split] = write_split(folder / split, arrays, [_objects(one.layout) for one in drawn], asked[split])
        counts[split] = {
            "rooms": len(drawn), "questions": len(asked[split]),
            "kinds": dict(sorted(Counter(row["kind"] for row in asked[split]).items())),
            "answers": dict(Counter(row["answer"] for row in asked[split]).most_common()),
        }  # fmt: skip
    baselines = measure(asked["train"], asked["test"])
    say_baselines(baselines)
    record = {
        "format": FORMAT, **about, "procedure": PROCEDURE, "counts": counts, "baselines": baselines, "digests": digests,
        "pieces": {
            side: dict(sorted(Counter(piece.label for piece in of).items()))
            for side, of in {
                "all splits": [p for p in pieces if not p.test],
                "test alone": [p for p in pieces if p.test],
            }.items()
        },
    }  # fmt: skip
    records.write_json(folder / "set.json", record)
    return folder


def measure(train: Sequence[Mapping[str, Any]], test: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The share of test questions that are answered rightly without seeing the room, or without the situation.

    Whoever sees the room and not the situation is taken to know the best single answer to each question in each room.
    """
    right, keys = [row["answer"] for row in test], {
        "the most frequent answer": (),
        "the most frequent answer of the kind": ("kind",),
        "the question's words": ("question", "kind"),
        "the words of situation and question": ("words", "question", "kind"),
        "the question's words and the asker's pose": ("middle and question", "question", "kind"),
    }  # fmt: skip

    def of(row: Mapping[str, Any], names: Sequence[str]) -> list[object]:
        known = {
            **row, "words": (row["situation"], row["question"]),
            "middle and question": (middle(row["place"], row["heading"]), row["question"]),
        }  # fmt: skip
        return [known[name] for name in names]

    answers = [row["answer"] for row in train]
    found = {
        name: best_of_training([of(row, by) for row in train], answers, [of(row, by) for row in test], right)
        for name, by in keys.items()
    }
    found["room and question, not the situation"] = best_in_hindsight([(r["room"], r["question"]) for r in test], right)
    return {name: round(share, 4) for name, share in found.items()}


def _rows(room: int, questions: Sequence[Asked]) -> list[dict[str, Any]]:
    return [
        {
            "room": room, "situation": one.situation.text, "question": one.question, "answer": one.answer,
            "kind": one.kind, "objects": list(one.objects), "place": [round(x, 3) for x in one.situation.place],
            "heading": round(one.situation.heading, 2),
        }
        for one in questions
    ]  # fmt: skip


def _objects(layout: Layout) -> list[dict[str, Any]]:
    return [
        {
            "label": one.label, "box": [round(x, 3) for x in one.box.tolist()], "paint": one.paint,
            "model": one.piece.name,
        }
        for one in layout.objects
    ]  # fmt: skip


def prepare(out: Path | None) -> Path:
    """Fetch the furniture and draw the set, unless it is there; some minutes."""
    optional("trimesh", "points", "reading furniture")  # before 120 MB are fetched for it
    return prepare_out_of(PACKAGE, ".sh3f", ABOUT, _make_set, out)


def _make_set(files: Path, folder: Path) -> Path:
    pieces, left_out = read_pieces(files)
    return make_set(pieces, folder, {**ABOUT, "left_out": left_out}, ROOMS)
