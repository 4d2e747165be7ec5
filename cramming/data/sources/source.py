"""What every source of text offers, and the held-out decision by hash. Not for any one source."""

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

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

    def whole(self, text: str) -> str:
        """The text; halves of letters, which no encoding can hold, as U+FFFD."""
        if HALF_LETTERS.search(text) is None:
            return text
        self.half_letters += 1
        return HALF_LETTERS.sub("\ufffd", text)


class Source(Protocol):
    """Documents, and where they came from."""

    mended: Mended  # by `documents` and `held_out` so far

    def identity(self) -> Any:
        """What decides the result, as a JSON-able value, found without long work; UserError where nothing is there."""

    def check(self) -> None:
        """Find in advance what would fail late (UserError)."""

    def total(self) -> int | None:
        """Bytes that `documents` will report to `advance`, where they are known."""

    def documents(self, megabytes: float | None, advance: Advance = no_progress) -> Iterator[str]:
        """Documents in a fixed order; with `megabytes`, a fixed sample of at most about so many 10^6 UTF-8 bytes."""

    def held_out(self) -> Iterator[str] | None:
        """Documents that the user holds out; None when they are to be chosen by hash."""

    def provenance(self) -> dict[str, Any]:
        """Hashes and versions of what has been read, for the manifest."""


def digest(document: str) -> bytes:
    """Eight bytes that identify a document's text."""
    return hashlib.blake2b(document.encode(), digest_size=8).digest()


def fraction(digest_bytes: bytes) -> float:
    """A digest as a number in [0, 1)."""
    return int.from_bytes(digest_bytes[:6], "big") / 2**48
