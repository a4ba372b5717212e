"""What stands under a table of a robustness suite."""

from __future__ import annotations


def of_intervals(things: str, *, levels: bool, lost: bool) -> str:
    """Of what the intervals are.

    Args:
        things: What an item is called, in the plural.
        levels: Whether the table has means over severities.
        lost: Whether it has intervals of what is lost.
    """
    said = [f"Intervals are 95 % over test {things}, of one trained model: they say nothing of another seed."]
    if levels:
        said.append(f"Means over severities have none, since the same {things} come several times.")
    if lost:
        said.append(
            f"What is lost is the difference of the same {things} one by one, and its interval that of its mean."
        )
    return " ".join(said)
