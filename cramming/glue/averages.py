"""Averages over tasks, each by a named rule. Not over seeds (stats.py); nothing missing is ever filled in."""

from collections.abc import Mapping
from dataclasses import dataclass

from cramming.glue.tasks import suite_tasks


@dataclass(frozen=True)
class Average:
    """One average: key of its column, title with its rule, value, and the tasks it lacks (then `value` is None)."""

    key: str
    title: str
    value: float | None
    missing: tuple[str, ...]


def averages(suite: str, values: Mapping[str, float]) -> list[Average]:
    """All averages of a suite from one value per task.

    For GLUE the paper's two: (sum of 7 + MNLI)/8 without CoLA, which counts MNLI twice (m and mm), and /9 with CoLA.
    This reproduces the averages of all the paper's own rows (arXiv 2311.10770, table 1) within 0.063. Beside them
    the plain mean, in which each of the eight tasks counts once.
    """
    weights = {name: task.weight for name, task in suite_tasks(suite).items() if task.weight}
    once = dict.fromkeys(weights, 1)
    if suite == "mini":
        return [weighted("plain_mean", "plain mean of the three tasks", once, values)]
    without = {name: weight for name, weight in weights.items() if name != "cola"}
    return [
        weighted("avg_no_cola", "average without CoLA by the paper's rule, MNLI twice, /8", without, values),
        weighted("avg", "average by the paper's rule, MNLI twice, /9", weights, values),
        weighted("plain_mean", "plain mean of the eight tasks", once, values),
    ]


def weighted(key: str, title: str, weights: Mapping[str, int], values: Mapping[str, float]) -> Average:
    """Weighted mean over the tasks in `weights`; without a value if one of them is missing."""
    missing = tuple(name for name in weights if name not in values)
    if missing:
        return Average(key, title, None, missing)
    total = sum(weight * values[name] for name, weight in weights.items())
    return Average(key, title, total / sum(weights.values()), ())
