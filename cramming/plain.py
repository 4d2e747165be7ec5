"""A root configuration from plain values, without Hydra: what a JSON file or a composed YAML says. Not composing it."""

import typing
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from cramming.errors import UserError
from cramming.files import read_json, write_json
from cramming.roots import PretrainRoot

Root = TypeVar("Root")


def inner(kind: Any) -> tuple[type | None, bool]:
    """The dataclass in a field's type `D` or `list[D]`, and whether it is a list of them."""
    many = typing.get_origin(kind) is list
    found = typing.get_args(kind)[0] if many else kind
    return (found, many) if isinstance(found, type) and is_dataclass(found) else (None, False)


def build(cls: type[Root], values: dict[str, Any]) -> Root:
    """The frozen dataclass that nested plain values describe; its checks raise UserError."""
    hints = typing.get_type_hints(cls)
    built = {}
    for name, value in values.items():
        found, many = inner(hints[name])
        if found is not None:
            value = [build(found, item) for item in value] if many else build(found, value)
        built[name] = value
    return cls(**built)


def write_order(root: PretrainRoot, data: Path, folder: Path) -> Path:
    """Write a pretraining run's configuration and prepared data as `scripts/pretrain_plain.py` reads them."""
    path = folder / f"{root.run_name}.json"
    write_json(path, {"config": root.as_dict(), "data": str(data)})
    return path


def read_order(path: Path) -> tuple[PretrainRoot, Path]:
    """What `write_order` wrote: configuration and prepared folder.

    Raises:
        UserError: the file is missing, damaged, or of other code.
    """
    content = read_json(path)
    try:
        return build(PretrainRoot, content["config"]), Path(content["data"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} does not fit this code ({error!r}); write it again with scripts/prepare.py.") from None
