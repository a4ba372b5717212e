"""The words and the table of `lmgraft bench --explain`."""

from __future__ import annotations

from lmgraft.graft.forms.problem import Problem
from lmgraft.studies.bench.explain import Candidate, Explanation, LayerExplained

_HEADER = ("form", "multiply-adds", "bytes moved", "expected", "measured")


def describe(explained: Explanation) -> str:
    """The explanation as text, for people."""
    cell = explained.cell
    parts = [
        f"{cell.host}, batch {cell.batch}, {'training step' if cell.phase == 'train' else 'evaluation'}, "
        f"{cell.dtype} on {cell.device}\nblock: {cell.block}, stored in {cell.storage}"
    ]
    for number, layer in enumerate(explained.layers):
        parts.append(_layer(layer, number, len(explained.layers), explained))
    if explained.why_not:
        parts.append(f"The planner was not asked: {explained.why_not}.")
    return "\n\n".join([*parts, _law(explained)])


def _layer(layer: LayerExplained, number: int, count: int, explained: Explanation) -> str:
    head = f"Layer {number + 1} of {count} of the block\n" if count > 1 else ""
    table = [_HEADER, *(_row(one) for one in layer.candidates)]
    widths = [max(len(row[column]) for row in table) for column in range(len(_HEADER))]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in table]
    marks = ["  ", *("> " if one.is_chosen else "  " for one in layer.candidates)]
    shown = "\n".join(mark + line for mark, line in zip(marks, lines, strict=True))
    note = (
        "Counted and expected are the layer's matrix products, W1 and folds that have to be made included"
        f"{', and their backward passes' if explained.cell.phase == 'train' else ''}; "
        "measured is the whole graft by itself, all forms in turn."
    )
    return f"{head}{_posed(layer.problem)}\n\n{shown}\n\n{note}\n{_why(layer, explained)}"


def _posed(p: Problem) -> str:
    c = p.config
    flows = {
        "the tokens": p.x_grad,
        "W1": p.mapper_grad,
        "the block": p.block_grad,
        "its norms": p.norm_grad,
        "low-rank parts": p.lora_grad,
    }
    gradients = ", ".join(name for name, does in flows.items() if does)
    narrow = f"tokens {p.narrow} wide" if p.narrow is not None else "its input is no linear image of the tokens"
    folds = "lie ready" if p.folds_ready else "would be made in every step"
    heads = f"{c.num_heads} heads of {c.head_dim}, {c.num_kv_heads} for keys and values"
    return (
        f"asked: {p.batch} x {p.tokens} tokens, {p.reads} read of each sample; {narrow}; block {c.dim} wide, {heads}, "
        f"MLP {c.mlp_dim}\n       gradients flow to {gradients or 'nothing'}; folds {folds}"
    )


def _row(one: Candidate) -> tuple[str, ...]:
    measured = "not tried" if one.measured is None else _spread(one)
    return (one.name, _amount(one.multiply_adds), _amount(one.bytes_moved, "B"), _ms(one.expected), measured)


def _spread(one: Candidate) -> str:
    assert one.measured is not None
    return f"{_ms(one.measured.median)} ({1000 * one.measured.q1:.1f} to {1000 * one.measured.q3:.1f})"


def _why(layer: LayerExplained, explained: Explanation) -> str:
    chosen, p = layer.chosen(), layer.problem
    said = [f"Chosen: {chosen.name}."]
    if explained.form != "auto":
        said.append(f"form={explained.form!r} left the planner only plans of that kind.")
    dense = next(one for one in layer.candidates if one.plan is None)
    said.append(
        f"{'All' if p.reads == p.tokens else p.reads} of {p.tokens} tokens are read"
        f"{_in_words(chosen)}: {_amount(chosen.multiply_adds)} multiply-adds, "
        f"{100 * chosen.multiply_adds / dense.multiply_adds:.3g} % of the dense form's {_amount(dense.multiply_adds)}."
    )
    said.append(f"By multiply-adds, bytes and products it is expected to take {_ms(chosen.expected)}.")
    measured = [one for one in layer.candidates if one.measured is not None]
    quickest = min(measured, key=lambda one: one.measured.median if one.measured else float("inf"))
    if chosen.measured is not None and quickest.measured is not None and quickest is not chosen:
        share = chosen.measured.median / quickest.measured.median - 1
        said.append(f"Measured here, it took {100 * share:.0f} % more time than the quickest, {quickest.name}.")
    elif chosen.measured is not None:
        said.append("It was also the quickest that was measured here.")
    return " ".join(said)


def _in_words(chosen: Candidate) -> str:
    plan = chosen.plan
    if plan is None:
        return ""
    ways = {
        "formed": "are formed at the LLM's width",
        "folded": "come from folded matrices",
        "absorbed": "are not formed at all",
        "absorbed_fold": "are absorbed through a fold",
    }
    if plan.key == plan.value:
        return f", and keys and values {ways[plan.key]}"
    return f"; keys {ways[plan.key]}, and values {ways[plan.value]}"


def _law(explained: Explanation) -> str:
    host, own = explained.host_multiply_adds, explained.graft_multiply_adds
    cost = f"{100 * own / host:.1f} %" if own < host else f"{own / host:.1f} times as much"
    return (
        f"The law: forward, for one sample, the host does {_amount(host)} multiply-adds and the graft {_amount(own)} "
        f"({cost}). A block is nearly free where the first is much larger than the second."
    )


def _amount(count: int, unit: str = "") -> str:
    for prefix, size in (("T", 10**12), ("G", 10**9), ("M", 10**6)):
        if count >= size:
            return f"{count / size:.3g} {prefix}{unit}"
    return f"{count:,} {unit}".rstrip()


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:,.1f} ms"
