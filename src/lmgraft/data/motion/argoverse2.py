"""Argoverse 2's motion forecasting (Wilson et al., NeurIPS 2021 Datasets and Benchmarks)."""

from __future__ import annotations

from typing import Any, ClassVar

from lmgraft.data.motion.scene_files import SceneFiles


class Argoverse2(SceneFiles):
    """Argoverse 2: 5 s of history and 6 s of future at 10 Hz; a group is a drive.

    The future of test is kept back, so that val tests; without `val_size` it chooses the epoch too.

    Args:
        root: The folder with train and val, each <id>/scenario_<id>.parquet and <id>/log_map_archive_<id>.json.
        history: Steps that are seen.
        future: Steps to come that are asked for.
        options: See `SceneFiles` and `MotionData`.
    """

    name = "argoverse2"
    folders: ClassVar[tuple[dict[str, str], ...]] = ({"train": "train", "test": "val"},)

    def __init__(self, root: str = "argoverse2", *, history: int = 50, future: int = 60, **options: Any) -> None:
        super().__init__(root, history=history, future=future, **options)
