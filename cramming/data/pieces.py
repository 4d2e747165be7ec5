"""What is made of a part of a source, piece by piece, each complete or absent. Not who makes it, nor what it means."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from cramming.errors import Passing
from cramming.files import new_folder, read_json, remove_leftovers, sha256, write_atomic, write_json

PIECE = "piece.json"
DONE = "done"


class Pieces:
    """The finished pieces of one part, in a folder of its own: `00000`, `00001`, ...

    A piece holds files, counts, and the state of the reading where it ends. Whoever writes holds the part's lock.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def lock(self) -> Path:
        """The part's lock."""
        return self.folder / ".lock"

    @property
    def done(self) -> bool:
        """Whether the part is made to its end."""
        return (self.folder / DONE).is_file()

    def finished(self) -> list[Path]:
        """The folders of its finished pieces, in order."""
        numbers = sorted(int(path.name) for path in self.folder.glob("[0-9]*") if path.name.isdecimal())
        if numbers != list(range(len(numbers))):
            raise Passing(f"{self.folder} lacks a piece, it has {numbers}; remove it and prepare again.")
        return [self.folder / f"{number:05d}" for number in numbers]

    def state(self) -> Any:
        """Where the last finished piece ended; None for a part without any."""
        found = self.finished()
        return read_json(found[-1] / PIECE)["state"] if found else None

    @contextmanager
    def next_piece(self) -> Iterator["Piece"]:
        """The next piece, to be filled: at the end of the block it gets its place. An error in it leaves no trace."""
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.folder, alone=True)  # of a killed process
        with new_folder(self.folder / f"{len(self.finished()):05d}") as beside:
            piece = Piece(beside)
            try:
                yield piece
            finally:
                piece.close()
            write_json(beside / PIECE, piece.manifest())

    def end(self) -> None:
        """Say that the part is made to its end."""
        write_atomic(self.folder / DONE, "")

    def read(self) -> Iterator["FinishedPiece"]:
        """The finished pieces, each checked against the hashes that it was written with (UserError)."""
        for folder in self.finished():
            manifest = read_json(folder / PIECE)
            for name, written in manifest["sha256"].items():
                if not (folder / name).is_file() or sha256(folder / name) != written:
                    raise Passing(f"{folder / name} is damaged; remove {self.folder} and prepare again.")
            yield FinishedPiece(folder, manifest["counts"])


class FinishedPiece:
    """One of the pieces, as it is read."""

    def __init__(self, folder: Path, counts: Mapping[str, int]) -> None:
        self.folder, self.counts = folder, counts

    def blocks(self, name: str, size: int) -> Iterator[bytes]:
        """A file's content, at most `size` bytes at a time; nothing where the piece has no such file."""
        if (self.folder / name).is_file():
            with open(self.folder / name, "rb") as file:
                while block := file.read(size):
                    yield block


class Piece:
    """A piece as it is filled.

    Attributes:
        counts: of what it holds, added up over all pieces later.
        state: of the reading where it ends.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.counts = folder, Counter[str]()
        self.state: Any = None
        self.files: dict[str, IO[bytes]] = {}
        self.hashes: dict[str, Any] = {}

    def add(self, name: str, content: bytes) -> None:
        """Add bytes to one of its files."""
        if name not in self.files:
            self.files[name] = open(self.folder / name, "wb")  # noqa: SIM115 - closed by close()
            self.hashes[name] = hashlib.sha256()
        self.files[name].write(content)
        self.hashes[name].update(content)

    def close(self) -> None:
        """Close its files."""
        for file in self.files.values():
            file.close()

    def manifest(self) -> dict[str, Any]:
        """What is written last."""
        hashes = {name: found.hexdigest() for name, found in self.hashes.items()}
        return {"counts": dict(self.counts), "sha256": hashes, "state": self.state}
