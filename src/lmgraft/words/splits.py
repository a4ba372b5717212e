"""Which items were trained on and tested, and which chose the epoch, where that is not plain."""

from __future__ import annotations

from collections.abc import Mapping

from lmgraft.words.numbers import sentence_case


def of_splits(things: str, selection: str, names: Mapping[str, str]) -> str:
    """One sentence; empty where validation items chose the epoch, and the data give their splits no names.

    Args:
        things: What an item is called, in the plural.
        selection: What chose the epoch, as `Data.selection` has it.
        names: As `Data.split_names` gives them.
    """
    if selection == "val" and not names:
        return ""
    parts = [
        (f"{done} on", names[split]) for split, done in (("train", "trained"), ("test", "tested")) if split in names
    ]
    of = [f"the {things} of", "those of"]
    used = ", ".join(f"{done} {of[number]} {name}" for number, (done, name) in enumerate(parts))
    return sentence_case("; ".join(filter(None, (used, _chosen(things, selection, names)))) + ".")


def _chosen(things: str, selection: str, names: Mapping[str, str]) -> str:
    if selection == "last":
        return "nothing chose the epoch: the last one counts"
    if selection == "test":
        return f"the test {things} themselves chose the epoch, so that the figures are too good by an unknown amount"
    which = f" ({names['val']})" if "val" in names else ""
    return f"validation {things}{which} chose the epoch"
