"""What the quickstart's numbers say and what they do not, in sentences."""

from __future__ import annotations

from collections.abc import Mapping

from lmgraft.contracts import Metric
from lmgraft.words import numbers as write
from lmgraft.words.paper import SMALL_LLMS

_CONTROLS = {"plain": "the encoder by itself", "random_frozen": "a frozen random block"}


def statements(
    values: Mapping[str, float], seconds: Mapping[str, float], metric: Metric, items: int, things: str
) -> list[str]:
    """Sentences on one run of each arm.

    Args:
        values: Arm -> the metric on the test items.
        seconds: Arm -> how long its training took.
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
        f"Training with the block took {write.ratio(seconds['llm'] / seconds['plain'])} times as long as without it.",
        f"One seed proves nothing. The intervals cover the choice of the {items:,} test {things} for these trained "
        "models; how far other seeds would lie from them, one run cannot tell. A verdict needs several seeds for "
        "each arm.",
        f"{SMALL_LLMS} The quickstart's LLM has 0.135 billion.",
    ]
