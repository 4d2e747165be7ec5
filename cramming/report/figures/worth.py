"""The figure of what visited neurons are worth, all sizes in one panel. Not the curves behind it (width.py)."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from cramming.report.comparisons import Comparison, Row
from cramming.report.figures.style import DENSE, LINES, errors, mark, panels, saved
from cramming.report.figures.width import estimate, within
from cramming.report.trend import followed, priced

TICKS = (0, 1, 4, 16, 64, 256, 1024, 4096, 16384)
APART = 0.08  # between two sets at one place, of the axis' own unit


def draw_worth(sets: Sequence[Comparison]) -> dict[str, bytes]:
    """Effective width against neurons used: of layers that all sets with a curve have, or of all where none is so."""
    every = [(found, row) for found, _ in priced(sets) for row in found.rows]
    shown = [each for each in in_all(sets) or every if each[1].worth]
    if not shown:
        return {}
    with panels(1, 1, width=6.5, height=3.6) as (figure, axes):
        panel(axes[0, 0], shown)
        return saved(figure, "worth")


def in_all(sets: Sequence[Comparison]) -> list[tuple[Comparison, Row]]:
    """The layers that no set of their experiment lacks, of those that have a curve; of several sets."""
    rows = followed(sets)
    there = Counter((found.experiment, label) for label, found, _ in rows)
    most = Counter(found.experiment for found, _ in priced(sets))
    return [(found, row) for label, found, row in rows if there[found.experiment, label] == most[found.experiment]]


def panel(axis: Any, shown: Sequence[tuple[Comparison, Row]]) -> None:
    """The points, the line of one dense neuron for each visited, and what was trained above them."""
    titles = list(dict.fromkeys(found.title for found, _ in shown))
    for found, row in shown:
        place = titles.index(found.title)
        point(axis, found, row, np.expm1(np.log1p(row.neurons_used) + APART * (place - (len(titles) - 1) / 2)), place)
    most = max(max(row.neurons_used, row.neurons_trained) for _, row in shown)
    reach = max(row.neurons_used for _, row in shown)
    axis.plot([0, most], [0, most], color=DENSE, linewidth=1.0, label="one dense neuron for each visited")
    trained: dict[tuple[int, int], str] = {}  # of layers in one place the first one's name
    for _, row in shown:
        trained.setdefault((row.neurons_used, row.neurons_trained), row.brief)
    axis.plot(
        *zip(*trained, strict=True), linestyle="", marker="_", color="grey", markersize=14, label="neurons trained"
    )
    for (used, all_of_them), name in trained.items():
        axis.annotate(name, (used, all_of_them), (0, 5), textcoords="offset points", ha="center", fontsize=8)
    for place, title in enumerate(titles):
        axis.plot([], [], label=title.rpartition(", data")[0], **mark(place), linestyle=LINES[0])
    for scale in (axis.set_xscale, axis.set_yscale):
        scale("function", functions=(np.log1p, np.expm1))
    axis.set(xlabel="neurons that a token uses", ylabel="width of the dense layer\nwith the same loss [neurons]")
    for limits, ticks, least, last in (
        (axis.set_xlim, axis.set_xticks, 1, reach * 2.2),
        (axis.set_ylim, axis.set_yticks, 0, most * 2.2),
    ):
        limits(least, last)
        places = [tick for tick in TICKS if least <= tick <= last]
        ticks(places, [f"{tick:,}" for tick in places])
    axis.minorticks_off()
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def point(axis: Any, found: Comparison, row: Row, at: float, place: int) -> None:
    """A layer with its interval; hollow at the curve's end where the curve does not reach its loss."""
    assert row.worth is not None
    assert found.curve is not None
    value, low, high = within(row.worth, found.curve.widths)
    axis.errorbar([at], [value], yerr=errors(value, low, high), **estimate(mark(place), row.worth))
