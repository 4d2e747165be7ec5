"""The files of a store as maps of memory that can only be read, checked when opened. Not how they are written."""

import contextlib
import json
import mmap
import os
import warnings
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from fff.store.files import DTYPES, FILES, FORMAT
from fff.topology import depth_of

MOST_HEADER = 10**8  # bytes, safetensors' own limit


class Map:
    """One file of a store, mapped to be read: its tensors by name, which are views of the map.

    Attributes:
        activation, pair: as its metadata says.
    """

    def __init__(self, path: Path) -> None:
        self._file = _opened(path)
        header, start = _header(path, self._file)
        note = header.pop("__metadata__")
        self.activation, self.pair = str(note.get("activation")), note.get("pair")
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        size = os.fstat(self._file.fileno()).st_size
        if size != start + end:
            what = "cut" if size < start + end else "longer than it says"
            raise ValueError(f"{path} is {what}: it has {size} bytes and should have {start + end}; write it again")
        self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        self._map.madvise(mmap.MADV_RANDOM)  # what lies behind a row belongs to other paths
        with contextlib.suppress(OSError):  # a system that has no huge pages
            self._map.madvise(mmap.MADV_NOHUGEPAGE)  # providers ask for them, and one is read as a whole for a row
        self.tensors = {name: self._tensor(entry, start) for name, entry in header.items()}

    def _tensor(self, entry: dict[str, Any], start: int) -> Tensor:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given buffer is not writable")
            flat = torch.frombuffer(
                self._map,
                dtype=DTYPES[entry["dtype"]],
                count=prod(entry["shape"]),
                offset=start + entry["data_offsets"][0],
            )
        return flat.view(entry["shape"])

    def release(self) -> None:
        """Drop what was read of it, from this process and from the system's cache."""
        self._map.madvise(mmap.MADV_DONTNEED)
        os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    @property
    def resident_bytes(self) -> int:
        """Of the map, what is in this process's memory."""
        place = next(iter(self.tensors.values())).data_ptr()
        mine = False
        for line in Path("/proc/self/smaps").read_text().splitlines():
            first, *rest = line.split()
            if "-" in first and not first.endswith(":"):
                low, high = (int(part, 16) for part in first.split("-"))
                mine = low <= place < high
            elif mine and first == "Rss:":
                return int(rest[0]) * 1024
        return 0


def read(folder: Path) -> tuple[Map, Map]:
    """Both files of a store, mapped; ValueError where they are none, cut, or not a pair."""
    first, second = (Map(folder / name) for name in FILES)
    names = [*first.tensors, *second.tensors]
    rows = {**first.tensors, **second.tensors}
    good = names in (["w_in", "b_in", "w_out"], ["w_in", "w_out"]) and first.pair == second.pair
    if good:
        shape = rows["w_in"].shape[:2]
        good = rows["w_in"].dim() == rows["w_out"].dim() == 3 and all(row.shape[:2] == shape for row in rows.values())
        good = good and len({row.dtype for row in rows.values()}) == 1
    if not good:
        raise ValueError(f"{folder}: its two files do not belong together; write the layer again")
    depth_of(rows["w_in"].shape[1])
    return first, second


def _opened(path: Path) -> BinaryIO:
    try:
        return open(path, "rb")
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{path.parent} is no store: {path.name} is missing; fff.store.write makes one") from None


def _header(path: Path, file: BinaryIO) -> tuple[dict[str, Any], int]:
    """A file's header, checked, and where its numbers begin."""
    length = int.from_bytes(file.read(8), "little")
    text = file.read(length) if length <= MOST_HEADER else b""
    header: Any = None
    try:
        header = json.loads(text) if len(text) == length else {}
        written, offset = header["__metadata__"]["format"] == FORMAT, 0
        for name, entry in header.items() if written else ():
            if name != "__metadata__":
                low, high = entry["data_offsets"]
                fits = high - low == prod(entry["shape"]) * DTYPES[entry["dtype"]].itemsize and low == offset
                written, offset = written and fits, high
    except (ValueError, KeyError, TypeError):
        written = False
    if not written:
        raise ValueError(f"{path} is no file of a store of this version ({FORMAT!r}); fff.store.write makes one")
    return header, 8 + length
