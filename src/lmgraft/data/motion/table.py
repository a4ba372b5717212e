"""The scenes of a split as they are shown: prepared once, memory-mapped, each item one target of one scene.

<cache>/motion/<key>/00000.safetensors   256 scenes each: ragged arrays with offsets; names, groups, faults as header

A file appears when it is whole, so a killed preparation goes on behind the last of them.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from safetensors.torch import load_file
from torch import Tensor

from lmgraft import records
from lmgraft.checkpoint.cache import cache_dir, lock
from lmgraft.checkpoint.digest import json_digest
from lmgraft.data.loader import Fault
from lmgraft.data.motion.framing import Framed, Framing, frame
from lmgraft.data.motion.scenario import Scenario, UnreadableSceneError
from lmgraft.errors import DataError

_SHARD = 256
_VERSION = 2
_SILENT = 5.0  # seconds without a line about progress
_RAGGED = {"agents": ("agents", "agent_valid", "agent_types", "truth"), "lanes": ("lanes", "lane_attributes")}


class Item(NamedTuple):
    """What is known of an item without its arrays."""

    name: str
    """The scene's, with the track's behind it where it has several targets."""
    group: str
    fault: str
    """Why it cannot be shown; empty where all is well. Only then it has arrays."""
    type: int
    """The target's, a row of `AGENT_TYPES`; -1 where it cannot be shown."""
    track: str = ""
    """The target's ID in the scene; empty where the scene cannot be read."""


NO_FUTURE = "it ends with the present, without a future"
"""The fault of scenes whose future is kept back, as in official test sets."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """The scenes of one split as they lie somewhere."""

    read: Callable[[Any], Scenario]
    """Gives a scene by its key; raises UnreadableSceneError. It is sent to processes."""
    keys: Sequence[Any]
    names: Sequence[str]
    """Of each scene, for messages and groups; the same wherever the set is."""
    identity: Mapping[str, Any]
    """What names its contents, as plain data."""
    stamp: str = ""
    """What changes with the files' times: then they are read again."""


class Table(Protocol):
    """Items and their arrays, in the order of their scenes."""

    @property
    def items(self) -> Sequence[Item]:
        """All of them, those with a fault too."""

    def __getitem__(self, index: int) -> Framed:
        """The arrays of an item that has no fault."""


@dataclass(frozen=True)
class LoadedTable:
    """A `Table` in memory, of items without a fault."""

    items: Sequence[Item]
    framed: Sequence[Framed]

    def __getitem__(self, index: int) -> Framed:
        return self.framed[index]


class SceneTable:
    """A `Table` of all items of a source, in the order of their scenes.

    Args:
        files: The prepared shards.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = list(files)
        listed = [read_items(file) for file in self.files]
        self.items = [item for shard in listed for item in shard]
        self._where = [
            (shard, row) for shard, items in enumerate(listed) for row in _rows([not item.fault for item in items])
        ]
        self._open: dict[int, dict[str, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.items)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # a process that it is sent to maps the files by itself

    def __getitem__(self, index: int) -> Framed:
        """The arrays of an item, which lie in the file."""
        number, row = self._where[index]
        if number not in self._open:
            self._open[number] = load_file(self.files[number])
        shard = self._open[number]
        cut: dict[str, Any] = {}
        for kind, names in _RAGGED.items():
            first, last = shard[f"{kind}_starts"][row : row + 2].tolist()
            cut |= {name: shard[name][first:last].numpy() for name in names}
        whole = {name: shard[name][row].numpy() for name in ("future", "pose")}
        return Framed(known=bool(shard["known"][row]), **whole, **cut)


def _rows(whole: Sequence[bool]) -> Iterator[int]:
    """The row of each item among those that have arrays; -1 of the others."""
    row = 0
    for there in whole:
        yield row if there else -1
        row += there


def prepared_table(source: Source, framing: Framing, workers: int) -> SceneTable:
    """The items of a source, from the cache as far as they are there.

    Args:
        source: The scenes.
        framing: What is shown of each.
        workers: Processes; 0 uses this one.
    """
    known = {"version": _VERSION, "count": len(source.keys), "stamp": source.stamp}
    key = json_digest({**known, **vars(framing), **source.identity})
    folder = cache_dir() / "motion" / key[:32]
    with lock(str(folder)):
        return make_shards(source, framing, folder, workers)


def make_shards(source: Source, framing: Framing, folder: Path, workers: int = 0) -> SceneTable:
    """As `prepared_table`, in a folder."""
    starts = range(0, len(source.keys), _SHARD)
    files = [folder / f"{start // _SHARD:05}.safetensors" for start in starts]
    missing = [n for n, file in enumerate(files) if not _is_whole(file)]
    tasks = [
        (source.read, source.keys[starts[n] : starts[n] + _SHARD], source.names[starts[n] : starts[n] + _SHARD])
        for n in missing
    ]
    if missing:
        records.sweep_temporaries(folder)
    begun = last = time.monotonic()
    done, total = 0, sum(len(keys) for _, keys, _ in tasks)
    for (_, keys, _), _ in zip(tasks, _made(tasks, [files[n] for n in missing], framing, workers), strict=True):
        done += len(keys)
        if time.monotonic() - last > _SILENT:
            last = time.monotonic()
            sys.stderr.write(f"[motion] {done:,} of {total:,} scenes, {done / (last - begun):.0f} a second, once\n")
    return SceneTable(files)


def _made(tasks: list[Any], files: list[Path], framing: Framing, workers: int) -> Iterator[None]:
    columns = [*zip(*tasks, strict=True)] if tasks else [(), (), ()]
    everything = (*columns, files, [framing] * len(tasks))
    if workers < 2 or len(tasks) < 2:
        yield from map(make_shard, *everything)
        return
    with whole_processes("prepared scenes"), ProcessPoolExecutor(min(workers, len(tasks))) as pool:
        yield from pool.map(make_shard, *everything)


@contextmanager
def whole_processes(did: str) -> Iterator[None]:
    """Inside, a pool's process that dies is a DataError.

    Args:
        did: What the process did, for the message.
    """
    try:
        yield
    except BrokenProcessPool:
        raise DataError(f"a process died while it {did}", "out of memory? Start again: it goes on") from None


def make_shard(
    read: Callable[[Any], Scenario], keys: Sequence[Any], names: Sequence[str], file: Path, framing: Framing
) -> None:
    """Read scenes and write all their items to a file."""
    items: list[Item] = []
    framed: list[Framed] = []
    for key, name in zip(keys, names, strict=True):
        for item, one in items_of(read, key, name, framing):
            if one is not None and np.isnan(one.future).any():
                item, one = item._replace(fault=NO_FUTURE, type=-1), None
            items.append(item)
            framed += [] if one is None else [one]
    header = {"items": json.dumps(items)}
    with records.atomic_path(file) as temporary:
        save_file(_stacked(framed), temporary, metadata=header)


def items_of(
    read: Callable[[Any], Scenario], key: Any, name: str, framing: Framing, needs_future: bool = True
) -> Iterator[tuple[Item, Framed | None]]:
    """Each target of a scene; of a scene that cannot be read one item without arrays.

    Args:
        read: Gives the scene.
        key: Of the scene.
        name: Of the scene, for messages.
        framing: What is shown.
        needs_future: See `frame`.
    """
    try:
        scene = read(key)
    except UnreadableSceneError as error:
        yield Item(name, name, str(error), -1), None
        return
    for target in scene.targets:
        of = name if len(scene.targets) == 1 else f"{name}:{scene.ids[target]}"
        try:
            framed = frame(scene, target, framing, needs_future)
            yield Item(of, scene.group, "", int(scene.types[target]), scene.ids[target]), framed
        except UnreadableSceneError as error:
            yield Item(of, scene.group, str(error), -1, scene.ids[target]), None


def loaded_table(
    read: Callable[[Any], Scenario], keys: Sequence[Any], names: Sequence[str], framing: Framing
) -> tuple[LoadedTable, tuple[Fault, ...]]:
    """All items of scenes that can be shown, in memory, and those that cannot; no future is needed.

    Raises:
        DataError: If nothing can be shown of a scene; it names the first.
    """
    whole: list[tuple[Item, Framed]] = []
    faults: list[Fault] = []
    bad: list[Fault] = []
    for key, name in zip(keys, names, strict=True):
        made = list(items_of(read, key, name, framing, needs_future=False))
        whole += [(item, framed) for item, framed in made if framed is not None]
        of_scene = [Fault(item.name, item.fault) for item, _ in made if item.fault]
        (bad if len(of_scene) == len(made) else faults).extend(of_scene)
    if bad:
        more = f", and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise DataError(f"{bad[0].file} cannot be read ({bad[0].reason}){more}", "leave it out, or mend it")
    return LoadedTable([item for item, _ in whole], [framed for _, framed in whole]), tuple(faults)


def _stacked(framed: list[Framed]) -> dict[str, npt.NDArray[Any]]:
    """The arrays of all items one behind the other; of no item, none but their offsets."""
    arrays: dict[str, npt.NDArray[Any]] = {"known": np.array([one.known for one in framed], bool)}
    if framed:
        arrays |= {name: np.stack([getattr(one, name) for one in framed]) for name in ("future", "pose")}
    for kind, names in _RAGGED.items():
        arrays[f"{kind}_starts"] = np.cumsum([0, *(len(getattr(one, kind)) for one in framed)], dtype=np.int64)
        arrays |= {name: np.concatenate([getattr(one, name) for one in framed]) for name in names if framed}
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}  # safetensors writes memory as it lies


def _is_whole(file: Path) -> bool:
    """Whether the cache holds a shard; a damaged one is told of, and made again."""
    if not file.is_file():
        return False
    try:
        read_items(file)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        sys.stderr.write(f"[motion] {file} is damaged and is made again\n")
        return False
    return True


def read_items(file: Path) -> list[Item]:
    """What the header of a shard says of its items."""
    with safe_open(file, "pt") as shard:
        return [Item(*row) for row in json.loads(shard.metadata()["items"])]
