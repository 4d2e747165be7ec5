"""Checks of configuration values, each in one sentence that names the key and the mend. Not what a value is for."""

import math
import os
from collections.abc import Iterable
from typing import Any

from cramming.errors import UserError


def one_of(key: str, value: object, allowed: Iterable[object]) -> None:
    """Refuse a value that is not among the allowed ones (UserError)."""
    choices = tuple(allowed)
    if value not in choices:
        raise UserError(f"{key} is {value!r}; choose one of {', '.join(map(str, choices))}.")


def number(
    key: str,
    value: float | None,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    infinite: bool = False,
    hint: str = "",
) -> None:
    """Refuse a number outside its bounds, NaN, and infinity unless `infinite` (UserError); None, no number, passes.

    Args:
        least, most: bounds that the value may take; `above` and `below` are bounds that it may not.
        hint: what else the message should say, e.g. "e.g. ffn.depth=11".
    """
    if value is None:
        return
    inside = (
        (least is None or value >= least)
        and (above is None or value > above)
        and (most is None or value <= most)
        and (below is None or value < below)
    )
    if not inside or math.isnan(value) or (math.isinf(value) and not infinite):
        wanted = _bounds(least, above, most, below) or "a finite number"
        raise UserError(f"{key} is {value}; set it {wanted}{', ' + hint if hint else ''}.")


def _bounds(least: float | None, above: float | None, most: float | None, below: float | None) -> str:
    """The bounds in words: "from 0 to below 1", "to 1 or more", "above 0"."""
    lower = f"above {above:g}" if above is not None else None
    if least is not None:
        lower = f"from {least:g}" if most is not None or below is not None else f"to {least:g} or more"
    upper = f"to {most:g}" if most is not None else f"to below {below:g}" if below is not None else None
    return " ".join(filter(None, (lower, upper)))


def at_home(path: str, key: str) -> str:
    """A path that no shell has read: a leading ~ is the home folder's, that of ~bob bob's. `key` gave the path.

    Raises:
        UserError: there is no such home.
    """
    found = os.path.expanduser(path)
    if found.startswith("~"):
        raise UserError(f"{key} is {path!r}, and {path.split('/')[0]} is nobody's home here; give the whole path.")
    return found


def paths(group: str, values: object, keys: Iterable[str]) -> None:
    """Put the home folder where a path in a frozen dataclass begins with ~ (UserError where there is none)."""
    for key in keys:
        if (path := getattr(values, key)) is not None:
            object.__setattr__(values, key, at_home(path, f"{group}.{key}".lstrip(".")))


def numbers(group: str, values: object, keys: Iterable[str], **bounds: Any) -> None:
    """`number` for several fields of one object; each key is named `group.field`."""
    for key in keys:
        number(f"{group}.{key}", getattr(values, key), **bounds)
