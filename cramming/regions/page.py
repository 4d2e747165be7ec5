"""One self-contained HTML page from measured regions. What it looks like stands in page.html, page.css and *.js."""

import base64
import html
import json
from pathlib import Path
from typing import Any

import numpy as np

from cramming.errors import UserError
from cramming.files import check_writable, write_atomic
from cramming.regions.measure import Regions

HOME = Path(__file__).parent
SCRIPTS = ("data.js", "tree.js", "panel.js", "page.js")  # one scope, in this order


def check_page(path: Path) -> None:
    """What would not let the page be written must show before it is measured: UserError for a folder, or OSError."""
    if path.is_dir():
        raise UserError(f"--out: {path} is a folder; name a file in it, e.g. {path}/regions.html.")
    check_writable(path.parent, "--out", path.name)


def write_page(regions: Regions, path: Path) -> int:
    """Write the page, complete or not at all; returns its size in bytes."""
    content = page(regions).encode()
    write_atomic(path, content)
    return len(content)


def page(regions: Regions) -> str:
    """The page as HTML, with style, scripts and data inside and a policy that forbids it any network."""
    # No "<" in the data, so that a text with "</script>" in it ends nothing.
    data = json.dumps(contents(regions), ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    parts = {
        "{{title}}": html.escape(f"Regions of {regions.run}"),
        "{{style}}": (HOME / "page.css").read_text("utf-8"),
        "{{script}}": "\n".join((HOME / name).read_text("utf-8") for name in SCRIPTS),
        "{{data}}": data,
    }
    result = (HOME / "page.html").read_text("utf-8")
    for mark, part in parts.items():  # the data come last: nothing is replaced inside of them
        result = result.replace(mark, part)
    return result


def contents(regions: Regions) -> dict[str, Any]:
    """What data.js reads: arrays in base64 with their type, token ids renumbered to the vocabulary that occurs."""
    probe = regions.probe
    numbers, ids = np.unique(probe.ids, return_inverse=True)
    return {
        "run": regions.run,
        "text_name": probe.name,
        "whole": probe.whole,
        "text": probe.text,
        "seq_len": regions.seq_len,
        "ids": packed(ids, "<u4"),
        "starts": packed(probe.starts, "<u4"),
        "ends": packed(probe.ends, "<u4"),
        "vocabulary": [regions.vocabulary[int(number)] for number in numbers],
        "layers": [
            {
                "name": layer.name,
                "depth": layer.depth,
                "editable": layer.editable,
                "trees": [
                    {"leaves": packed(leaves, leaves.dtype.str), "margins": packed(margins, "<f4")}
                    for leaves, margins in zip(layer.leaves, layer.margins, strict=True)
                ],
            }
            for layer in regions.layers
        ],
    }


def packed(values: np.ndarray, dtype: str) -> dict[str, str]:
    """An array as {"type": "u1", "u2", "u4" or "f4", "base64": little-endian bytes}."""
    data = np.ascontiguousarray(values, dtype=np.dtype(dtype))
    return {"type": dtype[1:], "base64": base64.b64encode(data.tobytes()).decode()}
