"""Training checkpoints: written whole, read without running anything in them.

Lightning's `load_from_checkpoint` is never used: it instantiates a class that the file names.
"""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from lmgraft import records
from lmgraft.errors import RunError


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint: tensors and plain data only.

    Raises:
        RunError: If the file is missing, cut short, or holds anything but tensors and plain data.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise RunError(f"{path} is missing", "check the run folder; a run without it starts anew") from None
    except (RuntimeError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise RunError(
            f"{path} is cut short or damaged ({str(error).splitlines()[0]})",
            "delete it: the run goes on from its other checkpoint (best.ckpt), or starts anew",
        ) from None
    except pickle.UnpicklingError as error:
        raise RunError(
            f"{path} holds more than tensors and plain data, and was not run ({str(error).splitlines()[0]})",
            "do not use a checkpoint from an untrusted source",
        ) from None
    if not isinstance(content, dict) or "state_dict" not in content:
        raise RunError(f"{path} is no training checkpoint", "give a run folder made by lmgraft train")
    return content


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints appear under their name only when they are whole and on disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        with records.atomic_path(Path(path)) as temporary:
            torch.save(checkpoint, temporary)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return read_checkpoint(Path(path))
