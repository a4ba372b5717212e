"""How the graft knows what is read: asked at each call, never stored.

`model(x)` computes the graft's query side only for the tokens that the head reads;
`forward_features`, `forward_intermediates` and everything else get all tokens. timm's `forward`
calls `forward_features`, so the difference is made where only a call of the model passes:

1. A forward pre-hook on the host asks `Host.reads` of the call and opens a frame; an always-called
   forward hook closes it, also after an error. Outside a frame all tokens are read. Each of several
   grafts has hooks and frames of its own.
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
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from lmgraft.contracts import Reads, is_jit_traced
from lmgraft.errors import HostError

_MOST_REMEMBERED = 256  # forwards whose backward is still to come


@dataclass(frozen=True)
class _Frame:
    state: ReadState
    reads: Reads
    pinned: bool
    """`reading` said so: calls inside ask nobody."""
    is_call: bool
    """Opened by a call of the host, and not by `reading` itself."""
    parent: _Frame | None
    ran: list[bool] = field(default_factory=list)
    """Not empty once the graft has run inside."""


def _without(frame: _Frame, frames: _Frame | None) -> _Frame | None:
    """`frames`, innermost first, without `frame`: the hooks of several grafts close theirs in any order."""
    if frames is None or frames is frame:
        return frame.parent
    return replace(frames, parent=_without(frame, frames.parent))


_frames: ContextVar[_Frame | None] = ContextVar("lmgraft_reads", default=None)


class ReadState:
    """What one graft keeps between hooks. Copies start empty: nothing in here outlives a call."""

    def __init__(self, applies: bool = False) -> None:
        self.applies = applies
        """Whether nothing behind the graft needs tokens that are not read."""
        self.traced: Reads = None
        self.pinned: tuple[Reads, ...] = ()
        """What `reading` said, innermost last, for traces."""
        self._last: Reads = None
        self._remembered: OrderedDict[tuple[int, ...], Reads] = OrderedDict()

    def __deepcopy__(self, memo: dict[int, Any]) -> ReadState:
        return ReadState(self.applies)

    def __reduce__(self) -> tuple[type[ReadState], tuple[bool]]:
        return ReadState, (self.applies,)

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
        reads = frame.reads if frame is not None and frame.is_call else None
        if frame is not None and frame.is_call:
            frame.ran.append(True)
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
    if is_jit_traced():  # sizes are tensors, and no backward pass follows
        return ()
    try:
        return (x.data_ptr(), *x.shape)
    except RuntimeError:  # under functorch transforms a tensor has no address
        return ()


class OpenReads:
    """Forward pre-hook on the host, with keyword arguments: opens a frame with what is read.

    That is `reads` where the graft's config says so, or what `asked` says of the call.
    """

    def __init__(
        self,
        state: ReadState,
        asked: Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Reads],
        reads: Reads,
    ) -> None:
        self.state, self.asked, self.reads = state, asked, reads

    def __call__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        state = self.state
        if torch.compiler.is_compiling():
            state.traced = state.pinned[-1] if state.pinned else self._ask(model, args, kwargs)
            return
        parent = state.frame()
        pinned = parent is not None and parent.pinned
        reads = parent.reads if parent is not None and pinned else self._ask(model, args, kwargs)
        _frames.set(_Frame(state, reads, pinned, True, _frames.get()))

    def _ask(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Reads:
        return self.asked(model, args, kwargs) if self.reads is None else self.reads


class CloseReads:
    """Always-called forward hook on the host: closes the frame.

    Raises:
        HostError: If the call did not run the graft: the model passed the module at the point by.
    """

    def __init__(self, state: ReadState) -> None:
        self.state = state

    def __call__(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if torch.compiler.is_compiling():
            self.state.traced = None
            return
        frame = self.state.frame()
        if frame is None:
            return
        _frames.set(_without(frame, _frames.get()))
        if not frame.ran and output is not None:  # after an error there is none
            why, remedy = self._reason(model)
            raise HostError(f"this call of {type(model).__qualname__} passed the graft by: {why}", remedy)

    def _reason(self, model: nn.Module) -> tuple[str, str]:
        """Why the module at the graft's point was not called, and what to do."""
        points = [(p, m) for p, m in model.named_modules() if any(map(self._is_beside, m._forward_hooks.values()))]
        if not points:
            what = "the layer at which it lies is no longer in the model"
            return what, "ungraft the model, and graft it as it is now"
        path, module = points[0]
        last = f"graft at the last child: at={f'{path}.{next(reversed(module._modules), None)}'!r}"
        if isinstance(module, nn.ModuleList | nn.ModuleDict):
            return f"{path!r} is a {type(module).__name__}, of which only the children are called", last
        if module._modules and any(_checkpoints(part) for part in model.modules()):
            return f"gradient checkpointing calls the children of {path!r}, and not {path!r} itself", last
        return f"it did not run {path!r}", "graft at a layer that every call runs: at=, as in model.named_modules()"

    def _is_beside(self, hook: object) -> bool:
        return hook is not self and getattr(hook, "state", None) is self.state


def _checkpoints(module: nn.Module) -> bool:
    return any(getattr(module, name, False) is True for name in ("grad_checkpointing", "gradient_checkpointing"))


@contextmanager
def reading(model: nn.Module, reads: Reads) -> Iterator[None]:
    """Inside, `model(x)` computes the graft for the tokens `reads` and hands those on, (B, R, V).

    For tokens known only at the call, as the target agent of each scene: a long tensor (B, R) of
    indices. What comes behind the graft must expect R tokens. A model without a graft is left
    alone; a compiled one is traced again inside.

    Raises:
        HostError: If `reads` is a tensor that holds no indices, or layers that need all tokens
            follow the graft.
    """
    if isinstance(reads, Tensor) and (reads.dtype not in (torch.int64, torch.int32) or reads.dim() not in (1, 2)):
        raise HostError(
            f"reads is a {reads.dtype} tensor of shape {tuple(reads.shape)}",
            "give indices: a long tensor (R,) or (B, R)",
        )
    states = [s for m in model.modules() if isinstance(s := getattr(m, "read_state", None), ReadState)]
    if reads is not None and states:
        states = [state for state in states if state.applies]
        if not states:
            raise HostError("layers behind the graft need every token", "graft at the tail to read some only")
        if len(states) > 1:
            raise HostError(
                f"{len(states)} grafts of this model could leave tokens unread",
                "say which: reading(model.encoder_a, ...), or reading(graft, ...) of one of find_grafts(model)",
            )
    before = _frames.get()
    for state in states:
        state.pinned = (*state.pinned, reads)
        _frames.set(_Frame(state, reads, True, False, _frames.get()))
    try:
        yield
    finally:
        _frames.set(before)
        for state in states:
            state.pinned = state.pinned[:-1]


def reading_all_tokens(model: nn.Module) -> AbstractContextManager[None]:
    """Inside, `model(x)` computes the graft for every token, as `forward_features` always does.

    For hooks and analyses that look at tokens which the head does not read. See `reading`.
    """
    return reading(model, None)
