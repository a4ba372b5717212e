"""Scenes in files of one's own, in Argoverse's layouts: folders of train, val and test, or one that is split."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from lmgraft.data.files import files_below, find_loose, identity_of, stamp_of
from lmgraft.data.motion.motion_data import MotionData
from lmgraft.data.motion.read_argoverse1 import MAPS, read_csv
from lmgraft.data.motion.read_argoverse2 import MAP_FILES, Targets, read_parquet
from lmgraft.data.motion.scenario import Scenario, UnreadableSceneError
from lmgraft.data.motion.scene_set import SceneSet
from lmgraft.data.motion.table import Source, loaded_table
from lmgraft.errors import DataError, LmgraftError

ENDINGS = (".parquet", ".csv")
MAP_ENDINGS = (".xml", ".json")


class SceneFiles(MotionData):
    """Scenes below a folder, each a scenario_*.parquet with its log_map_archive_*.json (Argoverse 2), or a csv file
    (Argoverse 1). A folder with train and test, or train and val, is taken as it is; from another one test items are
    held out by whole groups.

    Args:
        root: The folder.
        targets: Of Argoverse 2's scenes the focal track, or all scored tracks.
        maps: Folder of the vector maps of Argoverse 1's cities; None: the nearest map_files beside or above a scene.
        test_size: Share or count of the items that test, where there is no folder of them.
        val_size: Training items held out to choose the epoch by, a share or a count, where there is no folder of them.
        options: See `MotionData`.
    """

    name = "scene_files"
    endings: ClassVar[tuple[str, ...]] = ENDINGS
    beside: ClassVar[tuple[str, ...]] = MAP_ENDINGS
    folders: ClassVar[tuple[dict[str, str], ...]] = (
        {"train": "train", "val": "val", "test": "test"}, {"train": "train", "test": "test"},
        {"train": "train", "test": "val"}, {"train": "."},
    )  # fmt: skip
    """Split -> its folder; the first row whose folders are all there is taken."""

    def __init__(
        self,
        root: str = ".",
        *,
        targets: Targets = "focal",
        maps: str | None = None,
        test_size: int | float = 0.2,
        val_size: int | float = 0,
        **options: Any,
    ) -> None:
        super().__init__(val_size=val_size, **options)
        self.root, self.targets, self.test_size = Path(root).expanduser(), targets, test_size
        self.maps = None if maps is None else Path(maps).expanduser()

    def find(self) -> dict[str, Source]:
        if not self.root.is_dir():
            raise DataError(f"{self.root} is no folder", "check data.root")
        for row in self.folders:
            if all((self.root / folder).is_dir() for folder in row.values()):
                return {split: self._source(scenes_below(self.root / folder)) for split, folder in row.items()}
        wanted = " and ".join(self.folders[-1].values())
        raise DataError(f"{self.root} has no folders {wanted}", f"data.root is the folder of {self.name} that has them")

    def _source(self, files: Sequence[Path]) -> Source:
        if not files:
            raise DataError(f"{self.root} holds no scenes ({', '.join(ENDINGS)})", "check data.root")
        maps = self._maps(files[0])
        beside = sorted(one for folder in {file.parent for file in files} for one in folder.glob(MAP_FILES))
        return Source(
            read=partial(read_scene, targets=self.targets, maps=maps),
            keys=files,
            names=[str(file.relative_to(self.root)) for file in files],
            identity={"name": self.name, "files": identity_of([*files, *beside], self.root), "targets": self.targets},
            stamp=stamp_of([*files, *beside, *maps]),
        )

    def _maps(self, scene: Path) -> list[Path]:
        """The vector maps of cities: in the folder that was given, near a scene, or near the set."""
        near = [self.maps] if self.maps else [_maps_near(scene), _maps_near(self.root / scene.name)]
        return next(filter(None, (sorted(folder.glob("*.xml")) for folder in near)), [])

    def open(self, sources: Sequence[str]) -> SceneSet:
        given = [path for path in map(Path, sources) if path.suffix.lower() in self.beside and path.is_file()]
        scenes = [source for source in sources if Path(source) not in given]
        paths = find_loose(scenes, scenes_below, f"scenes ({', '.join(ENDINGS)})")
        if not paths:
            raise DataError("maps, and no scene", f"give scenes ({', '.join(ENDINGS)}) with them")
        read = partial(read_scene, targets=self.targets, maps=[*given, *self._maps(paths[0])])
        table, faults = loaded_table(read, paths, [str(path) for path in paths], self.framing)
        for fault in faults:
            self.remark(f"{fault.file} is left out: {fault.reason}")
        return self.of_table(table)


def read_scene(path: Path, targets: Targets, maps: Sequence[Path]) -> Scenario:
    """The scene of a file, by its ending.

    Args:
        path: The file.
        targets: See `SceneFiles`.
        maps: Files of maps, of both kinds.

    Raises:
        UnreadableSceneError: If it cannot be read.
    """
    try:
        of_kind = {kind: [file for file in maps if file.suffix.lower() == kind] for kind in MAP_ENDINGS}
        if path.suffix.lower() == ".csv":
            return read_csv(path, of_kind[".xml"])
        return read_parquet(path, targets, of_kind[".json"])
    except LmgraftError:  # a package that is not there
        raise
    except (ValueError, TypeError, LookupError, ArithmeticError) as error:
        raise UnreadableSceneError(f"{type(error).__name__}: {error}") from None


def scenes_below(folder: Path) -> list[Path]:
    """The files of all scenes below a folder, in order."""
    return files_below(folder, ENDINGS)


def _maps_near(scene: Path) -> Path:
    """The folder map_files that lies nearest above a file; beside it where there is none."""
    above = [folder / MAPS for folder in scene.absolute().parents]
    return next((folder for folder in above if folder.is_dir()), above[0])
