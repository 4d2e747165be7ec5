"""Pictures of pretraining: validation loss and what the leaves do over tokens. Not the tables of the end."""

import io
from collections import defaultdict
from pathlib import Path
from typing import Any

from cramming.files import write_atomic
from cramming.report.groups import scale_of
from cramming.report.leaves import hardening_of

Record = dict[str, Any]
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
            found[record["experiment"], scale_of(record["config"]), record["data_fingerprint"]].append(record)
    pages = {}
    for (experiment, scale, data), mine in sorted(found.items()):
        if len(mine) > 1:
            pages[f"{experiment}-{scale.rsplit(', ', 1)[-1].replace(',', '').replace(' ', '-')}-{data[:6]}.png"] = mine
    return pages


def label_of(record: Record) -> str:
    """Layer and form of hardening; equal for runs that differ in their seed alone."""
    form = hardening_of(record["config"]) if record["config"]["ffn"]["kind"] in ("path", "leaf") else ""
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
            points = [(p["tokens"] / 1e6, p[name]) for p in record["curve"] if name in p]
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


def write_curves(records: list[Record], folder: Path) -> list[Path]:
    """Draw every set of comparable runs into the folder and return the files."""
    paths = []
    for name, mine in comparable(records).items():
        write_atomic(folder / name, draw(mine))
        paths.append(folder / name)
    return paths
