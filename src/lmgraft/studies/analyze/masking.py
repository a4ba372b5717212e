"""What a run's metric loses where tokens are masked, by the rule that chooses them.

Each rule masks equally many tokens of an item. Rules look at the run's own unmasked pass, but for "random block",
which looks at what a random block amplifies in the same items.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmgraft.analysis.activations import distance_to_mean
from lmgraft.analysis.causal import amplification, elsewhere, masked_input, masked_keys, top_share
from lmgraft.analysis.observe import Observed, observe
from lmgraft.contracts import Metric
from lmgraft.studies.analyze.look import Arrays, Opened
from lmgraft.studies.analyze.results import Rule, Where
from lmgraft.tasks.items import joined

Amplified = dict[int, Tensor]
"""Index of an item -> (T,), how much a random block amplifies each of its tokens."""


def losses(
    run: Opened,
    samples: Sequence[int],
    shares: Sequence[float],
    *,
    size: int,
    seed: int,
    other: Amplified,
    say: Callable[[int], None],
) -> tuple[Arrays, Amplified]:
    """What each item reaches by itself, as it is ("whole") and with tokens masked ("WHERE/RULE/SHARE").

    Args:
        run: A grafted run.
        samples: Which of the test items.
        shares: Of an item's tokens.
        size: Items a pass.
        seed: Of random tokens; an item's depend on its index too, and not on the others of its pass.
        other: What a random block amplifies; where it is empty, that rule is left out.
        say: Is told how many items are done.

    Returns:
        The columns with "index" and "group", and what this run's block amplifies.
    """
    inserted = run.inserted
    assert inserted is not None
    metric, host = run.task.alone, run.host
    parts: list[dict[str, Any]] = []
    amplified: Amplified = {}

    def score(batch: Any) -> Tensor:
        with torch.no_grad():
            return run.task.score_alone(batch)[metric.column]

    for batch in run.batches(samples, size):
        inputs = run.task.inputs(batch)
        noted = observe(run.model, *inputs, call=lambda batch=batch: run.task.outputs(batch))  # type: ignore[misc]
        values = _by_rule(noted, batch, other)
        amplified |= dict(zip(batch.index.tolist(), values["amplified"].cpu(), strict=True))
        part = {"index": batch.index, "group": batch.group, "whole": run.task.score(noted.output, batch)[metric.column]}
        places = _places(run, noted, inputs)
        for share in shares:
            draws = [np.random.default_rng([seed, round(1000 * share), index]) for index in batch.index.tolist()]
            for rule, chosen in _chosen(values, share, noted, places, draws):
                for where, masking in _maskings(run, host, chosen, noted.padded).items():
                    with masking:
                        part[f"{where}/{rule}/{share:g}"] = score(batch)
        parts.append({name: torch.as_tensor(value).cpu().numpy() for name, value in part.items()})
        say(sum(len(part["index"]) for part in parts))
    return joined(parts), amplified


def carried(run: Opened, batch: Any, metric: Metric, size: int) -> Tensor:
    """How much of an item's metric each of its tokens carries: what is lost when it alone is masked at the input, (T,).

    Args:
        run: Any run whose encoder keeps its tokens.
        batch: Of one item.
        metric: One whose column the task's `score_alone` has.
        size: Items a pass.

    Raises:
        HostError: If its encoder does not keep its tokens.
    """

    def score(of: Any) -> Tensor:
        return run.task.score_alone(of)[metric.column].double()

    with torch.no_grad():
        whole = score(batch)
        noted = observe(run.model, *run.task.inputs(batch))
        count = noted.at[run.last].tokens.shape[1]
        lost = []
        every = torch.eye(count, dtype=torch.bool, device=whole.device)
        for first in range(0, count, size):
            alone = every[first : first + size]
            copies = {k: v.repeat_interleave(len(alone), 0) for k, v in batch._asdict().items()}
            padded = None if noted.padded is None else noted.padded.expand(len(alone), -1)
            with masked_input(run.model, run.host, alone, padded):
                lost.append(metric.direction * (whole - score(batch._replace(**copies))))
    return torch.cat(lost or [torch.zeros(0)]).cpu()


def passes(shares: Sequence[float], rules: int) -> int:
    """Forward passes an item: one that is looked at, and one for each share, rule and place of masking."""
    return 2 + 2 * len(shares) * rules


def _maskings(
    run: Opened, host: Any, chosen: Tensor, padded: Tensor | None
) -> dict[Where, AbstractContextManager[None]]:
    assert run.inserted is not None
    return {"input": masked_input(run.model, host, chosen, padded), "keys": masked_keys(run.inserted, chosen)}


def _places(run: Opened, noted: Observed, inputs: tuple[Any, ...]) -> Tensor | None:
    """Where tokens lie in space, (B, T, k), where a grid does not say it of each item."""
    layout = run.host.layout
    if layout.places is None or (noted.padded is None and noted.at["mapper_out"].grid is not None):
        return None
    return layout.places(run.model, inputs)[:, layout.num_prefix_tokens :].detach()


def _by_rule(noted: Observed, batch: Any, other: Amplified) -> dict[Rule, Tensor]:
    """Rule -> a value (B, T) for each token; those with the largest are masked."""
    before, after, padded = noted.at["encoder"].tokens, noted.at["mapper_out"].tokens, noted.padded
    values: dict[Rule, Tensor] = {
        "amplified": amplification(before, after, padded),
        "magnitude": distance_to_mean(before, padded),
    }
    if "encoder" in noted.attention:
        values["attention"] = noted.attention["encoder"].mean(1)
    found = [other.get(index) for index in batch.index.tolist()]
    if all(one is not None and len(one) == before.shape[1] for one in found):
        values["random block"] = torch.stack([one for one in found if one is not None]).to(before.device)
    return values


def _chosen(
    values: dict[Rule, Tensor],
    share: float,
    noted: Observed,
    places: Tensor | None,
    draws: Sequence[np.random.Generator],
) -> Iterator[tuple[Rule, Tensor]]:
    """Each rule's tokens (B, T) bool; random ones lie as those that are amplified."""
    for rule, of in values.items():
        chosen = top_share(of, share, noted.padded)
        yield rule, chosen
        if rule == "amplified":
            grid = noted.at["mapper_out"].grid
            yield "random", elsewhere(chosen, draws, grid=grid, places=places, padded=noted.padded)
