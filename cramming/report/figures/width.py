"""The figure of effective widths. Not the measure (cramming.report.width)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cramming.report.comparisons import Comparison, Row
from cramming.report.figures.style import DENSE, errors, marks, panels, saved
from cramming.report.width import Worth


def draw_widths(sets: Sequence[Comparison]) -> dict[str, bytes]:
    """A panel per set: the dense curve with its range over seeds, and each row where the curve has its loss."""
    priced = [found for found in sets if found.curve and any(row.worth for row in found.rows)]
    if not priced:
        return {}
    look = marks(row.brief for found in priced for row in found.rows)
    with panels(len(priced), 1, width=7.5, height=5.0) as (figure, axes):
        for axis, found in zip(axes.flat, priced, strict=True):
            panel(axis, found, look)
        return saved(figure, "effective_width")


def panel(axis: Any, found: Comparison, look: Mapping[str, dict[str, Any]]) -> None:
    """One set of rows with its curve."""
    assert found.curve is not None
    widths, losses = found.curve.widths, np.array(found.curve.losses)
    axis.fill_between(widths, losses.min(0), losses.max(0), color=DENSE, alpha=0.15, linewidth=0)
    label = f"dense, mean and range of {len(found.curve.seeds)} seeds"
    axis.plot(widths, found.curve.pooled, color=DENSE, linewidth=1.2, label=label)
    axis.plot(widths, found.curve.means, color=DENSE, linestyle="", marker=".")
    priced = [row for row in found.rows if row.worth]
    for row in priced:
        point(axis, row, widths, look[row.brief])
    axis.plot([], [], linestyle="", marker="|", color="grey", markersize=9, label="neurons used")
    axis.set_xscale("function", functions=(np.log1p, np.expm1))
    used = [row.neurons_used for row in priced]
    axis.set_xlim(widths[0], max(widths[-1], *used) * 1.35)
    axis.set_xticks(widths, ["none" if width == 0 else f"{width:,}" for width in widths])
    axis.minorticks_off()
    axis.set(xlabel="width of a dense layer [neurons]", ylabel="validation loss [nats]")
    axis.set_title(found.title)
    # Many names would cover intervals.
    axis.legend(**({} if len(priced) < 8 else {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}))


def point(axis: Any, row: Row, widths: Sequence[int], look: dict[str, Any]) -> None:
    """A row at its effective width with the interval, and joined to it, a tick at its neurons used.

    Beyond the curve it stands hollow at the curve's end.
    """
    assert row.worth is not None
    loss = float(np.mean([row.losses[seed] for seed in row.worth.seeds]))
    inside, colour = math.isfinite(row.worth.value), look["color"]
    at, low, high = within(row.worth, widths)
    axis.plot([row.neurons_used, at], [loss, loss], color=colour, linewidth=0.8, linestyle=":")
    axis.plot([row.neurons_used], [loss], color=colour, marker="|", markersize=9)
    axis.errorbar(
        [at],
        [loss],
        xerr=errors(at, low, high),
        **estimate(look, row.worth),
        label=row.brief if inside else f"{row.brief} (beyond the curve)",
    )


def within(worth: Worth, widths: Sequence[int]) -> tuple[float, float, float]:
    """An effective width and the ends of its interval, moved to the curve's ends where they lie beyond."""
    found = (worth.value if each is None else each for each in (worth.value, worth.low, worth.high))
    value, low, high = (float(np.clip(each, widths[0], widths[-1])) for each in found)
    return value, low, high


def estimate(look: Mapping[str, Any], worth: Worth) -> dict[str, Any]:
    """How a width with its interval is drawn: hollow where it lies beyond the curve."""
    fill = look["color"] if math.isfinite(worth.value) else "white"
    return {**look, "markersize": 6, "markerfacecolor": fill, "capsize": 3, "linestyle": "", "zorder": 3}
