"""The figure of GLUE against neurons used: the paper's rows, and ours that ran whole. Not the table (suites.py)."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cramming.glue.averages import averages
from cramming.report.comparisons import tells_its_layers
from cramming.report.figures.style import COLOURS, DENSE, panels, saved
from cramming.report.groups import SuiteGroup, layers_of
from cramming.report.suites import complete

TREES = re.compile(r"(\d+)x(\d+)")


def draw_glue(groups: Sequence[SuiteGroup], paper: Mapping[str, Any]) -> dict[str, bytes]:
    """Mean with CoLA over the neurons that a token uses in one layer.

    Ours are the models with all tasks on all examples alone: those that reproduce a row of the paper, and others.
    """
    rows = [
        (name, neurons_used(name, facts["neurons"]), mean_of(paper, facts)) for name, facts in paper["rows"].items()
    ]
    whole = [(group, score) for group in groups if (score := our_mean(group)) is not None]
    ours = [(group, score) for group, score in whole if tells_its_layers(group.good[0])]
    with panels(1, 1, width=6.0, height=4.2) as (figure, axes):
        axis = axes[0, 0]
        for dense, colour, marker in ((True, DENSE, "s"), (False, COLOURS[1], "o")):
            mine = [(used, score) for name, used, score in rows if (TREES.match(name) is None) == dense]
            label = f"paper: {'dense' if dense else 'trees'} (median of 5)"
            look = {"color": colour, "marker": marker, "markerfacecolor": "white"}
            axis.plot(*zip(*mine, strict=True), **look, linestyle="", label=label)
        annotate(axis, rows)
        for reproduces in (True, False):
            mine = [(used_by(group), score) for group, score in ours if bool(group.paper_row) == reproduces]
            if mine:
                label = f"ours: {'rows of the paper' if reproduces else 'other models'} (medians of tasks)"
                look = {"color": COLOURS[0], "marker": "*" if reproduces else "^"}
                axis.plot(*zip(*mine, strict=True), **look, markersize=9, linestyle="", label=label)
        for group, score in ours:
            axis.annotate(group.ffn, (used_by(group), score), xytext=(5, -9), textcoords="offset points", fontsize=7)
        if not any(group.paper_row for group, _ in ours):
            axis.plot([], [], linestyle="", label="ours: no row of the paper was run")
        axis.set_xscale("log", base=2)
        ticks = 2 ** np.arange(3, 14)
        axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axis.set_xlim(8, 10_000)
        axis.set(xlabel="neurons that a token uses in a layer", ylabel="GLUE dev mean with CoLA [%]")
        axis.legend(loc="lower right")
        return saved(figure, "glue")


def neurons_used(name: str, trained: int) -> int:
    """Of a row of the paper; the paper gives a share alone, rounded. Of trees every path, of dense layers all."""
    match = TREES.match(name)
    return int(match[1]) * (int(match[2]) + 1) if match else trained


def mean_of(paper: Mapping[str, Any], facts: Mapping[str, Any]) -> float:
    """The paper's own mean with CoLA."""
    return dict(zip(paper["columns"], facts["values"], strict=True))["avg"]


def our_mean(group: SuiteGroup) -> float | None:
    """By the paper's rule, where every task was run on all of its examples."""
    return next(average.value for average in averages("glue", complete(group)) if average.key == "avg")


def used_by(group: SuiteGroup) -> int:
    """Neurons of a layer that a token uses."""
    return layers_of(group.good[0])["neurons_used"]


def annotate(axis: Any, rows: Sequence[tuple[str, int, float]]) -> None:
    """Names beside the points of the paper, below where a point of the same width stands above."""
    for name, used, score in rows:
        above = any(other != name and used == theirs and higher >= score for other, theirs, higher in rows)
        left = not TREES.match(name) and used == min(theirs for other, theirs, _ in rows if not TREES.match(other))
        offset = (-5, 4) if left else (4, -9) if above else (4, 4)
        look = {"textcoords": "offset points", "fontsize": 7, "ha": "right" if left else "left"}
        axis.annotate(name.replace("crammedBERT-", "dense "), (used, score), xytext=offset, **look)
