"""How the graft knows what is read: asked at each call, never stored.

`model(x)` computes the graft's query side only for the tokens that the head reads;
`forward_features`, `forward_intermediates` and everything else get all tokens. timm's `forward`
calls `forward_features`, so the difference is made where only a call of the model passes:

1. A forward pre-hook on the host asks `Host.reads(model)` and opens a frame; an always-called
   forward hook closes it, also after an error. Outside a frame all tokens are read.
2. Frames lie in a ContextVar: two threads do not see each other's. Dynamo cannot trace a
   ContextVar being set, so while compiling or exporting the answer lies in an attribute of the
   graft instead; there it is a constant of the trace.
3. Gradient checkpointing recomputes an encoder layer, and the graft behind it, in the backward
   pass, outside every frame. The graft remembers, by the address of the layer's input, what that
   forward read: the checkpoint keeps its input alive, so no other tensor can have the address.

Hooks are instances of module-level classes, so that a grafted model deep-copies and pickles.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lmgraft.contracts import Host, Reads

_MOST_REMEMBERED = 256  # forwards whose backward is still to come


@dataclass(frozen=True)
class _Frame:
    state: ReadState
    reads: Reads
    pinned: bool
    """Opened by `reading_all_tokens`: calls inside must not narrow the reads."""
    parent: _Frame | None


_frames: ContextVar[_Frame | None] = ContextVar("lmgraft_reads", default=None)


class ReadState:
    """What one graft keeps between hooks. Copies start empty: nothing in here outlives a call."""

    def __init__(self) -> None:
        self.traced: Reads = None
        self.pinned_depth = 0
        self._last: Reads = None
        self._remembered: OrderedDict[tuple[int, ...], Reads] = OrderedDict()

    def __deepcopy__(self, memo: dict[int, Any]) -> ReadState:
        return ReadState()

    def __reduce__(self) -> tuple[type[ReadState], tuple[()]]:
        return ReadState, ()

    def frame(self) -> _Frame | None:
        """The innermost frame that was opened for this graft."""
        frame = _frames.get()
        while frame is not None and frame.state is not self:
            frame = frame.parent
        return frame

    def current(self, layer_input: Tensor) -> Reads:
        """Which tokens are read in this call of the encoder layer on `layer_input`."""
        if torch.compiler.is_compiling():
            return self.traced
        frame = self.frame()
        if _in_backward() and (frame is None or frame.pinned):
            return self._remembered.get(_address(layer_input), self._last)
        reads = None if frame is None else frame.reads
        self._remember(_address(layer_input), reads)
        return reads

    def _remember(self, address: tuple[int, ...], reads: Reads) -> None:
        self._last = reads
        self._remembered[address] = reads
        while len(self._remembered) > _MOST_REMEMBERED:
            self._remembered.popitem(last=False)


def _in_backward() -> bool:
    # torch.utils.checkpoint tells a recomputation apart in the same way.
    return torch._C._current_graph_task_id() != -1


def _address(x: Tensor) -> tuple[int, ...]:
    try:
        return (x.data_ptr(), *x.shape)
    except RuntimeError:  # under functorch transforms a tensor has no address
        return ()


class OpenReads:
    """Forward pre-hook on the host: opens a frame with what is read, `reads` or what the host says."""

    def __init__(self, state: ReadState, host: Host, reads: Reads) -> None:
        self.state, self.host, self.reads = state, host, reads

    def __call__(self, model: nn.Module, args: tuple[Any, ...]) -> None:
        state = self.state
        asked = self.host.reads(model) if self.reads is None else self.reads
        if torch.compiler.is_compiling():
            state.traced = None if state.pinned_depth else asked
            return
        parent = state.frame()
        pinned = parent is not None and parent.pinned
        _frames.set(_Frame(state, None if pinned else asked, pinned, _frames.get()))


class CloseReads:
    """Always-called forward hook on the host: closes the frame."""

    def __init__(self, state: ReadState) -> None:
        self.state = state

    def __call__(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if torch.compiler.is_compiling():
            self.state.traced = None
            return
        frame = self.state.frame()
        if frame is not None:
            _frames.set(frame.parent)


@contextmanager
def reading_all_tokens(model: nn.Module) -> Iterator[None]:
    """Inside, `model(x)` computes the graft for every token, as `forward_features` always does.

    For hooks and analyses that look at tokens which the head does not read. A model without a
    graft is left alone. A compiled model is traced anew inside.
    """
    states = [s for m in model.modules() if isinstance(s := getattr(m, "read_state", None), ReadState)]
    before = _frames.get()
    for state in states:
        state.pinned_depth += 1
        _frames.set(_Frame(state, None, True, _frames.get()))
    try:
        yield
    finally:
        _frames.set(before)
        for state in states:
            state.pinned_depth -= 1
