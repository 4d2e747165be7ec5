"""Source `text`: documents streamed from local .txt, .jsonl and .parquet files. Not for tokens or splits by hash."""

import codecs
import functools
import glob
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from cramming.data.sources.compressed import COMPRESSIONS, decompressed, unpacked
from cramming.data.sources.compressed import DAMAGE as DAMAGED_COMPRESSION
from cramming.data.sources.source import Advance, no_progress
from cramming.errors import UserError
from cramming.files import sha256

BLOCK_BYTES = 1 << 20
# A longer document is cut at the end of a line, so that memory does not depend on the text.
MAX_DOCUMENT_CHARACTERS = 4 << 20
EMPTY_LINES = re.compile(r"\n(?:[ \t\r\f\v]*\n)+")
KINDS = (".txt", ".jsonl", ".parquet")
DAMAGE = (*DAMAGED_COMPRESSION, pyarrow.ArrowInvalid)


class TextSource:
    """Local files by glob, in the globs' order and sorted within each."""

    def __init__(self, files: list[str], valid_files: list[str], text_field: str) -> None:
        self.paths = match_globs("data.files", files)
        self.valid_paths = match_globs("data.valid_files", valid_files) if valid_files else []
        self.text_field = text_field
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
            for document in read_documents(path, self.text_field, advance):
                yield document
                if left is not None:
                    left -= len(document.encode())
                    if left <= 0:
                        break

    def held_out(self) -> Iterator[str] | None:
        """Documents of the held-out files, or None when there are none."""
        if not self.valid_paths:
            return None
        return (document for path in self.valid_paths for document in read_documents(path, self.text_field))

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
        matches = sorted(Path(name) for name in glob.glob(str(Path(pattern).expanduser()), recursive=True))
        matches = [path for path in matches if path.is_file()]
        if not matches:
            raise UserError(f"{key}: {pattern!r} matches no file in {Path.cwd()}; correct the path or the glob.")
        found.update(dict.fromkeys(matches))
    for path in found:
        kind(path)
        if path.stat().st_size == 0:
            raise UserError(f"{path} ({key}) is empty; take it out of the glob or write it again.")
    return list(found)


def kind(path: Path) -> str:
    """Format of a file from its name: .txt, .jsonl or .parquet; UserError for others."""
    suffixes = path.suffixes
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes = suffixes[:-1]
    if not suffixes or suffixes[-1] not in KINDS:
        raise UserError(f"{path} is of unknown kind; use .txt, .jsonl or .parquet, each also .xz, .gz or .zst.")
    return suffixes[-1]


def read_documents(path: Path, text_field: str, advance: Advance = no_progress) -> Iterator[str]:
    """Non-empty documents of one file, in order; `advance` gets the bytes read of the file on the disk.

    UserError for text that is not UTF-8, binary content, damaged compression, or a missing field.
    """
    readers = {".txt": read_txt, ".jsonl": read_jsonl, ".parquet": read_parquet}
    try:
        for document in readers[kind(path)](path, text_field, advance):
            yield from filter(None, map(str.strip, cut(document)))
    except DAMAGE as error:
        raise UserError(f"{path} is damaged or not what its name says ({error}); get it again.") from None


def read_txt(path: Path, _: str, advance: Advance) -> Iterator[str]:
    """Documents between empty lines."""
    rest = ""
    for block in text_blocks(path, advance):
        pieces = EMPTY_LINES.split(rest + block)
        rest = pieces.pop()
        yield from pieces
        *full, rest = cut(rest)
        yield from full
    yield rest


def cut(document: str) -> list[str]:
    """The document in pieces of at most MAX_DOCUMENT_CHARACTERS, cut at line ends where there are some."""
    pieces = []
    while len(document) > MAX_DOCUMENT_CHARACTERS:
        end = document.rfind("\n", 0, MAX_DOCUMENT_CHARACTERS) + 1 or MAX_DOCUMENT_CHARACTERS
        pieces.append(document[:end])
        document = document[end:]
    return [*pieces, document]


def read_jsonl(path: Path, text_field: str, advance: Advance) -> Iterator[str]:
    """The text field of each line."""
    rest, number = "", 0
    for block in itertools.chain(text_blocks(path, advance), ["\n"]):
        lines = (rest + block).split("\n")
        rest = lines.pop()
        for line in lines:
            number += 1
            if line.strip():
                yield json_text(path, number, line, text_field)


def json_text(path: Path, number: int, line: str, text_field: str) -> str:
    """The text of one line of JSON."""
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {number}: not valid JSON ({error}).") from None
    if not isinstance(value, dict) or not isinstance(value.get(text_field), str):
        keys = ", ".join(value) if isinstance(value, dict) else type(value).__name__
        raise UserError(f"{path}, line {number}: no text under data.text_field={text_field!r} (found: {keys}).")
    return value[text_field]


def read_parquet(path: Path, text_field: str, advance: Advance) -> Iterator[str]:
    """The text column, row group after row group."""
    with unpacked(path) as whole, pyarrow.parquet.ParquetFile(whole, pre_buffer=False) as file:
        names = file.schema_arrow.names
        if text_field not in names:
            raise UserError(f"{path} has no column {text_field!r} (data.text_field); it has {', '.join(names)}.")
        share = path.stat().st_size // max(1, file.metadata.num_rows)
        for batch in file.iter_batches(batch_size=256, columns=[text_field]):
            advance(share * batch.num_rows)
            for text in filter(None, batch.column(0).to_pylist()):
                if not isinstance(text, str):
                    kind_of = file.schema_arrow.field(text_field).type
                    raise UserError(f"{path}: column {text_field!r} (data.text_field) holds {kind_of}, not text.")
                yield text


def text_blocks(path: Path, advance: Advance) -> Iterator[str]:
    """Decoded text in blocks of about a megabyte, line ends as \\n, a byte order mark left out."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")(errors="strict")
    done = position = 0
    with open(path, "rb") as raw, decompressed(path, raw) as file:
        while block := file.read(BLOCK_BYTES):
            if b"\0" in block:
                raise UserError(f"{path} is binary (a zero byte near byte {done:,} of its content), not text.")
            try:
                text = decoder.decode(block)
            except UnicodeDecodeError as error:
                raise not_utf8(path, done, error) from None
            done += len(block)
            yield text.replace("\r\n", "\n")
            advance(raw.tell() - position)
            position = raw.tell()
    try:
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise not_utf8(path, done, error) from None


def not_utf8(path: Path, done: int, error: UnicodeDecodeError) -> UserError:
    """The error for text in another encoding."""
    return UserError(f"{path} is not UTF-8 (near byte {done + error.start:,} of its content); convert it with iconv.")
