"""An attribute of several parts of a model set for a while. Not what it means to them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


@contextmanager
def meanwhile(parts: Sequence[Any], name: str, value: Any) -> Iterator[None]:
    """Inside, attribute `name` of every part is `value`; afterwards each has its own again."""
    before = [getattr(part, name) for part in parts]
    try:
        for part in parts:
            setattr(part, name, value)
        yield
    finally:
        for part, own in zip(parts, before, strict=True):
            setattr(part, name, own)
