"""The cheap scores of a candidate, as a table: what each measures, and why it might predict a training.

None of them has been shown to predict one in general. A scan therefore says how well each agreed
with real training, wherever that is known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from lmgraft.contracts import Metric
from lmgraft.errors import RecipeError
from lmgraft.registry import suggest
from lmgraft.studies.scan.lab import Lab, Place
from lmgraft.studies.scan.scores import cka, coherence, probe
from lmgraft.studies.scan.scores.measured import Measured


@dataclass(frozen=True, kw_only=True)
class Score:
    """One way to rank candidates; more is ranked higher."""

    name: str
    title: str
    """Of a column or an axis."""
    measures: str
    why: str
    """Why it might predict what training gives."""
    interval: str
    """Where its interval comes from."""
    unit: Metric | None
    """How its values are written; None for a difference in the unit of the task's `agreement_metric`."""
    measure: Callable[[Lab, Place, nn.Module], Measured]
    """From the candidate's model (its mappers as the recipe's seed draws them)."""
    is_difference: bool = False
    """Whether a value is a difference, written with its sign."""


_COEFFICIENT = Metric(
    name="coefficient", title="coefficient", higher_is_better=True, scale=1, unit="", difference_unit="", margin=0.0,
    digits=3,
)  # fmt: skip

SCORES: dict[str, Score] = {
    score.name: score
    for score in (
        Score(
            name="probe",
            title="probe, block minus encoder",
            measures="how well a linear reader of the block's output behind mappers that are not trained predicts the "
            "targets of held-out items (accuracy of classes, R² of numbers), minus the same for the encoder's own "
            "tokens at the same place",
            why="What a linear reader still finds behind the block, training does not first have to win back.",
            interval="t over draws of W1",
            unit=None,
            measure=probe.measure,
            is_difference=True,
        ),
        Score(
            name="cka",
            title="CKA to the encoder",
            measures="linear CKA (unbiased) between the block's output and the encoder's tokens that enter it, over "
            "tokens of held-out items",
            why="A block that leaves the tokens' geometry alone disturbs the encoder less, and later layers can "
            "read what it gives.",
            interval="t over draws of W1",
            unit=_COEFFICIENT,
            measure=cka.measure,
        ),
        Score(
            name="coherence",
            title="gradient coherence",
            measures="how alike the loss's gradients of different minibatches are at the start, for all that is "
            "trained: 1 for equal ones, 0 for unrelated ones",
            why="Where minibatches agree on the way, the first steps go further.",
            interval="jackknife over minibatches, of one draw of W1",
            unit=_COEFFICIENT,
            measure=coherence.measure,
        ),
    )
}


def check_scores(names: Sequence[str]) -> None:
    """Refuse names that are no score.

    Raises:
        RecipeError: It lists those there are.
    """
    for name in names:
        if name not in SCORES:
            extra = " Short training is switched on by --train-epochs." if name == "train" else ""
            raise RecipeError(
                f"--scores {name}: there is no such score",
                f"{suggest(name, SCORES)} One of: {', '.join(SCORES)}.{extra}",
            )
