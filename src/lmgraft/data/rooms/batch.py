"""Situated questions about rooms, padded to one shape."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

QUESTION_TYPE = "question_type"
"""The one category of questions, which `kind` numbers; its parts' names are the data's."""


class RoomQuestions(NamedTuple):
    """Questions about rooms: what is seen, where the asker is, what is asked, and what each answer is worth."""

    points: Tensor
    """(B, N, 3 + F) float: x, y, z in metres, z upwards; then features, by default red, green, blue, less their means
    and divided by 256, and the height above the floor in metres."""
    situation: Tensor
    """(B, L) int64 word numbers: 0 is padding, 1 an unknown word."""
    question: Tensor
    """(B, M) int64, the same words."""
    targets: Tensor
    """(B, A) float, what each answer of the vocabulary is worth in training."""
    boxes: Tensor
    """(B, K, 6) float: centre and size along the axes, metres; zero where there is none."""
    box_classes: Tensor
    """(B, K) int64, -1 where there is none."""
    point_box: Tensor
    """(B, N) int64, the box that a point belongs to; -1 for none."""
    kind: Tensor
    """(B,) int64, the question's type."""
    pose: Tensor
    """(B, 7) float, where the asker is, x, y, z in metres, and the quaternion x, y, z, w that turns -x to where they
    look, which is how SQA3D has it; NaN where it is not known."""
    index: Tensor  # type: ignore[assignment] # of tuples it is a method
    """(B,) int64, the question's place in its source."""
    group: Tensor
    """(B,) int64, the room."""


class RoomQuestionsWithTruth(NamedTuple):
    """Questions about rooms, and which points are of the objects that they ask about."""

    points: Tensor
    situation: Tensor
    question: Tensor
    targets: Tensor
    boxes: Tensor
    box_classes: Tensor
    point_box: Tensor
    kind: Tensor
    pose: Tensor
    index: Tensor  # type: ignore[assignment] # of tuples it is a method
    group: Tensor
    truth: Tensor
    """(B, N) bool, True on the objects that the question is about; nowhere where none of them is there."""
