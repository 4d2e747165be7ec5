"""Documents out of one .txt, .jsonl or .parquet file, as a stream. Not which files are read (corpus.py)."""

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow
import pyarrow.parquet

from cramming.data.sources.compressed import COMPRESSIONS, decompressed, unpacked
from cramming.data.sources.compressed import DAMAGE as DAMAGED_COMPRESSION
from cramming.data.sources.source import Advance, Mended, no_progress
from cramming.errors import UserError, one_line
from cramming.remote import AnyFile, opened, size_of

BLOCK_BYTES = 1 << 20
# A longer document is cut at the end of a line, so that memory does not depend on the text.
MAX_DOCUMENT_CHARACTERS = 4 << 20
EMPTY_LINES = re.compile(r"\n(?:[ \t\r\f\v]*\n)+")
KINDS = (".txt", ".jsonl", ".parquet")
DAMAGE = (*DAMAGED_COMPRESSION, pyarrow.ArrowException)


def kind(path: AnyFile) -> str:
    """Format of a file from its name: .txt, .jsonl or .parquet; UserError for others."""
    suffixes = path.suffixes
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes = suffixes[:-1]
    if not suffixes or suffixes[-1] not in KINDS:
        raise UserError(f"{path} is of unknown kind; use .txt, .jsonl or .parquet, each also .xz, .gz or .zst.")
    return suffixes[-1]


def read_documents(
    path: AnyFile, text_field: str, advance: Advance = no_progress, mended: Mended | None = None
) -> Iterator[str]:
    """Non-empty documents of one file, in order; `advance` gets the bytes read of the file on the disk.

    UserError for text that is not UTF-8, binary content, damaged compression, or a missing field.
    """
    mended = mended or Mended()
    readers = {".txt": read_txt, ".jsonl": read_jsonl, ".parquet": read_parquet}
    try:
        for document in readers[kind(path)](path, text_field, advance, mended):
            pieces = cut(mended.whole(document))
            mended.cuts += len(pieces) - 1
            yield from filter(None, map(str.strip, pieces))
    except DAMAGE as error:
        raise UserError(f"{path} is damaged or not what its name says ({error}); get it again.") from None


def read_txt(path: AnyFile, _: str, advance: Advance, mended: Mended) -> Iterator[str]:
    """Documents between empty lines."""
    rest = ""
    for block in text_blocks(path, advance):
        pieces = EMPTY_LINES.split(rest + block)
        rest = pieces.pop()
        yield from pieces
        *full, rest = cut(rest)
        mended.cuts += len(full)
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


def read_jsonl(path: AnyFile, text_field: str, advance: Advance, mended: Mended) -> Iterator[str]:
    """The text field of each line."""
    for number, line in enumerate(whole_lines(text_blocks(path, advance)), start=1):
        if line.strip():
            text = json_text(path, number, line, text_field)
            if text is None:
                mended.rows_without_text += 1
            else:
                yield text


def whole_lines(blocks: Iterable[str]) -> Iterator[str]:
    """The lines of a text that comes in blocks."""
    parts: list[str] = []
    for block in blocks:
        head, *lines = block.split("\n")
        parts.append(head)
        if lines:
            yield "".join(parts)
            parts = [lines.pop()]
            yield from lines
    yield "".join(parts)


def json_text(path: AnyFile, number: int, line: str, text_field: str) -> str | None:
    """The text of one line of JSON; None for null, as a row or as its text."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:  # ValueError also for numbers of thousands of digits
        what = "nested too deeply" if isinstance(error, RecursionError) else error
        raise UserError(f"{path}, line {number}: not valid JSON ({what}).") from None
    if value is None or (isinstance(value, dict) and text_field in value and value[text_field] is None):
        return None
    if not isinstance(value, dict) or not isinstance(value.get(text_field), str):
        keys = ", ".join(value)[:200] if isinstance(value, dict) else type(value).__name__
        raise UserError(f"{path}, line {number}: no text under data.text_field={text_field!r} (found: {keys}).")
    return str(value[text_field])


def read_parquet(path: AnyFile, text_field: str, advance: Advance, mended: Mended) -> Iterator[str]:
    """The text column, row group after row group."""
    with unpacked(path) as whole, pyarrow.parquet.ParquetFile(whole, pre_buffer=False) as file:
        names = file.schema_arrow.names
        if text_field not in names:
            raise UserError(f"{path} has no column {text_field!r} (data.text_field); it has {', '.join(names)[:200]}.")
        share = size_of(path) // max(1, file.metadata.num_rows)
        for group in range(file.num_row_groups):
            for rows in group_rows(path, file, group, text_field):
                advance(share * len(rows))
                mended.rows_without_text += rows.count(None)
                for text in filter(None, rows):
                    if not isinstance(text, str):
                        kind_of = file.schema_arrow.field(text_field).type
                        raise UserError(f"{path}: column {text_field!r} (data.text_field) holds {kind_of}, not text.")
                    yield text


def group_rows(path: AnyFile, file: pyarrow.parquet.ParquetFile, group: int, column: str) -> Iterator[list[Any]]:
    """The column's values of a row group, some rows at a time; UserError names a damaged group."""
    batches = file.iter_batches(batch_size=256, row_groups=[group], columns=[column])
    while True:
        try:
            batch = next(batches, None)
            rows = None if batch is None else batch.column(0).to_pylist()
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            what = one_line(error)
            raise UserError(
                f"{path}, row group {group} of {file.num_row_groups}: damaged ({what}); get it again."
            ) from None
        if rows is None:
            return
        yield rows


def text_blocks(path: AnyFile, advance: Advance) -> Iterator[str]:
    """Decoded text in blocks of about a megabyte, line ends as \\n, a byte order mark left out."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")(errors="strict")
    done = position = 0
    with opened(path) as raw, decompressed(path, raw) as file:
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


def not_utf8(path: AnyFile, done: int, error: UnicodeDecodeError) -> UserError:
    """The error for text in another encoding."""
    return UserError(f"{path} is not UTF-8 (near byte {done + error.start:,} of its content); convert it with iconv.")
