"""The figures of pretraining: validation loss and what the leaves do over tokens. Not the tables of the end."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from cramming.files import checked_name
from cramming.record import Record
from cramming.report.comparisons import conditions
from cramming.report.figures.style import looks, panels, saved
from cramming.report.groups import identity, layers_of, scale_of, units_of, whole_layers_of
from cramming.report.labels import labels_apart
from cramming.report.stats import finite

PANELS = (
    ("valid_loss", "validation MLM loss, hard [nats]"),
    ("usage_entropy_relative", "usage entropy / the most"),
    ("dead_leaves", "dead leaves, share of all"),
    ("soft_hard_gap", "loss soft minus hard [nats]"),
)


def comparable(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Name of a figure -> finished pretraining runs with a curve, of one experiment, data and recipe; two at least."""
    found: dict[tuple[str, str, str], dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        if record["kind"] == "pretrain" and record["status"] == "finished" and record.get("curve"):
            experiment, _, _ = identity(record)
            key = experiment, scale_of(record["config"]), record.get("data_fingerprint", "")
            found[key][repr(sorted(conditions(record).items()))].append(record)
    by_page: dict[str, list[list[Record]]] = defaultdict(list)  # other sizes of one budget have one page's name
    for (experiment, scale, data), by_recipe in sorted(found.items()):
        page = f"curves-{experiment}-{scale.rsplit(', ', 1)[-1].replace(',', '').replace(' ', '-')}-{data[:6]}"
        by_page[page] += [mine for _, mine in sorted(by_recipe.items()) if len(mine) > 1]
    return {
        checked_name(page if place == 1 else f"{page}-{place}", mine[0]["name"]): mine
        for page, several in by_page.items()
        for place, mine in enumerate(several, 1)
    }


def draw_curves(records: Sequence[Record]) -> dict[str, bytes]:
    """File name -> picture of every set of comparable runs."""
    files: dict[str, bytes] = {}
    for name, mine in comparable(records).items():
        files |= draw(name, mine)
    return files


def draw(name: str, records: Sequence[Record]) -> dict[str, bytes]:
    """A panel per quantity and a line per group: the mean over its seeds, and their range as a band."""
    labels = lines_of(records)
    look = looks(list(labels), {label for label, mine in labels.items() if not in_order(mine[0])[0]})
    with panels(2, 2, width=5.0, height=3.8, margin=2.0) as (figure, axes):
        for axis, (quantity, title) in zip(axes.flat, PANELS, strict=True):
            for label, mine in labels.items():
                band(axis, mine, quantity, look[label])
            axis.set(xlabel="million tokens read", ylabel=title)
        for label, mine in labels.items():
            axes[0, 0].plot([], [], **look[label], markersize=4, label=f"{label}, n={len(mine)}")
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right upper")
        return saved(figure, name)


def lines_of(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Label -> the runs of one group, without those of a seed that several have; in the legend's order."""
    groups: dict[tuple[str, str, str], list[Record]] = defaultdict(list)
    for record in sorted(records, key=in_order):
        groups[identity(record)].append(record)
    labels = labels_apart([mine[0] for mine in groups.values()], [group for *_, group in groups])
    found = {}
    for (_, brief), mine in zip(labels, groups.values(), strict=True):
        seeds = Counter(record["seed"] for record in mine)
        if once := [record for record in mine if seeds[record["seed"]] == 1]:
            found[brief] = once
    return found


def in_order(record: Record) -> tuple[bool, int, int, str]:
    """Dense layers first, by their width; all others by neurons used, then trained."""
    layer = whole_layers_of(record)
    return layer["kind"] not in ("none", "dense"), layer["neurons_used"], layer["neurons_trained"], record["name"]


def band(axis: Any, records: Sequence[Record], quantity: str, look: dict[str, Any]) -> None:
    """One label's mean and range at the marks that its runs have."""
    at: dict[float, list[float]] = defaultdict(list)
    for record in records:
        for mark in record["curve"]:
            value = finite(mark.get(quantity))
            if value is not None and quantity == "dead_leaves":
                value /= units_of(layers_of(record)) or 1
            if value is not None:
                at[mark["tokens"] / 1e6].append(value)
    tokens = sorted(at)
    if tokens:
        axis.plot(tokens, [float(np.mean(at[count])) for count in tokens], linewidth=1, markersize=4, **look)
        low, high = [min(at[count]) for count in tokens], [max(at[count]) for count in tokens]
        axis.fill_between(tokens, low, high, color=look["color"], alpha=0.15, linewidth=0)
