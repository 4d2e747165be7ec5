"""Figures of results as PNG and SVG: pure functions of records, rows of speed and published numbers. Not the tables."""

from collections.abc import Sequence
from typing import Any

from cramming.record import Record
from cramming.report.comparisons import comparisons
from cramming.report.figures.curves import draw_curves
from cramming.report.figures.glue import draw_glue
from cramming.report.figures.pareto import draw_pareto
from cramming.report.figures.speed import draw_speed
from cramming.report.figures.usage import draw_usage
from cramming.report.figures.width import draw_widths
from cramming.report.figures.worth import draw_worth
from cramming.report.groups import pretrain_groups, suite_groups
from cramming.report.speed import Row
from cramming.report.times import layer_times


def build_figures(records: Sequence[Record], paper: dict[str, Any], rows: Sequence[Row] = ()) -> dict[str, bytes]:
    """File name -> picture; none of what has nothing comparable to show.

    Args:
        rows: rows of speed in the order of their dates.
    """
    sets = comparisons(pretrain_groups(records))
    return {
        **draw_worth(sets),
        **draw_widths(sets),
        **draw_pareto(sets, layer_times(rows)),
        **draw_glue(suite_groups(records, "glue"), paper["glue"]),
        **draw_speed(rows),
        **draw_usage(sets),
        **draw_curves(records),
    }
