"""Whether a run's test items would change what it has learnt in the same way: coherence of their gradients.

Nothing is trained. Each item is gone through twice, so that no more than two gradients are kept, however many items.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from lmgraft.analysis.coherence import FEWEST, Products, coherence, coherence_interval, gradients_of, products, summed
from lmgraft.analysis.observe import in_evaluation
from lmgraft.data.items import spread_over
from lmgraft.errors import RunError
from lmgraft.studies.analyze.look import Arrays, Opened
from lmgraft.studies.analyze.results import Coherence

PASSES = 2
"""Forward and backward an item."""


def independent(samples: Sequence[int], looked: Arrays, limit: int) -> list[int]:
    """At most `limit` samples, evenly spread, one of each group."""
    first = np.sort(np.unique(looked["group"], return_index=True)[1]).tolist()
    return [samples[first[i]] for i in spread_over(len(first), limit)]


def item_products(run: Opened, samples: Sequence[int], say: Callable[[int], None]) -> Arrays:
    """What coherence is made of: "PART/squares" and "PART/with_sum" of each item, for the parts that are trained.

    Args:
        run: Any run.
        samples: Which of the test items.
        say: Is told how many items are done.
    """
    steps = iter(range(1, PASSES * len(samples) + 1))

    def again() -> Iterator[dict[str, Tensor]]:
        for batch in run.batches(samples, 1):
            with torch.enable_grad():
                yield gradients_of(run.task, batch)
            done, rest = divmod(next(steps), PASSES)
            if not rest:
                say(done)

    with in_evaluation(run.task):
        of = products(again)
    return {f"{part}/{name}": v.numpy() for part, one in of.items() for name, v in one._asdict().items()}


def coherences(label: str, made: Arrays) -> list[Coherence]:
    """The graft by itself, the rest by itself, and all that is trained.

    Raises:
        RunError: If nothing is trained, there are too few items, or gradients are zero or not finite.
    """
    parts = {name.split("/")[0] for name in made}
    of = {
        part: Products(*(torch.from_numpy(made[f"{part}/{name}"]) for name in Products._fields))
        for part in sorted(parts)
    }
    if not of:
        raise RunError("nothing in it is trained")
    items = len(next(iter(of.values())).squares)
    if items < FEWEST:
        raise RunError(f"{items} independent items are too few", f"it takes {FEWEST}")
    every = {"whole": summed(of.values())} | (of if len(of) > 1 else {})
    return [
        Coherence(label=label, part=part, value=coherence(one), interval=coherence_interval(one), items=items)
        for part, one in every.items()
    ]
