"""What the quickstart's numbers say and what they do not, in sentences."""

from __future__ import annotations

from collections.abc import Mapping

from lmgraft.analysis.timing import TimeRatio
from lmgraft.contracts import Metric
from lmgraft.words import numbers as write
from lmgraft.words.paper import SMALL_LLMS
from lmgraft.words.timing import of_the_block

_CONTROLS = {"plain": "the encoder by itself", "random_frozen": "a frozen random block"}


def statements(
    values: Mapping[str, float], cost: tuple[TimeRatio, float | None], metric: Metric, items: int, things: str
) -> list[str]:
    """Sentences on one run of each arm.

    Args:
        values: Arm -> the metric on the test items.
        cost: Of training with the block against without it: the ratio of times, and that of counted operations.
        metric: The metric.
        items: How many test items there were.
        things: What they are, in the plural.
    """
    sentences = []
    for control, name in _CONTROLS.items():
        gap = values["llm"] - values[control]
        way = "above" if gap > 0 else "below" if gap < 0 else "equal to"
        size = f"{write.size(gap, metric)} {way}" if gap else way
        sentences.append(f"With the frozen LLM block, {metric.title} was {size} {name} in this one run.")
    return [
        *sentences,
        *of_the_block(*cost),
        f"One seed proves nothing. The intervals cover the choice of the {items:,} test {things} for these trained "
        "models; how far other seeds would lie from them, one run cannot tell. A verdict needs several seeds for "
        "each arm.",
        f"{SMALL_LLMS} The quickstart's LLM has 0.135 billion.",
    ]
