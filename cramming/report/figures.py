"""Figures of results for print, as PNG and SVG: markers tell them apart, not colours alone. Not the tables."""

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from cramming.report.comparisons import Comparison, Row

# Okabe and Ito's colours, told apart by the colour-blind; the first is the curve's.
CURVE = "black"
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
STYLE: Any = {"font.size": 9, "svg.hashsalt": "fff-cramming", "svg.fonttype": "none"}


def draw_figures(sets: Sequence[Comparison]) -> dict[str, bytes]:
    """File name -> picture; none of what has nothing comparable to show."""
    priced = [found for found in sets if found.curve and any(row.worth for row in found.rows)]
    return effective_width(priced) if priced else {}


def effective_width(sets: Sequence[Comparison]) -> dict[str, bytes]:
    """A panel per set: the dense curve with its range over seeds, and each row where the curve has its loss."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(
            1, len(sets), figsize=(1 + 5.5 * len(sets), 4.5), squeeze=False, layout="constrained"
        )
        for axis, found in zip(axes.flat, sets, strict=True):
            panel(axis, found)
        return saved(figure)


def panel(axis, found: Comparison) -> None:
    """One set of rows with its curve."""
    assert found.curve is not None
    widths, losses = found.curve.widths, np.array(found.curve.losses)
    axis.fill_between(widths, losses.min(0), losses.max(0), color=CURVE, alpha=0.15, linewidth=0)
    label = f"dense, mean and range of {len(found.curve.seeds)} seeds"
    axis.plot(widths, found.curve.pooled, color=CURVE, linewidth=1.2, label=label)
    axis.plot(widths, found.curve.means, color=CURVE, linestyle="", marker=".")
    priced = [row for row in found.rows if row.worth]
    for place, row in enumerate(priced):
        point(axis, row, widths, COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)])
    axis.plot([], [], linestyle="", marker="|", color="grey", markersize=9, label="neurons used")
    axis.set_xscale("function", functions=(np.log1p, np.expm1))
    used = [row.neurons_used for row in priced]
    axis.set_xlim(widths[0], max(widths[-1], *used) * 1.35)
    axis.set_xticks(widths, ["none" if width == 0 else f"{width:,}" for width in widths])
    axis.minorticks_off()
    axis.set(xlabel="width of a dense layer [neurons]", ylabel="validation loss [nats]")
    axis.set_title(f"{found.experiment}: {found.scale}", fontsize=9)
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8)


def point(axis, row: Row, widths: Sequence[int], colour: str, marker: str) -> None:
    """A row at its effective width with the interval, and joined to it, a tick at its neurons used.

    Beyond the curve it stands hollow at the curve's end.
    """
    assert row.worth is not None
    loss = float(np.mean([row.losses[seed] for seed in row.worth.seeds]))
    at, low, high = (
        float(np.clip(row.worth.value if each is None else each, widths[0], widths[-1]))
        for each in (row.worth.value, row.worth.low, row.worth.high)
    )
    inside = math.isfinite(row.worth.value)
    name = row.label if inside else f"{row.label} (beyond the curve)"
    axis.plot([row.neurons_used, at], [loss, loss], color=colour, linewidth=0.8, linestyle=":")
    axis.plot([row.neurons_used], [loss], color=colour, marker="|", markersize=9)
    axis.errorbar(
        [at],
        [loss],
        xerr=[[max(0.0, at - low)], [max(0.0, high - at)]],
        color=colour,
        marker=marker,
        markersize=6,
        markerfacecolor=colour if inside else "white",
        capsize=3,
        linestyle="",
        label=name,
        zorder=3,
    )


def saved(figure) -> dict[str, bytes]:
    """The figure as PNG and SVG, the same bytes for the same content."""
    from matplotlib import pyplot

    files = {}
    for form, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=form, dpi=150, metadata=metadata)
        files[f"effective_width.{form}"] = buffer.getvalue()
    pyplot.close(figure)
    return files
