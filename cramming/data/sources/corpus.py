"""Source `text`: local files by glob, and what identifies them. Not how a file is read (readers.py)."""

import functools
import glob
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cramming.checks import at_home
from cramming.data.sources.readers import kind, read_documents
from cramming.data.sources.source import Advance, Mended, no_progress
from cramming.errors import UserError
from cramming.files import sha256


class TextSource:
    """Local files by glob, in the globs' order and sorted within each."""

    def __init__(self, files: list[str], valid_files: list[str], text_field: str) -> None:
        self.paths = match_globs("data.files", files)
        self.valid_paths = match_globs("data.valid_files", valid_files) if valid_files else []
        self.text_field = text_field
        self.mended = Mended()
        self.sizes = {path: path.stat().st_size for path in [*self.paths, *self.valid_paths]}
        if both := sorted({path.resolve() for path in self.paths} & {path.resolve() for path in self.valid_paths}):
            raise UserError(f"data.valid_files and data.files both match {both[0]}; held-out text must stay apart.")

    @functools.cached_property
    def hashes(self) -> dict[Path, str]:
        """SHA-256 of every file, as it was when first asked for."""
        return {path: sha256(path) for path in self.sizes}

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

    def total(self) -> int | None:
        """Bytes of the training files on the disk."""
        return sum(self.sizes[path] for path in self.paths)

    def documents(self, megabytes: float | None, advance: Advance = no_progress) -> Iterator[str]:
        """All documents, or the beginning of every file, in proportion to its size."""
        whole = max(1, self.total() or 1)
        for path in self.paths:
            left = None if megabytes is None else megabytes * 1e6 * self.sizes[path] / whole
            for document in read_documents(path, self.text_field, advance, self.mended):
                yield document
                if left is not None:
                    left -= len(document.encode())
                    if left <= 0:
                        break

    def held_out(self) -> Iterator[str] | None:
        """Documents of the held-out files, or None when there are none."""
        if not self.valid_paths:
            return None
        return (
            document
            for path in self.valid_paths
            for document in read_documents(path, self.text_field, mended=self.mended)
        )

    def provenance(self) -> dict[str, Any]:
        """SHA-256 of every file; UserError when one changed since the start."""
        for path, before in self.hashes.items():
            if sha256(path) != before:
                raise UserError(f"{path} changed while it was read; start again when it is complete.")
        return {"source": "text", **self.listed()}


def match_globs(key: str, patterns: list[str]) -> list[Path]:
    """Files that the patterns match, each once; UserError for a pattern without a match or a file of unknown kind."""
    if not patterns:
        raise UserError(f"{key} is empty; give at least one glob, e.g. {key}='[/path/to/*.txt]'.")
    found: dict[Path, None] = {}
    for pattern in patterns:
        matches = sorted(Path(name) for name in glob.glob(at_home(pattern, key), recursive=True))
        files = [path for path in matches if path.is_file()]
        if matches and not files:
            raise UserError(f"{key}: {pattern!r} is a folder; say which of its files, e.g. {matches[0] / '*.txt'}.")
        if not files:
            raise UserError(f"{key}: {pattern!r} matches no file in {Path.cwd()}; correct the path or the glob.")
        found.update(dict.fromkeys(files))
    for path in found:
        kind(path)
        if path.stat().st_size == 0:
            raise UserError(f"{path} ({key}) is empty; take it out of the glob or write it again.")
    return list(found)
