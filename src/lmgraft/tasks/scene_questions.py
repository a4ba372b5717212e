"""Answering situated questions about rooms, with a detector that learns beside, as SQA3D is done."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lmgraft.backbones.scene_qa.model import SceneAnswers
from lmgraft.backbones.scene_qa.vote_net import Proposals
from lmgraft.contracts import Metric
from lmgraft.data.base import Data, SplitName
from lmgraft.data.rooms.batch import QUESTION_TYPE, RoomQuestions
from lmgraft.data.rooms.room_data import RoomData
from lmgraft.errors import RecipeError
from lmgraft.tasks.answers import best, likeliest
from lmgraft.tasks.base import MakeOptimizer, MakeSchedule, Task
from lmgraft.tasks.detection import Truth, detection_losses, matched, mean_average_precision
from lmgraft.tasks.items import Items

IOUS = (0.25, 0.5)
"""Overlaps above which a box counts as that of an object."""
WEIGHTS = {
    "vote": 1.0, "objectness": 0.5, "centre": 1.0, "heading_class": 0.1, "heading": 1.0, "size_class": 0.1, "size": 1.0,
    "class": 0.1, "answer": 0.1, "pose": 0.1,
}  # fmt: skip
"""Of the parts of the loss, as published. "answer" is the answers', "pose" the situation's, all others are the
detector's."""
_DETECTIONS, _OBJECTS = "detections", "objects"


def _share(name: str, title: str, margin: float) -> Metric:
    return Metric(
        name=name, title=title, higher_is_better=True, scale=100, unit="%", difference_unit="points", margin=margin,
        low=0.0, high=1.0, largest_margin=0.1,
    )  # fmt: skip


EM1, EM10 = (_share(f"em{k}", f"test EM@{k}", 0.005) for k in (1, 10))
ANSWER_LOSS = Metric(
    name="answer_loss", title="test cross-entropy", higher_is_better=False, scale=1, unit="nats",
    difference_unit="nats", margin=0.01, low=0.0,
)  # fmt: skip
MAP25, MAP50 = (_share(f"map{round(100 * iou)}", f"test detection mAP@{iou}", 0.01) for iou in IOUS)


class Room(NamedTuple):
    """What a picture of a question about a room is drawn from; a batch of them, or one."""

    points: Tensor
    boxes: Tensor
    box_classes: Tensor
    pose: Tensor
    situation: Tensor
    question: Tensor
    words: tuple[str, ...]
    classes: tuple[str, ...]
    """Of the whole vocabulary, by number."""


class SceneQuestions(Task):
    """A model that maps rooms, situations and questions to logits of answers, and detects objects.

    An answer is right if the data's targets have a share of it; EM@k is whether one of the k likeliest answers is. It
    is also given by type of question. Detection counts each room once; its average precision has no form per item.

    Args:
        model: (points, situation, question, pose) -> what has `answers` (B, A), `proposals` and `pose`, as
            `SceneAnswers` has them.
        data: The questions, with their vocabulary of answers.
        optimizer: Makes the optimiser from the model.
        schedule: Makes the step-wise schedule from optimiser and number of steps.
        weights: Of parts of the loss, where they are other than `WEIGHTS`. A detector that is frozen has no loss.
        total_weight: Of the whole loss.
        answer_loss: How answers are learnt. "binary": cross-entropy of each answer by itself, as published; several may
            be right. "softmax": cross-entropy over all of them, where one is right; that is learnt sooner.
        choose_by: The metric that chooses the epoch: "em1", or "map25" of a run for its detector's sake.

    Raises:
        RecipeError: If a weight is unknown or negative, or there is no such loss or metric.
    """

    data_type: ClassVar[type[Data]] = RoomData  # type: ignore[type-abstract]

    def __init__(
        self,
        model: Any,
        data: RoomData,
        optimizer: MakeOptimizer,
        schedule: MakeSchedule,
        *,
        weights: dict[str, float] | None = None,
        total_weight: float = 10.0,
        answer_loss: Literal["binary", "softmax"] = "binary",
        choose_by: Literal["em1", "map25"] = "em1",
    ) -> None:
        super().__init__(model, data, optimizer, schedule)
        if choose_by not in ("em1", "map25"):
            raise RecipeError(f"task.choose_by={choose_by!r} is neither 'em1' nor 'map25'")
        if answer_loss not in ("binary", "softmax"):
            raise RecipeError(f"task.answer_loss={answer_loss!r} is neither 'binary' nor 'softmax'")
        self.choose_by, self.answer_loss = choose_by, answer_loss
        given = dict(weights or {})
        if unknown := sorted(given.keys() - WEIGHTS.keys()):
            raise RecipeError(f"task.weights: {unknown[0]!r} is no part of the loss", f"of {', '.join(WEIGHTS)}")
        if min(given.values(), default=0) < 0 or not total_weight > 0:
            raise RecipeError(
                f"task.weights={given}, task.total_weight={total_weight}", "none is negative, and the total is above 0"
            )
        self.weights, self.total_weight = {**WEIGHTS, **given}, total_weight
        self._answers, self._words, self._classes = data.answer_names, data.words, data.class_names
        self.register_buffer("_mean_sizes", torch.tensor(data.mean_sizes, dtype=torch.float32), persistent=False)
        self._precisions: dict[str, float] = {}

    _mean_sizes: Tensor

    @classmethod
    def metrics(cls, data: Data | None = None) -> tuple[Metric, ...]:
        return (EM1, EM10, ANSWER_LOSS, MAP25, MAP50)

    @property
    def primary(self) -> Metric:
        return self.scored[self.choose_by]

    @property
    def alone(self) -> Metric:
        return EM1

    def inputs(self, batch: RoomQuestions) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return batch.points, batch.situation, batch.question, batch.pose

    def shown(self, batch: RoomQuestions) -> Room:
        texts = batch.situation, batch.question
        return Room(batch.points, batch.boxes, batch.box_classes, batch.pose, *texts, self._words, self._classes)

    def loss(self, out: SceneAnswers, batch: RoomQuestions) -> Tensor:
        """The weighed sum of the answers' cross-entropy (mean over questions), and the parts of `parts`."""
        parts = self.parts(out, batch)
        total = sum(self.weights[name] * loss for name, loss in parts.items())
        return self.total_weight * torch.as_tensor(total)

    def parts(self, out: SceneAnswers, batch: RoomQuestions) -> dict[str, Tensor]:
        """The parts of the loss by name, before they are weighed; a frozen detector's are left out.

        Questions whose asker's pose is not known count for nothing in "pose"; data say how many these are.
        """
        losses = {"answer": self._answer_losses(out, batch).mean()}
        if out.proposals.votes.requires_grad:
            losses |= detection_losses(_wide(out.proposals), _truth(batch), self._mean_sizes)
        if out.pose is not None:
            known = batch.pose.isfinite().all(1)
            off = (out.pose.float() - batch.pose.nan_to_num()).square() * known[:, None]
            losses["pose"] = (off[:, :3].mean(1) + off[:, 3:].mean(1)).sum() / known.sum().clamp_min(1)
        return losses

    def _answer_losses(self, out: SceneAnswers, batch: RoomQuestions) -> Tensor:
        """(B,) cross-entropy: the sum over answers, or over the one that is right; any, where none is known."""
        logits, worths = out.answers.float(), batch.targets
        if self.answer_loss == "binary":
            return F.binary_cross_entropy_with_logits(logits, worths, reduction="none").sum(1)
        shares = worths.where(worths.sum(1, keepdim=True) > 0, 1.0)
        return F.cross_entropy(logits, shares / shares.sum(1, keepdim=True), reduction="none")

    def columns(self, batch: RoomQuestions) -> Items:
        """Also what the detector says of each question's room, of which `finish` makes average precision."""
        out = self.outputs(batch)
        truth = _truth(batch)
        classes = torch.arange(len(self._mean_sizes), device=truth.classes.device)
        rooms = {
            _DETECTIONS: matched(_wide(out.proposals), truth, self._mean_sizes, IOUS),
            _OBJECTS: (truth.classes.unsqueeze(2) == classes).sum(1),
        }
        return self.checked(self.score(out, batch) | rooms, batch)

    def score(self, out: SceneAnswers, batch: RoomQuestions) -> dict[str, Tensor]:
        """Whether the first answer and one of the first ten are right, the loss, the first one's number, the type."""
        first = out.answers.topk(min(10, out.answers.shape[1])).indices
        right = batch.targets.gather(1, first) > 0
        return {
            "em1": right[:, 0].float(),
            "em10": right.any(1).float(),
            "answer_loss": self._answer_losses(out, batch),
            "predicted": first[:, 0].int(),
            f"by_{QUESTION_TYPE}": batch.kind.int(),
        }

    def finish(self, items: Items, split: SplitName) -> Items:
        _, first = np.unique(items["group"], return_index=True)
        precisions = mean_average_precision(items[_DETECTIONS][first], items[_OBJECTS][first])
        self._precisions = {metric.name: value for metric, value in zip((MAP25, MAP50), precisions, strict=True)}
        return {name: column for name, column in items.items() if name not in (_DETECTIONS, _OBJECTS)}

    def measure(self, items: Items, split: SplitName) -> dict[str, float]:
        return self._precisions

    def targets(self, batch: RoomQuestions) -> Tensor:
        """(B, A) what each answer is worth in training."""
        return batch.targets

    def predict(self, out: SceneAnswers, batch: RoomQuestions) -> list[dict[str, Any]]:
        """Each question's likeliest answers, up to five, with the model's belief in each."""
        logits = out.answers.float()
        beliefs = logits.sigmoid() if self.answer_loss == "binary" else logits.softmax(1)
        return likeliest(beliefs, self._answers)

    def right(self, batch: RoomQuestions) -> list[str]:
        return best(batch.targets, self._answers)


def _wide(proposals: Proposals) -> Proposals:
    return Proposals(*(part.float() if part.is_floating_point() else part for part in proposals))


def _truth(batch: RoomQuestions) -> Truth:
    if batch.boxes.shape[1]:
        return Truth(batch.boxes, batch.box_classes, batch.point_box)
    return Truth(F.pad(batch.boxes, (0, 0, 0, 1)), F.pad(batch.box_classes, (0, 1), value=-1), batch.point_box)
