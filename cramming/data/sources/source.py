"""What every source of text offers, and the held-out decision by hash. Not for any one source."""

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

MOST_PARTS = 512  # of one source: each has its locks, files and flushes
HALF_LETTERS = re.compile("[\ud800-\udfff]")

# Called with the number of bytes newly read; the unit is the source's (`total`).
Advance = Callable[[int], None]


def no_progress(_: int) -> None:
    """An Advance that shows nothing."""


@dataclass
class Mended:
    """What was left out or changed of what a source holds, by number."""

    rows_without_text: int = 0
    half_letters: int = 0  # documents with some
    cuts: int = 0

    def copy(self) -> "Mended":
        """As it is now."""
        return replace(self)

    def forget(self) -> None:
        """Count from here on."""
        vars(self).update(vars(Mended()))

    def whole(self, text: str) -> str:
        """The text; halves of letters, which no encoding can hold, as U+FFFD."""
        if HALF_LETTERS.search(text) is None:
            return text
        self.half_letters += 1
        return HALF_LETTERS.sub("\ufffd", text)


class Reading:
    """Documents of a part one after another, and where the next one begins.

    Attributes:
        mended: by the documents given so far, from where the reading began.
    """

    def __init__(self, documents: Iterator[str], state: Callable[[], Any], mended: Mended) -> None:
        self.documents, self._state, self.mended = documents, state, mended

    def __iter__(self) -> Iterator[str]:
        return self.documents

    def state(self) -> Any:
        """Where the document after the last given one begins: a JSON-able value that `Part.read` takes."""
        return self._state()


class Part(Protocol):
    """A stretch of a source that is read apart from the others, perhaps on another machine."""

    def read(self, state: Any = None, advance: Advance = no_progress) -> Reading:
        """Its documents in order, from the beginning or from where an earlier reading's state says."""


class Given:
    """Documents that are there already, as a part."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts

    def read(self, state: Any = None, advance: Advance = no_progress) -> Reading:
        """See Part; the state counts documents."""
        done = 0

        def documents() -> Iterator[str]:
            nonlocal done
            for done, text in enumerate(self.texts, start=1):
                advance(len(text.encode()))
                if done > (state or 0):
                    yield text

        return Reading(documents(), lambda: done, Mended())


class Source(Protocol):
    """Documents, and where they came from."""

    def identity(self) -> Any:
        """What decides the result, as a JSON-able value, found without long work; UserError where nothing is there."""

    def check(self) -> None:
        """Find in advance what would fail late (UserError)."""

    def settle(self, known: Any) -> Any:
        """What the identity leaves open, such as the newest commit, and all who share the work have to agree on.

        Args:
            known: what one of them found before, to be held to; None for the first.

        Returns:
            it, as a JSON-able value. UserError where it cannot be had any more.
        """

    def total(self) -> int | None:
        """Bytes that all parts together will report to `advance`, where they are known."""

    def parts(self, megabytes: float | None) -> Sequence[Part]:
        """All documents, in a fixed order, in parts that depend on nothing but settings and content.

        Args:
            megabytes: for a fixed sample of at most about so many 10^6 UTF-8 bytes.
        """

    def held_out(self, mended: Mended | None = None) -> Iterator[str] | None:
        """Documents that the user holds out; None when they are to be chosen by hash."""

    def provenance(self) -> dict[str, Any]:
        """Hashes and versions of what has been read, for the manifest."""


def documents(source: Source, megabytes: float | None) -> Iterator[str]:
    """The documents of all parts."""
    for part in source.parts(megabytes):
        yield from part.read()


def digest(document: str) -> bytes:
    """Eight bytes that identify a document's text."""
    return hashlib.blake2b(document.encode(), digest_size=8).digest()


def fraction(digest_bytes: bytes) -> float:
    """A digest as a number in [0, 1)."""
    return int.from_bytes(digest_bytes[:6], "big") / 2**48
