"""Summaries of repeated runs: median, extremes, mean with an interval. Not which runs belong together."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scipy import stats

INTERVAL_FROM = 3  # fewer runs give no interval
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Summary:
    """n values of one quantity, in its own unit.

    `mean_low` and `mean_high` bound the mean with 95 % confidence (Student's t, normal errors assumed); None below
    three values. The range from `low` to `high` itself covers the true median with probability 1 - 2^(1-n), without any
    assumption but independence: 75 % for n = 3, 94 % for n = 5.
    """

    n: int
    median: float
    low: float
    high: float
    mean: float
    mean_low: float | None
    mean_high: float | None


def finite(value: Any) -> float | None:
    """A record's number; None where it has none, or one that cannot be averaged: NaN, infinite, or beyond a float."""
    try:
        return float(value) if type(value) in (int, float) and math.isfinite(value) else None
    except OverflowError:
        return None


def summarise(values: Sequence[float]) -> Summary | None:
    """Summary of finite values, None of an empty sequence."""
    if not values:
        return None
    low = high = None
    try:
        mean = statistics.fmean(values)
        if len(values) >= INTERVAL_FROM:
            error = statistics.stdev(values) / len(values) ** 0.5
            reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * error
            low, high = mean - reach, mean + reach
    except OverflowError:
        mean = math.inf
    return Summary(len(values), statistics.median(values), min(values), max(values), mean, low, high)
