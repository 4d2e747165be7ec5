"""Source `text`: files by glob or address, and what identifies them. Not how a file is read (readers.py)."""

import functools
import glob
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cramming import remote
from cramming.checks import at_home
from cramming.data.sources.readers import kind, read_documents
from cramming.data.sources.source import MOST_PARTS, Advance, Mended, Part, Reading, no_progress
from cramming.errors import UserError
from cramming.files import read_json, write_json
from cramming.remote import AnyFile, RemoteFile

PART_BYTES = 64 << 20  # of files on the disk, at least, so that a part is worth its locks and flushes


class TextSource:
    """Files by glob, in the globs' order and sorted within each.

    Args:
        memory: file that remembers the hashes of remote files, so that each is read once for its hash.
    """

    def __init__(self, files: list[str], valid_files: list[str], text_field: str, memory: Path | None = None) -> None:
        self.paths = match_globs("data.files", files)
        self.valid_paths = match_globs("data.valid_files", valid_files) if valid_files else []
        self.text_field, self.memory = text_field, memory
        self.sizes = {path: remote.size_of(path) for path in [*self.paths, *self.valid_paths]}
        if both := sorted({str(path.resolve()) for path in self.paths} & {str(p.resolve()) for p in self.valid_paths}):
            raise UserError(f"data.valid_files and data.files both match {both[0]}; held-out text must stay apart.")

    @functools.cached_property
    def hashes(self) -> dict[AnyFile, str]:
        """SHA-256 of every file, as it was when first asked for."""
        return {path: self.hash_now(path) for path in self.sizes}

    def hash_now(self, path: AnyFile) -> str:
        """SHA-256 of a file; of a remote one that its store calls unchanged, what was found before."""
        if isinstance(path, Path):
            return remote.hash_of(path)
        known, mark = recalled(self.memory), remote.mark_of(path)
        if known.get(path.address, {}).get("mark") != mark:
            found = {"mark": mark, "sha256": remote.hash_of(path)}
            known = recalled(self.memory) | {path.address: found}
            if self.memory is not None:
                write_json(self.memory, known)
        return str(known[path.address]["sha256"])

    def listed(self) -> dict[str, list[dict[str, str]]]:
        """Names and hashes of the files."""
        groups = {"files": self.paths, "valid_files": self.valid_paths}
        return {
            key: [{"name": path.name, "sha256": self.hashes[path]} for path in paths] for key, paths in groups.items()
        }

    def identity(self) -> Any:
        """Names and contents of the files: a file's size and time do not tell what is in it."""
        return self.listed()

    def check(self) -> None:
        """Read the beginning of every file (UserError)."""
        for path in self.sizes:
            if next(read_documents(path, self.text_field), None) is None:
                raise UserError(f"{path} (data.files or data.valid_files) holds no text; take it out of the glob.")

    def settle(self, known: None) -> None:
        """The files' contents leave nothing open."""

    def total(self) -> int | None:
        """Bytes of the training files where they lie."""
        return sum(self.sizes[path] for path in self.paths)

    def parts(self, megabytes: float | None) -> Sequence[Part]:
        """All documents, or the beginning of every file, in proportion to its size. Small files share a part."""
        whole = max(1, self.total() or 1)
        least = max(PART_BYTES, whole // MOST_PARTS)
        found: list[TextPart] = []
        room = 0
        for path in self.paths:
            if room <= 0:
                found.append(TextPart(self))
                room = least
            limit = None if megabytes is None else megabytes * 1e6 * self.sizes[path] / whole
            found[-1].files.append((path, limit))
            room -= self.sizes[path]
        return found

    def held_out(self, mended: Mended | None = None) -> Iterator[str] | None:
        """Documents of the held-out files, or None when there are none."""
        if not self.valid_paths:
            return None
        return (
            document for path in self.valid_paths for document in read_documents(path, self.text_field, mended=mended)
        )

    def unchanged(self, path: AnyFile) -> None:
        """UserError when a file is another one than at the start."""
        if self.hash_now(path) != self.hashes[path]:
            raise UserError(f"{path} changed while it was read; start again when it is complete.")

    def provenance(self) -> dict[str, Any]:
        """SHA-256 of every file; UserError when one changed since the start."""
        for path in self.hashes:
            self.unchanged(path)
        return {"source": "text", **self.listed()}


class TextPart:
    """Successive files of a TextSource, each with the bytes of text that are taken of it (None: all)."""

    def __init__(self, source: TextSource) -> None:
        self.source = source
        self.files: list[tuple[AnyFile, float | None]] = []

    def read(self, state: Any = None, advance: Advance = no_progress) -> Reading:
        """See Part; the state counts files of the part, and documents of the file."""
        place = {"file": 0, "documents": 0} | (state or {})
        mended = Mended()
        return Reading(self._documents(place, advance, mended), lambda: dict(place), mended)

    def _documents(self, place: dict[str, int], advance: Advance, mended: Mended) -> Iterator[str]:
        begin, passed = place["file"], place["documents"]
        for number, (path, limit) in enumerate(self.files[begin:], start=begin):
            place.update(file=number, documents=0)
            left = limit
            for document in read_documents(path, self.source.text_field, advance, mended):
                place["documents"] += 1
                if left is not None:
                    left -= len(document.encode())
                if place["documents"] > passed:
                    yield document
                elif place["documents"] == passed:
                    mended.forget()  # that of the documents passed over was counted when they were given
                if left is not None and left <= 0:
                    break
            passed = 0


def recalled(memory: Path | None) -> dict[str, dict[str, str]]:
    """Remembered hashes by address; none where the memory is missing or damaged."""
    try:
        found = {} if memory is None else read_json(memory)
    except UserError:
        return {}
    return found if isinstance(found, dict) else {}


def match_globs(key: str, patterns: list[str]) -> list[AnyFile]:
    """Files that the patterns match, each once; UserError for a pattern without a match or a file of unknown kind."""
    if not patterns:
        raise UserError(f"{key} is empty; give at least one glob, e.g. {key}='[/path/to/*.txt]'.")
    found: dict[AnyFile, None] = {}
    for pattern in patterns:
        files = remote_files(key, pattern) if remote.is_remote(pattern) else local_files(key, pattern)
        found.update(dict.fromkeys(files))
    for path in found:
        kind(path)
        if remote.size_of(path) == 0:
            raise UserError(f"{path} ({key}) is empty; take it out of the glob or write it again.")
    return list(found)


def local_files(key: str, pattern: str) -> Sequence[AnyFile]:
    """Files of this machine that a pattern matches (UserError for none)."""
    matches = sorted(Path(name) for name in glob.glob(at_home(pattern, key), recursive=True))
    files = [path for path in matches if path.is_file()]
    if matches and not files:
        raise UserError(f"{key}: {pattern!r} is a folder; say which of its files, e.g. {matches[0] / '*.txt'}.")
    if not files:
        raise UserError(f"{key}: {pattern!r} matches no file in {Path.cwd()}; correct the path or the glob.")
    return files


def remote_files(key: str, pattern: str) -> list[RemoteFile]:
    """Files of a store that an address matches (UserError for none)."""
    if not (files := remote.matches(pattern, key)):
        raise UserError(
            f"{key}: {pattern!r} matches no file there; correct the address, e.g. s3://bucket/folder/*.txt."
        )
    return files
