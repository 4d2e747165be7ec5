"""The heatmap of how evenly leaves are used in the course of training. Not that of single leaves (a run's pictures)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from cramming.report.comparisons import Comparison, Row
from cramming.report.figures.style import panels, saved
from cramming.report.stats import finite

QUANTITIES = (("usage_entropy_relative", "usage entropy / the most"), ("dead_leaves", "dead leaves, share of all"))


def draw_usage(sets: Sequence[Comparison]) -> dict[str, bytes]:
    """A line of panels per set: rows downwards, validation marks across, means over the seeds."""
    shown = [(found, rows) for found in sets if len(rows := [row for row in found.rows if history(row)]) > 1]
    if not shown:
        return {}
    heights = [max(2.0, 0.9 + 0.28 * len(rows)) for _, rows in shown]
    with panels(len(shown), 2, width=5.2, margin=2.0, heights=heights) as (figure, axes):
        for line, (found, rows) in zip(axes, shown, strict=True):
            for axis, (name, title) in zip(line, QUANTITIES, strict=True):
                panel(axis, rows, name)
                axis.set_title(f"{title}\n{found.title}", fontsize=8)
        return saved(figure, "usage")


def panel(axis: Any, rows: Sequence[Row], name: str) -> None:
    """One quantity; a cell without a measurement stays white."""
    marks = sorted({mark for row in rows for mark in history(row)})
    table = np.array([[history(row).get(mark, {}).get(name, np.nan) for mark in marks] for row in rows])
    axis.imshow(table, aspect="auto", cmap="cividis", vmin=0, vmax=1, interpolation="nearest")
    for (down, across), value in np.ndenumerate(table):
        if np.isfinite(value):
            colour = "white" if value < 0.5 else "black"
            axis.text(across, down, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=7)
    axis.set_yticks(range(len(rows)), [row.brief for row in rows])
    axis.set_xticks(range(len(marks)), [f"{mark}%" for mark in marks])
    axis.set_xlabel("progress of training")
    axis.grid(visible=False)


def history(row: Row) -> dict[int, dict[str, float]]:
    """Percent of progress -> quantity -> its mean, as a share; of runs whose losses count and layers that choose."""
    found: dict[int, dict[str, list[float]]] = {}
    for record in row.group.good if row.losses else ():
        for mark in record.get("curve", []):
            progress = finite(mark.get("progress"))
            for name, most in (("usage_entropy_relative", 1), ("dead_leaves", row.units)):
                value = finite(mark.get(name))
                if progress is not None and value is not None and most:
                    found.setdefault(round(100 * progress), {}).setdefault(name, []).append(value / most)
    return {mark: {name: float(np.mean(values)) for name, values in each.items()} for mark, each in found.items()}
