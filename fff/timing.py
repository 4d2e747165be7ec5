"""Timing several things in turn, so that what disturbs the machine disturbs all of them. Not what is timed."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

MOST_TURNS = 400


def interleaved(
    cases: Mapping[str, Callable[[int], object]], device: torch.device, seconds_per_case: float, least: int = 3
) -> dict[str, list[float]]:
    """Seconds of each case, called with the number of the turn: A B C A B C ... until the time is used.

    `least` turns are taken however long they last, after one that warms up and is left out.
    """
    times: dict[str, list[float]] = {name: [] for name in cases}
    turn, deadline = 0, time.perf_counter() + seconds_per_case * len(cases)
    while turn <= least or (time.perf_counter() < deadline and turn < MOST_TURNS):
        for name, call in cases.items():
            started = time.perf_counter()
            call(turn)
            if device.type == "cuda":
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - started)
        turn += 1
    return {name: found[1:] for name, found in times.items()}


def figures(seconds: list[float]) -> dict[str, Any]:
    """Median, spread and number, as a row of a report has them."""
    return {"median_s": statistics.median(seconds), "min_s": min(seconds), "max_s": max(seconds), "n": len(seconds)}
