"""`approximate` and `exact`: the one declared approximation, and its error on the user's own data.

For models that read many tokens, where exact forms save little: the block's output projection
and MLP are then nearly all there is to compute. Nothing is approximated unless it was asked for,
and asking returns the measured error.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lmgraft.errors import ApproximationError
from lmgraft.graft.layer import GraftLayer, require_grafts
from lmgraft.graft.reads import reading_all_tokens
from lmgraft.registry import suggest

MODES = ("auto", "int8", "16bit")


@dataclass(frozen=True, kw_only=True)
class ApproximationReport:
    """What an approximation costs and saves, measured on one sample of the user's data.

    Relative errors are ||approximate - exact|| / ||exact||.
    """

    mode: str
    device: str
    samples: int
    """Length of the first axis of the model's output."""
    graft_error: float
    """Of the graft's output for the tokens that the head reads."""
    graft_error_all_tokens: float
    """Of the graft's output for all tokens."""
    output_error: float
    """Of the model's output."""
    changed: float | None
    """Share of samples whose largest column changes, for an output (B, K), such as of classes."""
    seconds_exact: float
    """Of a whole call of the model, median."""
    seconds_approximate: float
    speedup: float
    """Median over pairs of calls, exact / approximate."""
    speedup_range: tuple[float, float]
    """Least and greatest of the pairs."""
    memory: int
    """Bytes of rounded weights beside the exact ones, which stay."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"speedup_range": list(self.speedup_range)}

    def __str__(self) -> str:
        low, high = self.speedup_range
        changed = "" if self.changed is None else f"; largest column changed in {100 * self.changed:.1f} %"
        return (
            f"approximate graft: {self.mode} on {self.device}, measured on {self.samples} samples\n"
            f"  error of the graft   {_percent(self.graft_error)} (tokens read), "
            f"{_percent(self.graft_error_all_tokens)} (all tokens)\n"
            f"  error of the output  {_percent(self.output_error)}{changed}\n"
            f"  time of a call       {self.seconds_exact:.3g} s exact, {self.seconds_approximate:.3g} s approximate: "
            f"{self.speedup:.2f} times as fast ({low:.2f} to {high:.2f})\n"
            f"  memory added         {self.memory / 2**20:.1f} MiB"
        )


def approximate(model: nn.Module, sample_input: Any, mode: str = "auto", *, repeats: int = 3) -> ApproximationReport:
    """Compute the grafts of `model` in fewer bits from now on, where no gradient can flow.

    Calls in eval mode under `no_grad` or `inference_mode` (or where nothing requires gradients)
    are approximate. Training stays exact, and so are saved files, copies, pickles, exported and
    compiled models. Moving or casting the model, or any change of the block's weights, switches
    back to exact. Mappers may be trained on; the error then is one of other weights, so measure
    again.

    Args:
        model: A grafted model, on the device where it will run; all its grafts are meant.
        sample_input: What the model is called with: a tensor, a tuple of arguments (tokens and a padding
            mask, two encoders' inputs), or a mapping of named ones. Some dozens of samples of the data it is meant for.
        mode: "int8" (CPU), "16bit" (bfloat16), or "auto": int8 on a CPU, 16 bits elsewhere.
        repeats: Pairs of calls that are timed.

    Returns:
        The error and the times on `sample_input`, measured in eval mode.

    Raises:
        HostError: If the model is not grafted.
        ApproximationError: If the mode is not known or not to be had here, if outputs are not
            finite, or if the approximation could not be used. The model is then exact.
    """
    grafts = list(require_grafts(model).values())
    if mode not in MODES:
        raise ApproximationError(f"mode {mode!r} is not known", suggest(str(mode), MODES))
    if not all(len(inserted.block.layers) and not inserted.block.opaque for inserted in grafts):
        raise ApproximationError("this graft holds no block whose products could be rounded", "leave it exact")
    device = next(grafts[0].block.parameters()).device
    if mode == "auto":
        mode = "int8" if device.type == "cpu" else "16bit"
    if mode == "int8" and device.type != "cpu":
        raise ApproximationError(f"int8 runs on CPUs only, the block lies on {device}", 'use mode="16bit"')
    call = _caller(model, sample_input)
    _clear(grafts)
    try:
        with _evaluating(model), torch.no_grad():
            return _measure(model, grafts, call, mode, device, max(1, repeats))
    except BaseException:
        _clear(grafts)
        raise


def exact(model: nn.Module) -> nn.Module:
    """Switch `model` back; its outputs are again, bit for bit, what they were. Returns `model`.

    Raises:
        HostError: If the model is not grafted.
    """
    _clear(require_grafts(model).values())
    return model


def _clear(grafts: Iterable[GraftLayer]) -> None:
    for inserted in grafts:
        inserted.compute.approximation.clear()


def _measure(
    model: nn.Module,
    grafts: Sequence[GraftLayer],
    call: Callable[[], Any],
    mode: str,
    device: torch.device,
    repeats: int,
) -> ApproximationReport:
    output, read = _run(grafts, call)
    with reading_all_tokens(model):
        _, everything = _run(grafts, call)
    _check_finite(output, "exact")
    holders = [inserted.compute.approximation for inserted in grafts]
    for holder, inserted in zip(holders, grafts, strict=True):
        holder.make(inserted.block, mode)
    before = [holder.calls for holder in holders]
    near_output, near_read = _run(grafts, call)
    with reading_all_tokens(model):
        _, near_everything = _run(grafts, call)
    if any(holder.calls == calls for holder, calls in zip(holders, before, strict=True)):
        raise ApproximationError(
            "the approximation was not used in a call of the model",
            "remove hooks from the block's modules, and give the model itself, not a compiled one",
        )
    _check_finite(near_output, "approximate")
    exactly, nearly = _time(grafts, call, device, repeats)
    pairs = [a / b for a, b in zip(exactly, nearly, strict=True)]
    first = output[0]
    classes = first.dim() == 2 and first.shape[1] > 1 and len(output) == 1
    return ApproximationReport(
        mode=mode,
        device=str(device),
        samples=first.shape[0] if first.dim() else 1,
        graft_error=_error(near_read, read),
        graft_error_all_tokens=_error(near_everything, everything),
        output_error=_error(near_output, output),
        changed=float((first.argmax(1) != near_output[0].argmax(1)).double().mean()) if classes else None,
        seconds_exact=median(exactly),
        seconds_approximate=median(nearly),
        speedup=median(pairs),
        speedup_range=(min(pairs), max(pairs)),
        memory=sum(holder.added_memory() for holder in holders),
    )


def _run(grafts: Sequence[GraftLayer], call: Callable[[], Any]) -> tuple[list[Tensor], list[Tensor]]:
    """Floating tensors of the model's output, and what the grafts gave on the way."""
    seen: list[tuple[nn.Module, Tensor]] = []
    with ExitStack() as hooks:
        for inserted in grafts:
            handle = inserted.register_forward_hook(lambda module, _, out: seen.append((module, out)))
            hooks.callback(handle.remove)
        leaves = tree_leaves(call())
    output = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    ran = {id(module) for module, _ in seen}
    if not output or len(ran) < len(grafts):
        what = "gives no tensor of real numbers" if not output else "did not run its graft"
        raise ApproximationError(f"the model {what} for this sample", "give a sample that the model is meant for")
    return output, [out for _, out in seen]


def _time(
    grafts: Sequence[GraftLayer], call: Callable[[], Any], device: torch.device, repeats: int
) -> tuple[list[float], list[float]]:
    """Seconds of calls, exact and approximate by turns, so that a busy machine slows both."""
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(repeats):
        for exactly in (True, False) if turn % 2 == 0 else (False, True):
            _pause(grafts, exactly)
            try:
                _wait(device)
                start = time.perf_counter()
                call()
                _wait(device)
                seconds[exactly].append(time.perf_counter() - start)
            finally:
                _pause(grafts, False)
    return seconds[True], seconds[False]


def _pause(grafts: Sequence[GraftLayer], exactly: bool) -> None:
    for inserted in grafts:
        inserted.compute.approximation.paused = exactly


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards every module is in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _caller(model: nn.Module, sample: Any) -> Callable[[], Any]:
    if isinstance(sample, Mapping):
        return lambda: model(**sample)
    arguments = sample if isinstance(sample, tuple) else (sample,)
    return lambda: model(*arguments)


def _check_finite(tensors: list[Tensor], what: str) -> None:
    if not all(bool(t.isfinite().all()) for t in tensors):
        raise ApproximationError(
            f"the {what} output is not finite on this sample", "look at the sample and at the model's weights"
        )


def _error(near: list[Tensor], reference: list[Tensor]) -> float:
    """||a - b|| / ||b|| over all tensors together, in float64."""
    difference = sum(float((a.double() - b.double()).square().sum()) for a, b in zip(near, reference, strict=True))
    size = sum(float(b.double().square().sum()) for b in reference)
    if size:
        return float((difference / size) ** 0.5)
    return 0.0 if difference == 0 else float("inf")


def _percent(error: float) -> str:
    return f"{100 * error:.3g} %"
