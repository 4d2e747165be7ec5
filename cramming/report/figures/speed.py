"""The figure of speed against tokens of a call. Not the table (cramming.report.speed)."""

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from cramming.report.figures.style import looks, panels, saved
from cramming.report.speed import Row, machine, newest

Panel = dict[str, dict[int, Row]]  # name of a line -> number of tokens -> its row
LEAST_TOKENS = 3  # different ones, of a line
MOST_INSIDE = 8  # lines, whose names find room in the panel


def draw_speed(rows: Sequence[Row]) -> dict[str, bytes]:
    """A panel per layer, machine and number of threads: time per token of trees and of dense layers timed beside."""
    found = speed_panels(rows)
    if not found:
        return {}
    columns = min(3, len(found))
    with panels(-(-len(found) // columns), columns, width=5.0, height=3.8) as (figure, axes):
        for axis in axes.flat[len(found) :]:
            axis.set_visible(False)
        for axis, (title, lines) in zip(axes.flat, found.items(), strict=False):
            panel(axis, title, lines)
        return saved(figure, "speed")


def speed_panels(rows: Sequence[Row]) -> dict[str, Panel]:
    """Title -> lines, of layers in float32 inference that were timed at several numbers of tokens in one run."""
    runs: dict[tuple, Panel] = defaultdict(lambda: defaultdict(dict))
    for row in newest(rows):
        kind = (row["what"], row["mode"], row["dtype"], row["unit"], row.get("inputs"), row.get("compiler", "eager"))
        if kind == ("layer", "inference", "float32", "s", "iid", "eager"):
            key = (row["shape"], row["width"], row["device"], machine(row), row["threads"], row["run"])
            runs[key][row["name"].removesuffix(" float32")][row["tokens"]] = row
    for key, lines in list(runs.items()):
        if len(lines) == 1:  # of layers of many shapes, timed in turn: nothing else stands beside it
            runs[("layers", *key[1:])].update(runs.pop(key))
    kept: dict[str, Panel] = {}
    for (shape, width, _, on, threads, _), lines in sorted(runs.items(), key=lambda item: item[0]):
        long = {name: by for name, by in lines.items() if len(by) >= LEAST_TOKENS}
        if long:
            kept[f"{shape}, width {width}, {threads} thread{'s' * (threads > 1)}\n{on}"] = long
    return kept


def panel(axis: Any, title: str, lines: Panel) -> None:
    """Time per token over tokens, with 10 to 90 % as bands."""
    names = sorted(lines, key=in_order)
    look = looks(names, {name for name in names if name.startswith("dense")})
    for name in names:
        tokens = sorted(lines[name])
        took = [lines[name][count] for count in tokens]
        axis.plot(tokens, per_token(took, "median"), **look[name], markersize=5, linewidth=1, label=name)
        low, high = per_token(took, "q10"), per_token(took, "q90")
        axis.fill_between(tokens, low, high, color=look[name]["color"], alpha=0.15, linewidth=0)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set(xlabel="tokens of a call", ylabel="time per token [µs]")
    axis.set_title(title, fontsize=8)
    beside = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)} if len(lines) > MOST_INSIDE else {}
    axis.legend(fontsize=7, **beside)


def in_order(name: str) -> tuple[bool, list[int], str]:
    """Dense layers first, and numbers by their size."""
    return not name.startswith("dense"), [int(digits) for digits in re.findall(r"\d+", name)], name


def per_token(rows: Sequence[Row], key: str) -> list[float]:
    """Microseconds per token; the median where a quantile was not kept."""
    return [(row.get(key) or row["median"]) / row["tokens"] * 1e6 for row in rows]
