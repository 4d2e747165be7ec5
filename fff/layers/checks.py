"""Checks of a kind's settings, each a ValueError with the field's name in backticks. Not the settings themselves."""

import math
from collections.abc import Iterable


def whole_number(name: str, value: object, least: int, most: int | None = None, *, example: int | None = None) -> None:
    """Refuse (ValueError) what is no whole number within the bounds, or None."""
    if type(value) is int and value >= least and (most is None or value <= most):
        return
    bounds = f"to {least} or more" if most is None else f"from {least} to {most}"
    raise ValueError(f"`{name}` is {value!r}; set it {bounds}" + (f", e.g. `{name}`={example}." if example else "."))


def rate_or_weight(name: str, value: object) -> None:
    """Refuse (ValueError) what is no finite number of 0 or more."""
    if type(value) not in (int, float) or not 0 <= value < math.inf:  # type: ignore[operator]
        raise ValueError(f"`{name}` is {value!r}; set it to a number of 0 or more.")


def one_of(name: str, value: object, choices: Iterable[str], kind: str) -> None:
    """Refuse (ValueError) what is none of a kind's choices."""
    if value not in (names := tuple(choices)):
        raise ValueError(f"`{name}` is {value!r}; {kind} takes one of {', '.join(names)}.")


def true_or_false(name: str, value: object) -> None:
    """Refuse (ValueError) what is neither."""
    if not isinstance(value, bool):
        raise ValueError(f"`{name}` is {value!r}; set it to true or false.")
