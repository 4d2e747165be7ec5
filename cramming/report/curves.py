"""Pictures of pretraining: validation loss and what the leaves do over tokens. Not the tables of the end."""

import io
from collections import defaultdict

from cramming.files import checked_name
from cramming.record import Record
from cramming.report.groups import identity, layers_of, scale_of
from cramming.report.leaves import hardening_of
from cramming.report.stats import finite

PANELS = (
    ("valid_loss", "validation MLM loss, hard [nats]"),
    ("usage_entropy_relative", "usage entropy / the most"),
    ("dead_leaves", "dead leaves, all layers"),
    ("soft_hard_gap", "loss soft minus hard [nats]"),
)


def comparable(records: list[Record]) -> dict[str, list[Record]]:
    """File name -> finished pretraining runs with a curve, of one experiment, data and scale; two runs at least."""
    found: dict[tuple[str, str, str], list[Record]] = defaultdict(list)
    for record in records:
        if record["kind"] == "pretrain" and record["status"] == "finished" and record.get("curve"):
            experiment, _, _ = identity(record)
            found[experiment, scale_of(record["config"]), record.get("data_fingerprint", "")].append(record)
    pages = {}
    for (experiment, scale, data), mine in sorted(found.items()):
        if len(mine) > 1:
            page = f"{experiment}-{scale.rsplit(', ', 1)[-1].replace(',', '').replace(' ', '-')}-{data[:6]}"
            pages[f"{checked_name(page, mine[0]['name'])}.png"] = mine
    return pages


def label_of(record: Record) -> str:
    """Layer and form of hardening; equal for runs that differ in their seed alone."""
    form = hardening_of(record["config"]) if layers_of(record)["leaves"] else ""
    return f"{record['ffn']} {form}".strip()


def draw(records: list[Record]) -> bytes:
    """A PNG with a panel per quantity and a colour per label; a line per seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    labels = sorted({label_of(record) for record in records})
    figure, axes = pyplot.subplots(2, 2, figsize=(11, 8), layout="constrained")
    for axis, (name, title) in zip(axes.flat, PANELS, strict=True):
        for record in sorted(records, key=lambda r: r["name"]):
            points = [(p["tokens"] / 1e6, p[name]) for p in record["curve"] if finite(p.get(name)) is not None]
            if points:
                axis.plot(*zip(*points, strict=True), color=f"C{labels.index(label_of(record))}", marker=".")
        axis.set(xlabel="million tokens read", ylabel=title)
        axis.grid(alpha=0.3)
    handles = [pyplot.Line2D([], [], color=f"C{number}", label=label) for number, label in enumerate(labels)]
    figure.legend(handles=handles, loc="outside upper center", ncols=2)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100, metadata={"Software": None})
    pyplot.close(figure)
    return buffer.getvalue()


def draw_curves(records: list[Record]) -> dict[str, bytes]:
    """File name -> picture of every set of comparable runs."""
    return {name: draw(mine) for name, mine in comparable(records).items()}
