"""What can be told about files before training, without reading them."""

from __future__ import annotations

import numpy as np

from lmgraft.data.folders import listed
from lmgraft.data.tables import ImageTable
from lmgraft.errors import DataError


def check_sizes(**sizes: float) -> None:
    """Held-out sizes: a share in [0, 1) or a whole count.

    Raises:
        DataError: If one is neither; it names the key.
    """
    for key, size in sizes.items():
        if size < 0 or (size > 1 and size != int(size)):
            raise DataError(f"data.{key}={size}", "give a share such as 0.1, a number of images, or 0")


def check_table(table: ImageTable, limit: int) -> None:
    """Refuse a split with more empty files than `limit`, or without any image.

    Raises:
        DataError: It names the first few.
    """
    if not (table.labels >= 0).any():
        raise DataError(f"{table.where} holds no images of the classes asked for", "check data.class_map")
    empty = np.flatnonzero(table.sizes == 0)
    if len(empty) > limit:
        raise DataError(
            f"{table.where} has {len(empty):,} files of zero bytes: {listed([table.name(int(i)) for i in empty])}",
            "a copy was cut off: copy or fetch these files again, or remove them",
        )
