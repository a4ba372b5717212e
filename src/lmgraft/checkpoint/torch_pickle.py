"""The pickle in a torch checkpoint, read as data: tensor records come out, nothing is called.

Python's own unpickler imports and calls what a file names, and takes memory by sizes that a file
claims. Here a name stays a name; the few calls that `torch.save` writes for a state dict are
understood as what they mean, and any other one is an error.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from lmgraft.errors import CheckpointError

STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_MOST_DIMS = 64
_REMEDY = "use the model's safetensors, or save its plain state dict with a current torch"


@dataclass(frozen=True)
class Storage:
    """A run of numbers in the archive."""

    key: str
    dtype: torch.dtype
    count: int


@dataclass(frozen=True)
class TensorRecord:
    """A tensor as a view of a storage; in numbers of the storage's type."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class _Name:
    """A class or function that the pickle names; never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"[:200]


class _Mark:
    """Where a tuple or a batch of items begins on the stack."""


_MARK = _Mark()


def read_state(data: bytes, label: str) -> dict[str, TensorRecord]:
    """The tensors of the state dict that `data` describes.

    Raises:
        CheckpointError: If the pickle is damaged, holds no tensors by name, or asks for a call
            other than torch's own for tensors; that call is not made.
    """
    try:
        state = _Reader(data, label).run()
    except (IndexError, KeyError, TypeError, ValueError, struct.error, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        kind = type(error).__name__
        raise CheckpointError(f"{label} is damaged: its pickle is not whole ({kind})", "fetch it again") from None
    items = state.items() if isinstance(state, dict) else ()
    found = {name: tensor for name, tensor in items if isinstance(name, str) and isinstance(tensor, TensorRecord)}
    if not found:
        raise CheckpointError(f"{label} holds no tensors by name at its top", "save the model's plain state dict")
    return found


class _Reader:
    """A stack machine for the opcodes of a state dict, pickle protocols 2 to 5."""

    def __init__(self, data: bytes, label: str) -> None:
        self.data, self.label, self.at = data, label, 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        while True:
            code = self.take(1)
            if code == b".":
                return self.stack.pop()
            action = _ACTIONS.get(code)
            if action is None:
                raise CheckpointError(
                    f"{self.label}: its pickle holds more than tensors (opcode {code!r}) and was not run", _REMEDY
                )
            action(self)

    def take(self, count: int) -> bytes:
        piece = self.data[self.at : self.at + count]
        if len(piece) < count:
            raise IndexError("the pickle ends early")
        self.at += count
        return piece

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self) -> str:
        end = self.data.index(b"\n", self.at)
        return self.take(end + 1 - self.at)[:-1].decode()

    def text(self, form: str) -> None:
        self.stack.append(self.take(self.number(form)).decode(errors="surrogatepass"))

    def since_mark(self) -> list[Any]:
        items: list[Any] = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def tuple_of(self, count: int) -> None:
        items = [self.stack.pop() for _ in range(count)]
        self.stack.append(tuple(items[::-1]))

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise TypeError("items of no dict")
        if not all(isinstance(key, (str, int)) for key in items[::2]):  # hashing nested tuples can take for ever
            raise TypeError("a key that is no text")
        target.update(zip(items[::2], items[1::2], strict=True))

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise TypeError("items of no list")
        target.extend(items)

    def named(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError("a name that is no text")
        self.stack.append(_Name(module, name))

    def stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.named(module, name)

    def storage(self) -> None:
        """BINPERSID: ("storage", type, key, device, count)."""
        tag, kind, key, _, count = self.stack.pop()
        known = isinstance(kind, _Name) and kind.module in ("torch", "torch.storage") and kind.name in STORAGES
        if tag != "storage" or not known or not isinstance(key, str) or not _is_count(count):
            raise CheckpointError(f"{self.label}: a storage of {_shown(kind)} cannot be read", _REMEDY)
        self.stack.append(Storage(key, STORAGES[kind.name], count))

    def call(self) -> None:
        """REDUCE: what torch.save writes for tensors, parameters and ordered dicts."""
        arguments, function = self.stack.pop(), self.stack.pop()
        meaning = _CALLS.get(str(function)) if isinstance(function, _Name) else None
        if meaning is None or not isinstance(arguments, tuple):
            raise CheckpointError(f"{self.label} asks to call {_shown(function)} when loaded; it was not run", _REMEDY)
        self.stack.append(meaning(*arguments))

    def set_state(self) -> None:
        """BUILD: attributes such as a state dict's `_metadata` are not needed."""
        self.stack.pop()
        if not isinstance(self.stack[-1], dict):
            raise CheckpointError(f"{self.label}: it holds objects that are no tensors; it was not run", _REMEDY)


def _shown(value: Any) -> str:
    """A name as it is; of anything else its type, for it may be without end."""
    return str(value) if isinstance(value, _Name) else f"a {type(value).__name__}"


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> TensorRecord:
    fits = isinstance(storage, Storage) and isinstance(shape, tuple) and isinstance(stride, tuple)
    if not fits or len(shape) != len(stride) or len(shape) > _MOST_DIMS:
        raise TypeError("a malformed tensor")
    if not all(_is_count(number) for number in (offset, *shape, *stride)):
        raise TypeError("a malformed tensor")
    return TensorRecord(storage, offset, shape, stride)


def _parameter(tensor: Any, *_: Any) -> TensorRecord:
    if not isinstance(tensor, TensorRecord):
        raise TypeError("a malformed parameter")
    return tensor


_CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "collections.OrderedDict": lambda: {},
}

_ACTIONS: dict[bytes, Callable[[_Reader], Any]] = {
    b"\x80": lambda r: r.take(1),  # PROTO
    b"\x95": lambda r: r.take(8),  # FRAME
    b"(": lambda r: r.stack.append(_MARK),
    b"0": lambda r: r.stack.pop(),
    b"N": lambda r: r.stack.append(None),
    b"\x88": lambda r: r.stack.append(True),
    b"\x89": lambda r: r.stack.append(False),
    b"K": lambda r: r.stack.append(r.number("<B")),
    b"M": lambda r: r.stack.append(r.number("<H")),
    b"J": lambda r: r.stack.append(r.number("<i")),
    b"\x8a": lambda r: r.stack.append(int.from_bytes(r.take(r.number("<B")), "little", signed=True)),  # LONG1
    b"G": lambda r: r.stack.append(r.number(">d")),
    b"X": lambda r: r.text("<I"),
    b"\x8c": lambda r: r.text("<B"),
    b"U": lambda r: r.text("<B"),  # SHORT_BINSTRING, written by Python 2
    b")": lambda r: r.stack.append(()),
    b"t": lambda r: r.stack.append(tuple(r.since_mark())),
    b"\x85": lambda r: r.tuple_of(1),
    b"\x86": lambda r: r.tuple_of(2),
    b"\x87": lambda r: r.tuple_of(3),
    b"]": lambda r: r.stack.append([]),
    b"a": lambda r: r.append([r.stack.pop()]),
    b"e": lambda r: r.append(r.since_mark()),
    b"}": lambda r: r.stack.append({}),
    b"s": lambda r: r.set_items([r.stack.pop(), r.stack.pop()][::-1]),
    b"u": lambda r: r.set_items(r.since_mark()),
    b"q": lambda r: r.memo.__setitem__(r.number("<B"), r.stack[-1]),
    b"r": lambda r: r.memo.__setitem__(r.number("<I"), r.stack[-1]),
    b"\x94": lambda r: r.memo.__setitem__(len(r.memo), r.stack[-1]),  # MEMOIZE
    b"h": lambda r: r.stack.append(r.memo[r.number("<B")]),
    b"j": lambda r: r.stack.append(r.memo[r.number("<I")]),
    b"c": lambda r: r.named(r.line(), r.line()),
    b"\x93": lambda r: r.stack_global(),
    b"Q": lambda r: r.storage(),
    b"R": lambda r: r.call(),
    b"b": lambda r: r.set_state(),
}
