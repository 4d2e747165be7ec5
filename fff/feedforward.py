"""From the kind of a feedforward layer to its settings and class: the one chooser. Not the kinds (layers).

A new kind is a file with its `Settings` and its layer (see fff.layers.base), and a line here.
"""

import difflib
import importlib
import re
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from fff.layers.base import Settings

# Where each kind's settings stand; imported when asked for.
KINDS = {
    "dense": "fff.layers.dense.DenseSettings",
    "fixed": "fff.rivals.fixed.FixedSettings",
    "leaf": "fff.layers.leaf.LeafSettings",
    "moe": "fff.rivals.moe.MoESettings",
    "none": "fff.layers.none.NoneSettings",
    "path": "fff.layers.path_settings.PathSettings",
    "peer": "fff.rivals.peer.PEERSettings",
}


def settings_class(kind: object) -> type[Settings]:
    """The settings of a kind; ValueError lists the kinds that there are."""
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"`kind` is {kind!r}; choose one of {', '.join(sorted(KINDS))}.")
    module, _, name = KINDS[kind].rpartition(".")
    return getattr(importlib.import_module(module), name)


def settings_from(specification: Mapping[str, Any], group: str = "") -> Settings:
    """The settings that a specification describes, e.g. {"kind": "path", "trees": 1, "depth": 11}.

    `settings_from(...).build(d_in, d_out)` is the layer.

    Args:
        specification: "kind" and the fields of its settings, as `ffn` in a model's config.json.
        group: what messages should put before the names of keys, "ffn" for "ffn.depth".

    Raises:
        ValueError: an unknown kind or key, a missing one, or a value that the kind cannot take; the key is named.
    """
    try:
        return _settings(dict(specification))
    except ValueError as error:
        raise ValueError(_named(str(error), group)) from None


def _settings(values: dict[str, Any]) -> Settings:
    kind = values.pop("kind", None)
    found = settings_class(kind)
    required = {item.name for item in fields(found) if item.default is MISSING}
    known = [item.name for item in fields(found)]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"it has {', '.join(known) or 'none'}."
            raise ValueError(f"`{key}` is no key of kind {kind}; {hint}")
    return found(**dict.fromkeys(required) | values)  # the kind's own check says what a missing value should be


def _named(message: str, group: str) -> str:
    if not group:
        return message
    return re.sub(r"`(\w+)`", rf"{group}.\1", message) if "`" in message else f"{group}: {message}"
