"""Argoverse 1's motion forecasting (Chang et al., CVPR 2019), the paper's data set."""

from __future__ import annotations

from typing import Any, ClassVar

from lmgraft.data.motion.scene_files import SceneFiles


class Argoverse1(SceneFiles):
    """Argoverse 1: 2 s of history and 3 s of future at 10 Hz, one target a scene.

    The future of test_obs is kept back, so that val tests, as in the paper; without `val_size` it chooses the epoch
    too. `lmgraft predict` takes the files of test_obs. The files do not say which scenes are of one drive, so each is
    a group by itself.

    Args:
        root: The folder with train/data/*.csv, val/data/*.csv and map_files/*_vector_map.xml.
        options: See `SceneFiles` and `MotionData`.
    """

    name = "argoverse1"
    packages = ()
    folders: ClassVar[tuple[dict[str, str], ...]] = ({"train": "train", "test": "val"},)

    def __init__(self, root: str = "argoverse1", **options: Any) -> None:
        super().__init__(root, **options)
