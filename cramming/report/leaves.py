"""The table of what leaves do at the end of pretraining, by form of hardening. Not the measures (fff.usage)."""

from collections.abc import Sequence
from typing import Any

from cramming.report.groups import PretrainGroup, layers_of
from cramming.report.markup import csv_text, markdown_table, spread
from cramming.report.stats import Summary

# Column, name of the metric in a record, factor, digits.
COLUMNS = (
    ("valid loss, hard [nats]", "valid_loss", 1, 3),
    ("soft minus hard [nats]", "soft_hard_gap", 1, 4),
    ("usage entropy [% of most]", "usage_entropy_relative", 100, 1),
    ("dead leaves", "dead_leaves", 1, 0),
    ("fullest leaf [%]", "fullest_leaf", 100, 1),
    ("decided [%]", "decided", 100, 1),
    ("churn [%]", "churn", 100, 1),
    ("time of measuring [%]", "usage_time", 100, 2),
)
HEADER = ("experiment", "ffn", "group", "hardening", "scale", *(name for name, *_ in COLUMNS), "leaves")
NOTES = """Medians (min–max) over the finished runs of a group, which differ in their seed alone, and n of them; all
but the loss on the probe set of the last mark. Every model is evaluated hard, one leaf per token. Soft minus hard is
the change of the loss when the same weights are evaluated as a mixture, at the last temperature. Usage entropy, fullest
leaf, decided (decisions with a probability outside [0.1, 0.9]) and churn (tokens whose leaf changed since the mark
before) are means over layers and trees; dead leaves, which no probe token reached, are summed over them and stand
beside all leaves. Time of measuring is these measures' share of the last mark's interval. Losses are comparable
between rows of equal experiment and scale only."""


def leaf_groups(groups: Sequence[PretrainGroup]) -> list[PretrainGroup]:
    """The groups whose finished runs say what their leaves do."""
    return [group for group in groups if group.summary("metrics", "dead_leaves")]


def hardening_of(config: dict[str, Any]) -> str:
    """The form of hardening with what is set beside it, in words."""
    settings = config.get("hardening", {})
    words = [settings.get("form", "hard")]
    for name in ("temperature", "entropy_weight", "balance_weight"):
        ramp = settings.get(name, {})
        start, end = ramp.get("start"), ramp.get("end")
        if start not in (None, 1.0 if name == "temperature" else 0.0) or end is not None:
            words.append(f"{name} {start:g}" + (f" to {end:g} ({ramp['schedule']})" if end is not None else ""))
    if settings.get("region_leak"):
        words.append(f"region_leak {settings['region_leak']:g}")
    if settings.get("harden_at", 1.0) < 1:
        words.append(f"hard from {settings['harden_at']:.0%} on")
    return ", ".join(words)


def leaves_markdown(groups: Sequence[PretrainGroup]) -> str:
    """The whole Markdown page."""
    rows = [row(group) for group in leaf_groups(groups)]
    table = markdown_table(HEADER, rows) if rows else "No pretraining runs with FFF layers yet."
    return f"# What the leaves do\n\n{table}\n\n{NOTES}\n"


def row(group: PretrainGroup) -> list[str]:
    """One group as cells of HEADER."""
    record = group.good[0]
    cells = [spread(scaled(group.summary("metrics", name), factor), digits) for _, name, factor, digits in COLUMNS]
    names = (group.experiment, group.ffn, group.group, hardening_of(record["config"]), group.scale)
    return [*names, *cells, f"{layers_of(record)['leaves']:,}"]


def scaled(summary: Summary | None, factor: float) -> Summary | None:
    """The same in another unit."""
    if summary is None:
        return None
    values = (summary.median, summary.low, summary.high, summary.mean, summary.mean_low, summary.mean_high)
    return Summary(summary.n, *(None if value is None else factor * value for value in values))  # type: ignore[arg-type]


def leaves_csv(groups: Sequence[PretrainGroup]) -> str:
    """One line per group and metric, in the records' own units."""
    lines = []
    for group in leaf_groups(groups):
        for _, name, _, _ in COLUMNS:
            s = group.summary("metrics", name)
            values = (s.median, s.low, s.high, s.n) if s else (None, None, None, 0)
            form = hardening_of(group.good[0]["config"])
            lines.append((group.experiment, group.ffn, group.group, form, group.scale, name, *values, group.names))
    header = ("experiment", "ffn", "group", "hardening", "scale", "quantity", "median", "min", "max", "n", "records")
    return csv_text(header, lines)
