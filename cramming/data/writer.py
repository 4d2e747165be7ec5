"""Token shards as they are written: packing to sequences, counting, ordering by length. Not for reading them."""

import hashlib
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np

SHARD_BYTES = 256 << 20
SORT_BLOCK_TOKENS = 8 << 20


class ShardWriter:
    """Packs a stream of ids into sequences of `seq_len` and drops the remainder at the end.

    `counts` is int64 (vocab,) of the ids written; `letter_counts` is how many sequences have each number of letters.
    """

    def __init__(self, folder: Path, split: str, seq_len: int, dtype: np.dtype, letters: np.ndarray) -> None:
        self.folder, self.split, self.seq_len, self.dtype = folder, split, seq_len, np.dtype(dtype)
        self.letters = letters
        self.counts = np.zeros(len(letters), dtype=np.int64)
        self.letter_counts = np.zeros(seq_len * int(letters.max(initial=0)) + 1, dtype=np.int64)
        self.shards: list[dict[str, str | int]] = []
        self._hashes: dict[str, Any] = {}
        self.rows_per_shard = max(1, SHARD_BYTES // (seq_len * self.dtype.itemsize))
        self.rest = np.empty(0, dtype=self.dtype)
        self.file: IO[bytes] | None = None
        self.rows_left = 0

    @property
    def sequences(self) -> int:
        """Sequences written so far."""
        return sum(int(shard["sequences"]) for shard in self.shards)

    @property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of every shard, of what was written and not of what the disk made of it; none of sorted ones."""
        return {name: found.hexdigest() for name, found in self._hashes.items()}

    def write(self, ids: bytes) -> None:
        """Take ids as bytes of the dtype."""
        tokens = np.concatenate([self.rest, np.frombuffer(ids, dtype=self.dtype)])
        rows = len(tokens) // self.seq_len
        self.rest = tokens[rows * self.seq_len :]
        self.write_rows(tokens[: rows * self.seq_len].reshape(rows, self.seq_len))

    def write_rows(self, rows: np.ndarray) -> None:
        """Write whole sequences (n, seq_len), opening shards as they fill."""
        if len(rows):
            self.counts += np.bincount(rows.ravel(), minlength=len(self.counts))
            lengths = self.letters[rows].sum(axis=1)
            self.letter_counts += np.bincount(lengths, minlength=len(self.letter_counts))
        while len(rows):
            if not self.rows_left:
                self.open_next()
            part, rows = rows[: self.rows_left], rows[self.rows_left :]
            assert self.file is not None
            data = part.tobytes()
            self.file.write(data)
            self._hashes[str(self.shards[-1]["file"])].update(data)
            self.rows_left -= len(part)
            self.shards[-1]["sequences"] = int(self.shards[-1]["sequences"]) + len(part)

    def open_next(self) -> None:
        """Close the shard and begin the next one."""
        self.close()
        name = f"{self.split}-{len(self.shards):05d}.bin"
        self.file = open(self.folder / name, "wb")  # noqa: SIM115 - closed by close()
        self.shards.append({"file": name, "sequences": 0})
        self._hashes[name] = hashlib.sha256()
        self.rows_left = self.rows_per_shard

    def close(self) -> None:
        """Close the open shard."""
        if self.file is not None:
            self.file.close()
        self.file = None

    def sort_by_letters(self) -> None:
        """Put all sequences into ascending order of their letters, equal ones in the order they were written.

        A counting sort from file to file: block by block, every number of letters has its own run of places. Memory
        is one block, whatever the corpus size.
        """
        self.close()
        self._hashes.clear()  # what comes is written out of order
        places = np.concatenate([[0], np.cumsum(self.letter_counts)[:-1]])
        names = [self.folder / str(shard["file"]) for shard in self.shards]
        unsorted = [name.with_suffix(".unsorted") for name in names]
        for name, old in zip(names, unsorted, strict=True):
            name.rename(old)
        block_tokens = max(1, SORT_BLOCK_TOKENS // self.seq_len) * self.seq_len
        with ExitStack() as stack:
            files: list[IO[bytes]] = [stack.enter_context(open(name, "wb")) for name in names]
            for old in unsorted:
                with open(old, "rb") as file:
                    while (block := np.fromfile(file, self.dtype, block_tokens)).size:
                        self.place(block.reshape(-1, self.seq_len), places, files)
                old.unlink()

    def place(self, block: np.ndarray, places: np.ndarray, files: list[IO[bytes]]) -> None:
        """Write a block's sequences to their places and move the places on."""
        lengths = self.letters[block].sum(axis=1)
        order = np.argsort(lengths, kind="stable")
        values, starts = np.unique(lengths[order], return_index=True)
        row_bytes = self.seq_len * self.dtype.itemsize
        for value, indices in zip(values, np.split(order, starts[1:]), strict=True):
            rows, place = block[indices], int(places[value])
            places[value] += len(rows)
            while len(rows):
                shard, row = divmod(place, self.rows_per_shard)
                fitting = min(len(rows), self.rows_per_shard - row)
                files[shard].seek(row * row_bytes)
                files[shard].write(rows[:fitting].tobytes())
                rows, place = rows[fitting:], place + fitting
