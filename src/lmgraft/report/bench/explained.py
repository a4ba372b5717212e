"""The text of `lmgraft bench --explain`: what its template says, gathered."""

from __future__ import annotations

from functools import partial
from typing import Any

from lmgraft.graft.forms.problem import Problem
from lmgraft.report.html import render
from lmgraft.studies.bench.explain import Candidate, Explanation, LayerExplained
from lmgraft.words.numbers import short_count

_HEADER = ("form", "multiply-adds", "bytes moved", "expected", "measured")
_GRADIENTS = {
    "the tokens": "x_grad",
    "W1": "mapper_grad",
    "the block": "block_grad",
    "its norms": "norm_grad",
    "low-rank parts": "lora_grad",
}
_WAYS = {
    "formed": "are formed at the LLM's width",
    "folded": "come from folded matrices",
    "absorbed": "are not formed at all",
    "absorbed_fold": "are absorbed through a fold",
}
_amount = partial(short_count, smallest=1e6)


def describe(explained: Explanation) -> str:
    """The explanation as text, for people."""
    return render(
        "explained.txt",
        cell=explained.cell,
        form=explained.form,
        budget=explained.budget,
        layers=[_layer(layer) for layer in explained.layers],
        why_not=explained.why_not,
        host=explained.host_multiply_adds,
        graft=explained.graft_multiply_adds,
        amount=_amount,
        ms=_ms,
    ).rstrip("\n")


def _layer(layer: LayerExplained) -> dict[str, Any]:
    chosen, problem = layer.chosen(), layer.problem
    measured = [(one.measured.median, one) for one in layer.candidates if one.measured is not None]
    best, quickest = min(measured, key=lambda pair: pair[0], default=(None, None))
    is_slower = best is not None and chosen.measured is not None and quickest is not chosen
    return {
        "problem": problem,
        "gradients": _gradients(problem),
        "lines": _lines(layer),
        "chosen": chosen,
        "dense": next(one for one in layer.candidates if one.plan is None),
        "ways": _ways(chosen),
        "quickest": quickest,
        "slower": chosen.measured.median / best - 1 if is_slower and chosen.measured and best else None,
    }


def _gradients(problem: Problem) -> list[str]:
    return [name for name, flag in _GRADIENTS.items() if getattr(problem, flag)]


def _lines(layer: LayerExplained) -> list[str]:
    """The table, its columns aligned, the chosen form marked."""
    table = [_HEADER, *map(_row, layer.candidates)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    marks = ["  ", *("> " if one.is_chosen else "  " for one in layer.candidates)]
    return [
        mark + "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
        for mark, row in zip(marks, table, strict=True)
    ]


def _row(one: Candidate) -> tuple[str, ...]:
    m = one.measured
    measured = "not tried" if m is None else f"{_ms(m.median)} ({1000 * m.q1:.1f} to {1000 * m.q3:.1f})"
    return (one.name, _amount(one.multiply_adds), _amount(one.bytes_moved, unit="B"), _ms(one.expected), measured)


def _ways(chosen: Candidate) -> str:
    plan = chosen.plan
    if plan is None:
        return ""
    if plan.key == plan.value:
        return f", and keys and values {_WAYS[plan.key]}"
    return f"; keys {_WAYS[plan.key]}, and values {_WAYS[plan.value]}"


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:,.1f} ms"
