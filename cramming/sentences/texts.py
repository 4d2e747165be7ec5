"""Texts out of local files: a line each to embed, or passages to search. Not their vectors."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cramming.data.sources.readers import KINDS, kind, read_documents
from cramming.errors import UserError

WORDS = 80  # of a passage, about: what a small encoder takes
SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+")


@dataclass(frozen=True)
class Lines:
    """Texts of a file, one a line.

    Attributes:
        texts: the lines that hold something, without blanks at their ends.
        numbers: of these lines in the file, from 1.
    """

    texts: list[str]
    numbers: list[int]


def read_lines(path: Path) -> Lines:
    """The lines of a UTF-8 text; empty ones are left out.

    Raises:
        UserError: the file is missing, no UTF-8 text, or nothing stands in it.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; give a text file with one text a line.")
    data = path.read_bytes()
    try:
        if b"\0" in data:
            raise ValueError("it holds a zero byte")
        # Not splitlines(): that also breaks at characters that are legal inside a text.
        lines = [line.strip() for line in data.decode("utf-8-sig").split("\n")]
    except ValueError as error:
        reason = str(error).split(":")[0]
        raise UserError(f"{path} is not UTF-8 text ({reason}); give plain text.") from None
    kept = [(line, number) for number, line in enumerate(lines, start=1) if line]
    if not kept:
        raise UserError(f"{path} is empty; give one text a line.")
    return Lines([line for line, _ in kept], [number for _, number in kept])


def text_files(places: Iterable[Path]) -> list[Path]:
    """The files themselves, and those of the folders that are texts by their names, in order.

    Raises:
        UserError: a place is missing, a file of unknown kind, or there is nothing at all.
    """
    found: list[Path] = []
    for place in places:
        if place.is_dir():
            found += sorted(path for path in place.rglob("*") if path.is_file() and _is_text(path))
        elif place.is_file():
            kind(place)
            found.append(place)
        else:
            raise UserError(f"{place} is missing; give text files, or folders of them.")
    if not found:
        raise UserError(f"there is no text to search; give files or folders of {', '.join(KINDS)}, also compressed.")
    return list(dict.fromkeys(found))


def _is_text(path: Path) -> bool:
    try:
        return bool(kind(path)) and not any(part.startswith(".") for part in path.parts)
    except UserError:
        return False


def passages(path: Path, text_field: str = "text") -> Iterator[str]:
    """What is found in a file: its paragraphs, long ones in pieces of sentences. UserError as `read_documents`."""
    for document in read_documents(path, text_field):
        for paragraph in document.split("\n"):
            yield from pieces(" ".join(paragraph.split()))


def pieces(paragraph: str, words: int = WORDS) -> Iterator[str]:
    """Whole sentences together up to about so many words; a longer sentence is cut between words."""
    held: list[str] = []
    for sentence in SENTENCE_END.split(paragraph):
        new = sentence.split()
        if held and len(held) + len(new) > words:
            yield " ".join(held)
            held = []
        held += new
        while len(held) > words:
            yield " ".join(held[:words])
            held = held[words:]
    if held:
        yield " ".join(held)
