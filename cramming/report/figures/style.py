"""What figures have in common: for print, told apart by markers and not by colours alone. Not what they show."""

import io
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

# Okabe and Ito's colours, told apart by the colour-blind; the first is the dense layers'.
DENSE = "black"
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "h")
LINES = ("-", "--", ":", "-.")
DENSE_LINES = (*LINES, (0, (1, 3)), (0, (5, 5)), (0, (3, 1, 1, 1, 1, 1)))
RC: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "legend.fontsize": 8,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "svg.hashsalt": "fff-cramming",
    "svg.fonttype": "none",
}


def mark(place: int) -> dict[str, Any]:
    """Colour and marker of a figure's row; 66 differ."""
    return {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[place % len(MARKERS)]}


def line(place: int) -> dict[str, Any]:
    """The same with a line, whose form changes where the colours begin anew."""
    return {**mark(place), "linestyle": LINES[place // len(COLOURS) % len(LINES)]}


def looks(names: Sequence[str], dense: Collection[str]) -> dict[str, dict[str, Any]]:
    """Name -> look of its line: dense layers in black by the form of the line, all others by colour and marker too."""
    black, others = [name for name in names if name in dense], [name for name in names if name not in dense]
    found = {name: {"color": DENSE, "linestyle": DENSE_LINES[n % len(DENSE_LINES)]} for n, name in enumerate(black)}
    return found | {name: line(place) for place, name in enumerate(others)}


def marks(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Name -> colour and marker: the same in all panels of a figure."""
    return {name: mark(place) for place, name in enumerate(dict.fromkeys(names))}


@contextmanager
def panels(
    rows: int,
    columns: int,
    width: float = 5.5,
    height: float = 4.0,
    margin: float = 1.0,
    *,
    heights: Sequence[float] | None = None,
) -> Iterator[tuple[Any, Any]]:
    """A figure and its axes (rows, columns), of inches each, rows of `heights` where they differ; closed at the end."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context(RC):
        figure, axes = pyplot.subplots(
            rows,
            columns,
            figsize=(margin + width * columns, sum(heights or [height] * rows)),
            height_ratios=heights,
            squeeze=False,
            layout="constrained",
        )
        try:
            yield figure, axes
        finally:
            pyplot.close(figure)


def saved(figure: Any, name: str) -> dict[str, bytes]:
    """The figure as PNG and SVG by file name, the same bytes for the same content."""
    files = {}
    for form, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=form, dpi=150, metadata=metadata)
        files[f"{name}.{form}"] = buffer.getvalue()
    return files


def plain_ticks(axis: Any) -> None:
    """Numbers beside a logarithmic axis as they are, 0.1 and no power; between its decades too, where there are few."""
    from matplotlib.ticker import LogFormatter

    class Plain(LogFormatter):
        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:g}" if super().__call__(x, pos) else ""

    axis.set_major_formatter(Plain(minor_thresholds=(2, 0.5)))
    axis.set_minor_formatter(Plain(minor_thresholds=(2, 0.5)))


def errors(value: float, low: float, high: float) -> list[list[float]]:
    """How far an interval reaches down and up, as error bars take it."""
    return [[max(0.0, value - low)], [max(0.0, high - value)]]
