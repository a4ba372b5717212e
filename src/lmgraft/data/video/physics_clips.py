"""Physics clips as data: short videos of what happens to an object in a physics engine; see `physics_films`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lmgraft.data.files import check_prepared, prepared_place
from lmgraft.data.image.splits import Splits
from lmgraft.data.video.filmed_clips import FilmedClips
from lmgraft.data.video.films import DONE
from lmgraft.data.video.physics_films import NAME, write_physics_clips

_OBJECT = r"-(\w+)\.mp4$"


def prepare(out: Path | None) -> Path:
    """Film the physics clips, 5,060 of 8 frames at 64 pixels, into `out` or the cache; some minutes."""
    return write_physics_clips(prepared_place(NAME) if out is None else out)


class PhysicsClips(FilmedClips):
    """What `lmgraft prepare physics-clips` made. Clips that show one object are a group.

    Args:
        root: Its folder; None is lmgraft's cache.
        options: See `Settings`. `order` shows that time is what matters.
    """

    name = "physics_clips"

    def __init__(self, root: str | None = None, **options: Any) -> None:
        self.tree = prepared_place(NAME) if root is None else Path(root).expanduser()
        super().__init__(root=str(self.tree), group=_OBJECT, **options)

    def splits(self) -> Splits:
        check_prepared(self.tree, NAME, DONE)
        return super().splits()
