"""Answering questions about images by choosing one of a vocabulary of answers, as VQAv2 is done."""

from __future__ import annotations

from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from lmgraft.contracts import Metric
from lmgraft.data.base import Data
from lmgraft.data.vision_language.questions import QuestionBatch, QuestionData
from lmgraft.tasks.answers import best, likeliest
from lmgraft.tasks.base import MakeOptimizer, MakeSchedule, Task

VQA = Metric(
    name="vqa", title="test VQA accuracy", higher_is_better=True, scale=100, unit="%", difference_unit="points",
    margin=0.005, low=0.0, high=1.0, largest_margin=0.1,
)  # fmt: skip
VQA_LOSS = Metric(
    name="vqa_loss", title="test binary cross-entropy", higher_is_better=False, scale=1, unit="nats",
    difference_unit="nats", margin=0.01, low=0.0,
)  # fmt: skip


class QuestionAnswering(Task):
    """A model that maps images and questions to logits of answers.

    The accuracy is VQAv2's: the mean over all but one of the people asked of min(those who gave the answer / 3, 1); of
    data with one right answer, whether it is that one. It is also given by answer type and question type.

    Args:
        model: (images, input_ids, attention_mask) -> (B, num_answers) logits.
        data: The questions and their vocabulary of answers.
        optimizer: Makes the optimiser from the model.
        schedule: Makes the step-wise schedule from optimiser and number of steps.
    """

    data_type: ClassVar[type[Data]] = QuestionData  # type: ignore[type-abstract]
    packages: ClassVar[tuple[str, ...]] = ("transformers",)

    def __init__(self, model: Any, data: QuestionData, optimizer: MakeOptimizer, schedule: MakeSchedule) -> None:
        super().__init__(model, data, optimizer, schedule)
        self._answers = data.answer_names
        self._kinds = tuple(data.categories())

    @classmethod
    def metrics(cls, data: Data | None = None) -> tuple[Metric, ...]:
        return (VQA, VQA_LOSS)

    def inputs(self, batch: QuestionBatch) -> tuple[Tensor, Tensor, Tensor]:
        return batch.images, batch.input_ids, batch.attention_mask

    def loss(self, out: Tensor, batch: QuestionBatch) -> Tensor:
        """Binary cross-entropy with what each answer is worth: the sum over answers, the mean over questions."""
        return self._losses(out, batch).mean()

    def _losses(self, out: Tensor, batch: QuestionBatch) -> Tensor:
        return F.binary_cross_entropy_with_logits(out.float(), batch.targets, reduction="none").sum(1)

    def score(self, out: Tensor, batch: QuestionBatch) -> dict[str, Tensor]:
        """What each question's likeliest answer is worth, the loss, and the answer's number."""
        answer = out.argmax(1)
        columns = {"vqa": batch.scores.gather(1, answer[:, None])[:, 0], "vqa_loss": self._losses(out, batch)}
        columns["predicted"] = answer.int()
        return columns | {f"by_{name}": batch.kinds[:, n].int() for n, name in enumerate(self._kinds)}

    def targets(self, batch: QuestionBatch) -> Tensor:
        """(B, num_answers) what each answer is worth in training."""
        return batch.targets

    def predict(self, out: Tensor, batch: QuestionBatch) -> list[dict[str, Any]]:
        """Each question's likeliest answers, up to five, with the model's belief in each by itself."""
        return likeliest(out.float().sigmoid(), self._answers)

    def right(self, batch: QuestionBatch) -> list[str]:
        """The answers that count most by VQAv2's rule."""
        return best(batch.scores, self._answers)
