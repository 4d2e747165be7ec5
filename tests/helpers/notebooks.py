"""Running a notebook's cells in this process, as Jupyter would, with neither Jupyter nor a display. Not a test."""

import ast
import contextlib
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from matplotlib import pyplot

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
SHOWN_AS = ("_repr_html_", "_repr_markdown_")


@dataclass
class Ran:
    """What a notebook printed, what its cells' last values show, and its figures as PNG."""

    text: str = ""
    shown: list[str] = field(default_factory=list)
    figures: list[bytes] = field(default_factory=list)


def cells(path: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """The cells of a notebook file, or those of one type."""
    return [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if kind in (None, cell["cell_type"])]


def run(name: str, folder: Path = FOLDER) -> Ran:
    """Every code cell of notebooks/<name>.ipynb in one namespace, in order, with `folder` as the working directory.

    Without network: what wants a socket fails. A cell's error is the test's, with the cell's number.
    """
    matplotlib.use("Agg")
    ran, out, names = Ran(), io.StringIO(), {"__name__": "__main__"}
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.setattr("socket.socket.connect", refuse)
        patch.chdir(folder)
        for number, cell in enumerate(cells(FOLDER / f"{name}.ipynb")):
            if cell["cell_type"] == "code":
                show(run_cell("".join(cell["source"]), f"{name}.ipynb, cell {number}", names), ran)
    ran.text = out.getvalue()
    return ran


def refuse(*address: object) -> None:
    raise OSError(f"a notebook asked for the network: {address[1:]}")


def run_cell(source: str, name: str, names: dict[str, Any]) -> object:
    """Execute a cell; the value of its last expression, None where it ends in another statement."""
    body = ast.parse(source, name).body
    last = ast.Expression(body.pop().value) if body and isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), name, "exec"), names)
    return eval(compile(last, name, "eval"), names) if last else None


def show(value: object, ran: Ran) -> None:
    """Keep what Jupyter would show under a cell."""
    ran.shown += [getattr(value, how)() for how in SHOWN_AS if hasattr(value, how)]
    for number in pyplot.get_fignums():
        buffer = io.BytesIO()
        pyplot.figure(number).savefig(buffer, dpi=100)
        ran.figures.append(buffer.getvalue())
    pyplot.close("all")
