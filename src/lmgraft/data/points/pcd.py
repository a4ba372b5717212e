"""Point Cloud Library's PCD files: ascii, binary and binary_compressed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lmgraft.data.points.meshes import Array, UnreadableCloudError


def read_pcd(path: Path) -> Array:
    """The places (n, 3) in a PCD file.

    Raises:
        UnreadableCloudError: If it is damaged, or has no x, y and z.
    """
    content = path.read_bytes()
    head: dict[str, list[str]] = {}
    start = 0
    while "DATA" not in head:
        end = content.find(b"\n", start)
        if end < 0:
            raise UnreadableCloudError("its header does not end")
        words = content[start:end].decode("ascii", "replace").split()
        start = end + 1
        if words and not words[0].startswith("#"):
            head[words[0].upper()] = words[1:]
    fields, sizes = head["FIELDS"], [int(size) for size in head["SIZE"]]
    counts = [int(count) for count in head.get("COUNT", ["1"] * len(fields))]
    if not {"x", "y", "z"} <= set(fields):
        raise UnreadableCloudError(f"its fields are {' '.join(fields)}, not x y z")
    number = int(head["POINTS"][0])
    kinds = {"F": "f", "I": "i", "U": "u"}
    types = [f"<{kinds[kind]}{size}" for kind, size in zip(head["TYPE"], sizes, strict=True)]
    row = np.dtype([(f"{i}", kind, (count,)) for i, (kind, count) in enumerate(zip(types, counts, strict=True))])
    body, form = content[start:], head["DATA"][0].lower()
    if form == "ascii":
        table = np.array(body.split(), np.float64).reshape(number, sum(counts))
        first = np.cumsum([0, *counts])
        return np.stack([table[:, first[fields.index(axis)]] for axis in "xyz"], 1).astype(np.float32)
    if form == "binary_compressed":
        packed, whole = np.frombuffer(body, "<u4", 2).tolist()
        body = _lzf(body[8 : 8 + packed], whole)
        columns, place = {}, 0
        for name, kind, count in zip(fields, types, counts, strict=True):  # field by field, not point by point
            columns[name] = np.frombuffer(body, kind, number * count, place).reshape(number, count)
            place += columns[name].nbytes
        return np.stack([columns[axis][:, 0] for axis in "xyz"], 1).astype(np.float32)
    rows = np.frombuffer(body, row, number)
    return np.stack([rows[f"{fields.index(axis)}"][:, 0] for axis in "xyz"], 1).astype(np.float32)


def _lzf(packed: bytes, size: int) -> bytes:
    """Undo LZF (Marc Lehmann's liblzf): literal runs, and copies of what was written before.

    Raises:
        UnreadableCloudError: If it is damaged.
    """
    out, place = bytearray(), 0
    try:
        while place < len(packed):
            control = packed[place]
            place += 1
            if control < 32:
                out += packed[place : place + control + 1]
                place += control + 1
                continue
            length = control >> 5
            if length == 7:
                length += packed[place]
                place += 1
            back = len(out) - ((control & 31) << 8) - packed[place] - 1
            place += 1
            if back < 0:
                raise IndexError
            for offset in range(length + 2):
                out.append(out[back + offset])
    except IndexError:
        raise UnreadableCloudError("its compressed points are damaged") from None
    if len(out) != size:
        raise UnreadableCloudError("its compressed points are cut short")
    return bytes(out)
