"""Frozen dataclasses from nested plain values, as JSON or composed YAML give them. Not composing them (config.py)."""

import difflib
import typing
from dataclasses import is_dataclass
from typing import Any, TypeVar

from cramming.errors import UserError

Root = TypeVar("Root")


def inner(kind: Any) -> tuple[type | None, bool]:
    """The dataclass in a field's type `D` or `list[D]`, and whether it is a list of them."""
    many = typing.get_origin(kind) is list
    found = typing.get_args(kind)[0] if many else kind
    return (found, many) if isinstance(found, type) and is_dataclass(found) else (None, False)


def flat(values: dict[str, Any], group: str = "") -> dict[str, Any]:
    """Nested plain values by dotted key."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{group}{name}.") if isinstance(value, dict) else {f"{group}{name}": value}
    return found


def build(cls: type[Root], values: dict[str, Any]) -> Root:
    """The frozen dataclass that nested plain values describe; its checks raise UserError."""
    hints = typing.get_type_hints(cls)
    built = {}
    for name, value in values.items():
        if name not in hints:
            near = difflib.get_close_matches(name, hints, n=1)
            raise UserError(f"{name} is no key of {cls.__name__}" + (f"; did you mean {near[0]}?" if near else "."))
        found, many = inner(hints[name])
        if found is not None:
            value = [build(found, item) for item in value] if many else build(found, value)
        built[name] = value
    return cls(**built)
