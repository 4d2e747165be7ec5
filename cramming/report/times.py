"""What layers take beside the dense layer of their effective width, by rows of speed. Not how they were timed (bench).

A file `<experiment>-<hidden size>-layers.json` of results/bench has layers by tag that were timed in turn (`python -m
bench.worth`).
"""

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cramming.report.markup import MISSING, number
from cramming.report.speed import Row
from cramming.report.width import Worth

FILES = "-layers.json"
DENSE = re.compile(r"dense(\d+)")


@dataclass(frozen=True)
class Times:
    """Layers of one hidden size that were timed in turn, at one number of tokens.

    Attributes:
        rows: by tag, e.g. "1x8" or "dense64"; seconds of a call.
        note: what they were timed on.
    """

    hidden_size: int
    tokens: int
    threads: int
    rows: dict[str, Row]
    note: str

    @property
    def title(self) -> str:
        """At what, in words."""
        return f"{self.tokens:,} token{'s' * (self.tokens > 1)}" + (
            f", {self.threads} threads" if self.threads > 1 else ""
        )

    @property
    def key(self) -> str:
        """The same as a column's name."""
        return f"{self.tokens}_tokens" + (f"_{self.threads}_threads" if self.threads > 1 else "")

    @property
    def dense(self) -> tuple[list[int], list[float]]:
        """Widths of the timed dense layers and their seconds, from no layer on, which takes none."""
        found = {int(match[1]): row["median"] for tag, row in self.rows.items() if (match := DENSE.fullmatch(tag))}
        return [0, *sorted(found)], [0.0, *(found[width] for width in sorted(found))]

    def dense_seconds(self, width: float) -> float:
        """What a dense layer of a width takes, linear between those timed; inf beyond, 0 for none, -inf for -inf."""
        if width == -math.inf:
            return width
        widths, seconds = self.dense
        beyond = width > widths[-1] and not math.isclose(width, widths[-1])
        return math.inf if beyond else float(np.interp(width, widths, seconds))

    def ratio(self, worth: Worth | None, tag: str) -> tuple[float | None, float | None, float | None]:
        """Time of the dense layer of the effective width by the layer's, with its interval; None where there is none.

        inf and -inf as in `Worth`, or where no dense layer so wide was timed.
        """
        if worth is None or tag not in self.rows or len(self.dense[0]) < 2:
            return None, None, None
        own = self.rows[tag]["median"]
        if worth.low is None or worth.high is None:
            return self.dense_seconds(worth.value) / own, None, None
        # A wider layer may take less: the interval is that of all widths in it.
        inside = [width for width in self.dense[0] if worth.low < width < worth.high]
        seconds = [self.dense_seconds(width) for width in (worth.value, worth.low, worth.high, *inside)]
        return seconds[0] / own, min(seconds) / own, max(seconds) / own

    def bounded(self, ratio: float | None, tag: str, ends: tuple[int, int]) -> float | str | None:
        """A ratio, or where there is no number what it is at least or at most; `ends` are the curve's widths."""
        if ratio is None or math.isfinite(ratio):
            return ratio
        width = min(ends[1], self.dense[0][-1]) if ratio > 0 else ends[0]
        return f"{'>=' if ratio > 0 else '<='} {self.dense_seconds(width) / self.rows[tag]['median']:.2f}"

    def text(self, worth: Worth | None, tag: str, ends: tuple[int, int]) -> str:
        """The ratio with its interval, bounds for what is not known; a dash where the layer was not timed or priced."""
        found = [self.bounded(each, tag, ends) for each in self.ratio(worth, tag)]
        value, low, high = (number(each, 2) if isinstance(each, float) else each for each in found)
        if value is None:
            return MISSING
        return value if low is None or high is None else f"{value} ({low} to {high})"


def layer_times(rows: Sequence[Row]) -> list[Times]:
    """What the layer files say, sorted; of equal size, tokens and threads the newest run's.

    Args:
        rows: rows of speed in the order of their dates, see `cramming.report.speed.read_speed`.
    """
    runs: dict[tuple[int, int, int], dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        kind = (row["what"], row["mode"], row["unit"], row["name"])
        if row["file"].endswith(FILES) and kind == ("layer", "inference", "s", row["shape"]) and row["median"] > 0:
            runs[row["width"], row["tokens"], row["threads"]][row["run"]].append(row)
    found = []
    for (size, tokens, threads), by_run in sorted(runs.items()):
        mine = list(by_run.values())[-1]
        note = f"{mine[-1]['machine']}, {mine[-1]['dtype']}, {mine[-1]['date'][:10]}"
        found.append(Times(size, tokens, threads, {row["name"]: row for row in mine}, note))
    return found


def times_of(times: Sequence[Times], hidden_size: int | None) -> list[Times]:
    """Those of one hidden size."""
    return [each for each in times if each.hidden_size == hidden_size]
