"""Torch checkpoints (`pytorch_model.bin` and its shards), mapped into memory: only what is read is loaded.

`torch.load(weights_only=True)` builds tensors and plain containers, and refuses whatever else a
pickle asks for; under `mmap=True` a tensor's numbers are read once they are copied. The file has to
lie on this machine.
"""

from __future__ import annotations

import argparse
import pickle
import struct
import warnings
import zipfile
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lmgraft.checkpoint.places import ByteSource, LocalFile, Place, read_bytes, refuse_stand_in
from lmgraft.checkpoint.safetensors_file import DTYPES, check_promised, find_shards
from lmgraft.errors import CheckpointError
from lmgraft.versions import numbers

_INDEX = "pytorch_model.bin.index.json"
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_WRAPPED = ("state_dict", "model_state_dict", "model", "module")  # where trainers and DeepSpeed keep the weights
# Plain holders of values beside weights: options of a training, and Lightning's state of a callback, under its class.
_HOLDERS: list[Any] = [
    argparse.Namespace,
    (type("Callback", (), {}), "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"),
]
_FIRST_SAFE = (2, 10)  # files can make weights_only run code before (CVE-2025-32434, CVE-2026-24747)
# What torch's unpickler and zip reader raise for damaged files.
_DAMAGE = (
    *(RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, AssertionError, EOFError),
    *(OverflowError, MemoryError, OSError, struct.error, zipfile.BadZipFile, NotImplementedError),
)


class TorchFile:
    """One file that torch.save wrote: `records` is name -> tensor, as it is mapped.

    Raises:
        CheckpointError: If it is damaged, of torch's old format, or holds more than tensors.
    """

    def __init__(self, source: ByteSource) -> None:
        self.source = source
        refuse_stand_in(source)
        if not isinstance(source, LocalFile):
            raise CheckpointError(f"{source.label} does not lie on this machine", "download it first")
        if source.size < 4 or read_bytes(source, 0, 4) != b"PK\x03\x04":
            raise CheckpointError(
                f"{source.label} is no archive as torch.save writes it since version 1.6",
                "save it anew, if you trust it: torch.save(torch.load(old, weights_only=True), new)",
            )
        self.records = _load(source.path)

    def nbytes(self, name: str) -> int:
        return self.records[name].nbytes

    def dtype(self, name: str) -> str:
        dtype = self.records[name].dtype
        return _NAMES.get(dtype, str(dtype).removeprefix("torch."))

    def read(self, name: str) -> Tensor:
        """Copy one tensor out of the file, contiguous, in the file's own dtype.

        Raises:
            CheckpointError: If it repeats its numbers to more than the file holds.
        """
        if self.nbytes(name) > self.source.size:
            raise CheckpointError(
                f"{name} in {self.source.label} is a view that repeats its numbers to {self.nbytes(name)} bytes",
                "save the model anew with contiguous tensors",
            )
        return self.records[name].clone(memory_format=torch.contiguous_format)


def load_archive(path: Path, *, mmap: bool = False) -> Any:
    """Tensors and plain containers that torch.save wrote, on the CPU; nothing in the file is run.

    Raises:
        pickle.UnpicklingError: If it holds anything else.
    """
    if numbers(torch.__version__) < _FIRST_SAFE:
        _refuse_programs(path)
    return torch.load(path, map_location="cpu", mmap=mmap, weights_only=True)


def _refuse_programs(path: Path) -> None:  # bridge: until torch 2.10 is the oldest, with refuse_old_torch
    """The two kinds of file that `weights_only` hands on to code which runs or unpacks them: TorchScript, old tars."""
    with open(path, "rb") as file:
        archive = file.read(4) == b"PK\x03\x04"
    if not archive or "constants.pkl" in torch._C.PyTorchFileReader(str(path)).get_all_records():
        raise pickle.UnpicklingError("WeightsUnpickler error: TorchScript, or a format before torch 1.6")


def refuse_old_torch(path: Path) -> None:
    """For files of others: torch's makers call no earlier version safe.

    Raises:
        CheckpointError: Naming the torch that is needed.
    """
    first = ".".join(map(str, _FIRST_SAFE))
    if numbers(torch.__version__) < _FIRST_SAFE:
        raise CheckpointError(
            f"{path} is a pickle: to open it safely takes torch {first}, and torch {torch.__version__} is installed",
            "update torch, or use safetensors",
        )


def _load(path: Path) -> dict[str, Tensor]:
    refuse_old_torch(path)
    try:
        holders = torch.serialization.safe_globals(_HOLDERS)
        with zipfile.ZipFile(path) as archive, warnings.catch_warnings(), holders:
            members = archive.infolist()
            if any(member.compress_type or member.flag_bits & 1 for member in members):
                raise CheckpointError(
                    f"{path} is compressed or encrypted, which torch.save does not do",
                    "unpack the archive and pack it without compression, or save the weights anew",
                )
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # what it cannot read is an error
            tensors = _tensors(load_archive(path, mmap=True), str(path))
    except pickle.UnpicklingError as error:
        reason = str(error).rpartition("WeightsUnpickler error:")[2].strip().partition("\n")[0][:200]
        raise CheckpointError(
            f"{path} is damaged, or holds more than tensors, which was not run ({reason})",
            "use the model's safetensors, or save its plain state dict with a current torch",
        ) from None
    except CheckpointError:  # a ValueError too
        raise
    except _DAMAGE as error:
        reason = str(error).partition("\n")[0][:200]
        raise CheckpointError(f"{path} is cut short or damaged: {reason}", "fetch it again") from None
    # Mapped numbers run on into what lies behind a member that is too short: torch does not look.
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors.values()}
    if Counter(storages.values()) - Counter(member.file_size for member in members):
        raise CheckpointError(f"{path} is damaged: it lacks numbers of its tensors", "fetch it again")
    return tensors


def _tensors(state: Any, label: str) -> dict[str, Tensor]:
    """The tensors by name, at the top or in one of the usual places below it."""
    for _ in range(4):  # a dict may hold itself
        if not isinstance(state, dict):
            break
        tensors = {name: tensor for name, tensor in state.items() if isinstance(name, str) and _is_plain(tensor)}
        if tensors:
            return tensors
        state = next((state[key] for key in _WRAPPED if isinstance(state.get(key), dict)), None)
    raise CheckpointError(f"{label} holds no tensors by name", "save the model's plain state dict")


def _is_plain(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.strided and not value.is_quantized


class TorchCheckpoint:
    """Weights in one file or in shards; see `lmgraft.checkpoint.source.Checkpoint`.

    Args:
        place: Where the files lie.
        config: The model's config.json.
        file: The one file to read; None takes the index's shards, or `pytorch_model*.bin`.

    Raises:
        SourceError: If there is no weight file.
        CheckpointError: If a file is damaged or a shard is missing; for a shard that an index
            describes, only once one of its tensors is asked for.
    """

    style: Literal["hf"] = "hf"

    def __init__(self, place: Place, config: dict[str, Any], file: str | None = None) -> None:
        self.label, self.config = place.label, config
        self.licence: str | None = None
        self._place = place
        self._promised = {file: set[str]()} if file else find_shards(place, _INDEX, "pytorch_model", ".bin")
        self._opened: dict[str, TorchFile] = {}
        self._shard_of = {tensor: shard for shard, promised in self._promised.items() for tensor in promised}
        waits = getattr(place, "remote", False)  # a remote shard is downloaded whole
        for shard, promised in self._promised.items():
            if not (waits and promised):
                self._shard_of |= dict.fromkeys(self._open(shard).records, shard)

    def _open(self, shard: str) -> TorchFile:
        if shard not in self._opened:
            opened = TorchFile(self._place.open(shard))
            check_promised(opened.source.label, self._promised[shard], opened.records.keys())
            self._opened[shard] = opened
        return self._opened[shard]

    def _file(self, name: str) -> TorchFile:
        return self._open(self._shard_of[name])

    def names(self) -> Collection[str]:
        return self._shard_of.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._file(name).records[name].shape)

    def nbytes(self, name: str) -> int:
        return self._file(name).nbytes(name)

    def to_fetch(self, name: str) -> int:
        """Nothing: torch files come whole."""
        return 0

    def dtype(self, name: str) -> str:
        return self._file(name).dtype(name)

    def read(self, name: str) -> Tensor:
        """Read one tensor in the file's own dtype."""
        return self._file(name).read(name)
