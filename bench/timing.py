"""Timing several things in turn, so that what disturbs the machine disturbs all of them. Not what is timed."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cramming.machine import synchronise

MOST_TURNS = 400
BLOCK_SECONDS = 0.1  # a turn repeats a call for about as long
LEAST_REPEATS, REPEATED_BELOW = 3, 0.5  # but what takes less than half a second at least so often
MOST_CALLS = 2000
SLOW_SECONDS = 1.0  # a call that takes as long need not be repeated to know how often it fits into a turn


@dataclass(frozen=True)
class Sample:
    """Seconds per call in one turn.

    The `first` call finds the caches as the other cases' calls left them, the `steady` ones as the case's own calls
    did. The two are equal where a turn has one call.
    """

    first: float
    steady: float


def interleaved(
    cases: Mapping[str, Callable[[int], object]], device: torch.device, seconds_per_case: float, least: int = 3
) -> dict[str, list[Sample]]:
    """Samples of each case, called with a running number: A A A B B C A A A B B C ... until the time is used.

    `least` turns are taken however long they last. Before them each case is called alone to find out how many of its
    calls make a turn: once if it is slow, else twice, because the first call also looks for memory for its results.
    A whole turn of each case then goes untimed.
    """
    calls = dict.fromkeys(cases, 0)
    for name, case in cases.items():
        seconds = _seconds(case, range(1), device)
        if seconds < SLOW_SECONDS:
            seconds = min(seconds, _seconds(case, range(1, 2), device))
        least_repeats = LEAST_REPEATS if seconds < REPEATED_BELOW else 0
        calls[name] = max(least_repeats, min(MOST_CALLS, round(BLOCK_SECONDS / seconds)) - 1)
    for name, case in cases.items():
        _seconds(case, range(calls[name]), device)
    samples: dict[str, list[Sample]] = {name: [] for name in cases}
    turn, deadline = 0, time.perf_counter() + seconds_per_case * len(cases)
    while turn < least or (time.perf_counter() < deadline and turn < MOST_TURNS):
        for name, case in cases.items():
            samples[name].append(_sample(case, turn, calls[name], device))
        turn += 1
    return samples


def _sample(case: Callable[[int], object], turn: int, more: int, device: torch.device) -> Sample:
    first = _seconds(case, range(turn, turn + 1), device)
    return Sample(first, _seconds(case, range(turn + 1, turn + 1 + more), device) / more if more else first)


def _seconds(case: Callable[[int], object], numbers: range, device: torch.device) -> float:
    started = time.perf_counter()
    for number in numbers:
        case(number)
    synchronise(device)
    return time.perf_counter() - started


def figures(samples: list[Sample]) -> dict[str, Any]:
    """Median, spread and number in seconds, as the columns of a row; `cold` is the median of the turns' first calls."""
    steady = [sample.steady for sample in samples]
    q10, median, q90 = map(float, np.quantile(steady, (0.1, 0.5, 0.9)))
    return {
        "unit": "s",
        "median": median,
        "q10": q10,
        "q90": q90,
        "least": min(steady),
        "most": max(steady),
        "cold": statistics.median(sample.first for sample in samples),
        "n": len(samples),
    }
