"""The figure of loss against time: what a layer costs in inference beside what it gives. Not the table of times."""

from collections.abc import Mapping, Sequence
from typing import Any

from cramming.report.comparisons import Comparison, Row
from cramming.report.figures.style import DENSE, errors, marks, panels, plain_ticks, saved
from cramming.report.times import Times, times_of


def draw_pareto(sets: Sequence[Comparison], times: Sequence[Times]) -> dict[str, bytes]:
    """A line of panels per set, one for each number of tokens that the set's layers were timed at."""
    found = [(each, mine) for each in sets if (mine := [t for t in times_of(times, each.hidden_size) if has(each, t)])]
    if not found:
        return {}
    look = marks(row.brief for each, _ in found for row in each.rows)
    with panels(len(found), max(len(mine) for _, mine in found), width=5.0, height=5.2, margin=2.5) as (figure, axes):
        for line, (each, mine) in zip(axes, found, strict=True):
            for axis, timed in zip(line, mine, strict=False):
                panel(axis, each, timed, look)
            for axis in line[len(mine) :]:
                axis.set_visible(False)
        handles: dict[str, Any] = {}  # a row has one look in all panels
        for axis in axes.flat:
            handles |= {label: handle for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
        figure.legend(handles.values(), handles.keys(), loc="outside right upper")
        return saved(figure, "loss_against_time")


def has(found: Comparison, timed: Times) -> bool:
    """Whether a layer of the set with a loss was timed."""
    return any(row.tag in timed.rows and row.loss for row in found.rows)


def panel(axis: Any, found: Comparison, timed: Times, look: Mapping[str, dict[str, Any]]) -> None:
    """Loss over time per token; bars are the range over the seeds and the times' 10 to 90 %."""
    dense = [row for row in found.dense if row.tag in timed.rows and row.loss]
    points = [place(row, timed) for row in dense]
    axis.plot(*zip(*points, strict=True), color=DENSE, linewidth=1) if points else None
    for row in dense:
        draw_row(axis, row, timed, {"color": DENSE, "marker": "."}, "dense, by width")
        axis.annotate(f"{row.neurons_used:,}", place(row, timed), xytext=(4, 4), textcoords="offset points", fontsize=7)
    for row in found.rows:
        if row.tag in timed.rows and row.loss:
            draw_row(axis, row, timed, look[row.brief], row.brief)
    none = next((row.loss for row in found.dense if row.neurons_used == 0 and row.loss), None)
    if none:
        axis.axhline(none.mean, color="grey", linewidth=1, linestyle="--", label="no feedforward layer")
    axis.set_xscale("log")
    axis.margins(x=0.12)  # room for the names of the widths
    plain_ticks(axis.xaxis)
    axis.set(xlabel="time of a layer per token [µs], inference", ylabel="validation loss [nats]")
    axis.set_title(f"{found.experiment}, {found.scale}\n{timed.title} of a call, {timed.note}", fontsize=8)


def place(row: Row, timed: Times) -> tuple[float, float]:
    """Microseconds per token and mean loss."""
    assert row.loss is not None
    return timed.rows[row.tag]["median"] / timed.tokens * 1e6, row.loss.mean


def draw_row(axis: Any, row: Row, timed: Times, look: dict[str, Any], label: str) -> None:
    """One layer with its two spreads."""
    assert row.loss is not None
    at, loss = place(row, timed)
    took = timed.rows[row.tag]
    low, high = ((took.get(key) or took["median"]) / timed.tokens * 1e6 for key in ("q10", "q90"))
    axis.errorbar(
        [at],
        [loss],
        xerr=errors(at, low, high),
        yerr=errors(loss, row.loss.low, row.loss.high),
        **look,
        markersize=6,
        capsize=2,
        linestyle="",
        label=label,
    )
