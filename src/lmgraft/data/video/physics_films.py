"""Films of physics clips: short videos of what happens to an object in a physics engine; the class is the action.

Actions come in pairs that are each other's reverse in time, as in motion clips: falling backwards is being lifted.
Every clip is a simulation by itself. Those of the second action of a pair are drawn as those of the first and shown
backwards, so that their frames have one distribution: what tells the two apart is order alone. "nothing" shows one
frame of a film again and again. Objects of one split are in no other. Synthetic clips: say so.

Beside the films, <set>/settings.json has what was asked for, and <set>/complete.json, written last, source and licence.
Processes that film import this: it stands on neither torch nor Lightning.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lmgraft import records
from lmgraft.data.video.films import DONE, NOTHING, Film, Filming, write_film
from lmgraft.data.video.physics_world import ACTIONS, MESHES, SHAPES, models, simulate
from lmgraft.errors import DataError
from lmgraft.versions import optional

PAIRS = tuple(zip(
    ACTIONS, ("lifted", "pushed right", "rolled farther", "uncovered", "turned counter-clockwise"), strict=True
))  # fmt: skip
CLASSES = (*(name for pair in PAIRS for name in pair), NOTHING)
NAME = "physics-clips"
ABOUT = {
    "note": "synthetic: objects filmed in a physics engine; pushers, boxes and screens are moved by hand",
    "source": "PyBullet, https://pybullet.org: its engine, its renderer, its data's plane and random_urdfs",
    "licence": "zlib, of PyBullet's package; its random_urdfs say no other. The clips are its output",
}
SPLITS = {"train": "0123456", "val": "7", "test": "89"}
"""Last digits of the numbers of a split's objects."""
_TRIES = 100
_SETTINGS = "settings.json"
_SECONDS = 10.0  # between lines about progress


@dataclass(frozen=True, kw_only=True)
class PhysicsFilming(Filming):
    """What is filmed: as many clips as motion clips are by default, and each film makes one."""

    train: int = 3300
    """Clips of training, of all classes in turn."""
    val: int = 440
    test: int = 1320


class Clip(NamedTuple):
    """What one clip is to show."""

    split: str
    number: int
    label: str

    @property
    def place(self) -> str:
        """Of its file, but for the object."""
        return f"{self.split}/{self.label}/{self.number:05}"


def things_of(split: str) -> tuple[str, ...]:
    """The objects of a split: meshes and simple shapes by their names."""
    names = [f"mesh{n:03}" for n in range(MESHES)] + [f"shape{n:03}" for n in range(SHAPES)]
    return tuple(name for name in names if name[-1] in SPLITS[split])


def clips_of(filming: Filming) -> Iterator[Clip]:
    """All clips, each split's classes in turn."""
    for split in SPLITS:
        for number in range(getattr(filming, split)):
            yield Clip(split, number, CLASSES[number % len(CLASSES)])


def make(clip: Clip, filming: Filming) -> tuple[str, Film]:
    """The object of a clip and its film. All draws are functions of (seed, split, number); none asks for the direction.

    Raises:
        DataError: If no simulation of a hundred shows the action.
    """
    things, place = things_of(clip.split), [filming.seed, list(SPLITS).index(clip.split), clip.number]
    first = np.random.default_rng([*place, 0])
    any_pair, frame = PAIRS[first.integers(len(PAIRS))], int(first.integers(filming.frames))
    action = next((pair for pair in PAIRS if clip.label in pair), any_pair)[0]
    for attempt in range(1, _TRIES + 1):
        rng = np.random.default_rng([*place, attempt])
        thing = things[rng.integers(len(things))]
        film = simulate(thing, action, filming.size, filming.frames, rng)
        if film is not None and clip.label == NOTHING:
            return thing, film.still(frame)
        if film is not None:
            return thing, film if clip.label == action else film.backwards()
    raise DataError(f"{_TRIES} simulations of {clip.label!r} do not show it", "take another seed or more pixels")


def write_physics_clips(root: Path, filming: Filming | None = None) -> Path:
    """Film the clips as mp4 files below root/{train,val,test}/<action>, unless whole ones of these settings are there.

    A clip's file is named by its number and its object. Masks of the object lie below root/truth. What an earlier call
    that was stopped has filmed is not filmed again.

    Args:
        root: A folder for them.
        filming: How many and how large.

    Raises:
        VersionError: If PyBullet or PyAV is missing.
        DataError: If the folder has clips of other settings.
    """
    filming = PhysicsFilming() if filming is None else filming
    settings = asdict(filming)
    if (root / _SETTINGS).exists() and records.read_json(root / _SETTINGS) != settings:
        raise DataError(f"{root} has clips of other settings", f"remove it, or choose another folder than {root.name}")
    if (root / DONE).exists():
        return root
    models()
    optional("av", "video", "writing videos")
    records.write_json(root / _SETTINGS, settings)
    todo = [clip for clip in clips_of(filming) if not any(root.glob(f"{clip.place}-*.mp4"))]
    begun, shown = time.monotonic(), 0.0
    processes = min(records.usable_cpus(), 8)
    # PyBullet says on standard output when it was built; and a process that runs torch's threads is not to be forked.
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_quietly) as pool:
        work = pool.map(partial(write_clip, root=root, filming=filming), todo, chunksize=20)
        for done, _ in enumerate(work, 1):
            passed = time.monotonic() - begun
            if passed - shown > _SECONDS or done == len(todo):
                shown = passed
                sys.stderr.write(f"[{NAME}] {done:,} of {len(todo):,} clips, {passed:.0f} s\n")
    about = {"settings": settings, **ABOUT, "versions": {"pybullet": metadata.version("pybullet")}}
    objects = {split: len(things_of(split)) for split in SPLITS}
    records.write_json(root / DONE, {**about, "classes": list(CLASSES), "objects": objects})
    return root


def _quietly() -> None:
    os.dup2(2, 1)


def write_clip(clip: Clip, root: Path, filming: Filming) -> None:
    """Film a clip and write it."""
    thing, film = make(clip, filming)
    write_film(root, f"{clip.place}-{thing}", film)
