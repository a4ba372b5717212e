"""Training checkpoints: written whole, checked when read, read without running anything in them.

Lightning's `load_from_checkpoint` is never used: it instantiates a class that the file names.
"""

from __future__ import annotations

import os
import pickle
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from lmgraft import records
from lmgraft.checkpoint.torch_file import load_archive
from lmgraft.errors import RunError, first_line
from lmgraft.training.stopping import NotFiniteError

_CHECKED = ("state_dict", "optimizer_states", "callbacks")


class DamagedError(RunError):
    """A checkpoint that is cut short, whose bytes have changed, or whose numbers are not finite."""


class RunWarning(UserWarning):
    """Something went wrong that a run survives: a full disk, a damaged checkpoint."""


def checkpoint_path(run_dir: Path, which: Literal["last", "previous", "best"]) -> Path:
    return run_dir / "checkpoints" / f"{which}.ckpt"


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, tensors and plain data only, its checksums verified.

    Raises:
        DamagedError: If the file is cut short or changed, or a weight is not finite.
        RunError: If the file is missing, or holds anything but tensors and plain data.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            changed = archive.testzip()
        if changed is not None:
            raise zipfile.BadZipFile(f"the checksum of {changed} is wrong")
        content = load_archive(path)
    except FileNotFoundError:
        raise RunError(f"{path} is missing", "check the run folder; a run without it starts anew") from None
    except (RuntimeError, EOFError, OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise DamagedError(
            f"{path} is cut short or damaged ({first_line(error)})",
            "delete it: the run goes on from its other checkpoint (previous.ckpt), or starts anew",
        ) from None
    except pickle.UnpicklingError as error:
        raise RunError(
            f"{path} holds more than tensors and plain data, and was not run ({first_line(error)})",
            "do not use a checkpoint from an untrusted source",
        ) from None
    if not isinstance(content, dict) or "state_dict" not in content:
        raise RunError(f"{path} is no training checkpoint", "give a run folder made by lmgraft train")
    bad = first_not_finite(content)
    if bad is not None:
        raise DamagedError(f"{path}: {bad} has numbers that are not finite", "delete it and go on from another")
    return content


def newest_whole(run_dir: Path) -> Path | None:
    """The checkpoint to go on from: last.ckpt, or previous.ckpt with a warning where that is damaged.

    Returns:
        None if there is neither.

    Raises:
        RunError: If what there is cannot be read.
    """
    damage: DamagedError | None = None
    for path in (checkpoint_path(run_dir, "last"), checkpoint_path(run_dir, "previous")):
        if not path.exists():
            continue
        try:
            read_checkpoint(path)
        except DamagedError as error:
            damage = damage or error
            continue
        if damage is not None:
            warnings.warn(f"{damage.message}; going on from {path} instead", RunWarning, stacklevel=2)
        return path
    if damage is not None:
        raise damage
    return None


def set_damaged_aside(run_dir: Path, chosen: Path) -> None:
    """Keep a damaged last.ckpt from becoming previous.ckpt: it is renamed to damaged.ckpt."""
    last = checkpoint_path(run_dir, "last")
    if chosen != last and last.exists():
        os.replace(last, last.with_name("damaged.ckpt"))


def first_not_finite(content: Mapping[str, Any]) -> str | None:
    """The name of the first tensor of weights, moments or averages with a NaN or an infinity."""
    for part in _CHECKED:
        for name, tensor in _tensors(content.get(part), part):
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                return name
    return None


def _tensors(value: Any, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _tensors(item, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for position, item in enumerate(value):
            yield from _tensors(item, f"{name}.{position}")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints appear under their name only when they are whole and on disk.

    last.ckpt leaves the one before it behind as previous.ckpt; at no moment is there no whole one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        path = Path(path)
        bad = first_not_finite(checkpoint)
        if bad is not None:
            raise NotFiniteError(
                f"{bad} has numbers that are not finite; {path} was not written",
                "lower optim.lr, or try --auto-lr-retry; the last checkpoint holds the weights from before",
            )
        with records.temporary_file(path.parent, path.name) as temporary:
            _write(checkpoint, temporary)
            if path == checkpoint_path(path.parent.parent, "last") and path.exists():
                _keep_as(path, path.with_name("previous.ckpt"))
            records.commit(temporary, path)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return read_checkpoint(Path(path))


def _write(checkpoint: dict[str, Any], path: Path) -> None:
    # Through a Python file: torch's own writer would turn a full disk into a RuntimeError without errno.
    fault: OSError | None = None
    with open(path, "wb") as file:
        try:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:
            fault = _os_error(error)
            if fault is None:
                raise
    if fault is not None:
        raise OSError(fault.errno, fault.strerror, str(path)) from None


def _os_error(error: BaseException | None) -> OSError | None:
    """The OSError behind what torch made of it."""
    while error is not None:
        if isinstance(error, OSError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _keep_as(path: Path, name: Path) -> None:
    """Give the file a second name; where the file system has no links, move it."""
    with records.temporary_file(name.parent, name.name) as temporary:
        temporary.unlink()
        try:
            os.link(path, temporary)
        except OSError:
            os.replace(path, name)
            return
        os.replace(temporary, name)
