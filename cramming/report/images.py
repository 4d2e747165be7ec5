"""The table of the first paper's experiment (arXiv 2308.14711, Table 1) from records. Not the other tables."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from cramming.record import Record
from cramming.report.groups import left_out, split_status, summary_of
from cramming.report.markup import MISSING, bullets, csv_text, markdown_table, spread
from cramming.report.stats import Summary

# (training width, leaf width, variant) -> finished records
Rows = dict[tuple[int, int, str], list[Record]]

PAPER_WIDTHS = (16, 32, 64, 128)
PAPER_ROWS = {"FF": "dense", "l8": 8, "l4": 4, "l2": 2, "l1": 1}
# Data sets that the paper lacks -> its nearest one, which stands beside them.
NEAREST = {"digits": "USPS"}
VARIANTS = {
    "hardened": "hardened",
    "summed": "hardened, summed",
    "plain": "not hardened",
    "balanced": "hardened, balanced",
    "master": "hardened, master leaf",
}
QUANTITIES = {"memorisation": 0, "generalisation": 1}
CSV_ROW = ("data", "settings", "width", "leaf_width", "variant", "source", "quantity")
CSV_HEADER = (*CSV_ROW, "median", "min", "max", "mean", "mean_low", "mean_high", "n")

NOTES = """Percent, evaluated hard. Ours: median (min–max), n = finished seeds; the paper: the best of 10 runs, so
compare it with our maximum. A column is the training width: hidden neurons of the dense layer, or of all leaves
together (a tree's decisions come on top, width / leaf width − 1 of them). Inference uses a dense layer whole, and of a
tree one leaf and the decisions above it. Memorisation: accuracy on the training images at the end. Generalisation:
accuracy on the test images at the epoch that is best on validation images. Hardened: h (entropy_weight) times the
decisions' entropy is added to the loss, its mean over the nodes as in the code of arXiv 2405.16836; summed: its sum, as
the formula of the paper reads. Balanced and master leaf after arXiv 2405.16836 (its balance is of leaves, ours of
nodes; the master leaf's hidden neurons are used by every image, in addition). The controls are dense layers of a leaf's
width: what one leaf does without decisions."""


def images_markdown(records: Sequence[Record], paper: Mapping[str, Any]) -> str:
    """The whole page: each data set and setting with the paper's numbers beside it; pure in its arguments.

    Args:
        records: all records, of any kind.
        paper: the section `leaf_fff` of paper.yaml.
    """
    found, bad = image_groups(records)
    good = [record for rows in found.values() for records in rows.values() for record in records]
    names = [name for name in paper if name != "note"]
    groups: list[tuple[str, str, Rows]] = [(name, text, rows) for (name, text), rows in sorted(found.items())]
    groups += [(name, "", {}) for name in names if name not in {group[0] for group in groups}]
    labels = {text: f"S{i}" for i, text in enumerate(sorted({text for _, text, _ in groups if text}), 1)}
    blocks = [
        "# Images",
        "The first paper's experiment (arXiv 2308.14711, Table 1): one layer classifies images.",
        NOTES,
    ]
    for name, text, rows in groups:
        blocks.append(f"## {name}, settings {labels[text]}" if text else f"## {name}, not run")
        blocks += block(name, rows, paper)
    blocks += ["## Settings", bullets((f"{label}: {text}" for text, label in labels.items()), "None yet.")]
    return (
        "\n\n".join([*blocks, "## Left out of every number", bullets(left_out([*good, *bad]), "No run failed.")]) + "\n"
    )


def images_csv(records: Sequence[Record], paper: Mapping[str, Any]) -> str:
    """Every number of the page in long form; published ones have a source and a median alone."""
    lines: list[Sequence[Any]] = []
    for (name, text), rows in sorted(image_groups(records)[0].items()):
        for key in sorted(rows):
            for quantity in QUANTITIES:
                s = summary(rows[key], quantity)
                numbers = [s.median, s.low, s.high, s.mean, s.mean_low, s.mean_high, s.n] if s else [None] * 6 + [0]
                names = " ".join(record["name"] for record in rows[key])
                lines.append([name, text, *key, "ours", quantity, *numbers, names])
    for name in (name for name in paper if name != "note"):
        for row, leaf in PAPER_ROWS.items():
            for width in PAPER_WIDTHS:
                kind = [width, "dense"] if leaf == "dense" else [leaf, "hardened"]
                for quantity in QUANTITIES:
                    value = published(paper, name, row, width, quantity)
                    number = None if value is None else float(value)
                    lines.append([name, "", width, *kind, "paper", quantity, number, *[None] * 7])
    return csv_text(CSV_HEADER, lines)


def image_groups(records: Sequence[Record]) -> tuple[dict[tuple[str, str], Rows], list[Record]]:
    """(data set, settings in words) -> rows of finished runs; beside it the runs that did not finish."""
    good, bad = split_status([record for record in records if record["kind"] == "images"])
    found: dict[tuple[str, str], Rows] = defaultdict(lambda: defaultdict(list))
    for record in good:
        settings, row = record["config"]["images"], record["row"]
        shown = {key: value if isinstance(value, str) else json.dumps(value) for key, value in settings.items()}
        text = ", ".join(f"{key}={shown[key]}" for key in sorted(shown) if key != "name")
        text += f"; data {record['data_fingerprint']}"
        found[settings["name"], text][row["width"], row["leaf_width"], row["variant"]].append(record)
    return found, list(bad)


def summary(records: Sequence[Record], quantity: str) -> Summary | None:
    """Summary in percent of one accuracy, None where no record has it."""
    return summary_of(records, "metrics", quantity, 100.0)


def published(paper: Mapping[str, Any], name: str, row: str, width: int, quantity: str) -> str | None:
    """The paper's number as it stands there, None if it has none."""
    values = paper.get(name, {}).get(row)
    return values[PAPER_WIDTHS.index(width)].split("/")[QUANTITIES[quantity]] if values else None


def block(name: str, rows: Rows, paper: Mapping[str, Any]) -> list[str]:
    """One data set under one setting: what differs, a table per accuracy, leaves in use, controls."""
    source = name if name in paper else NEAREST.get(name)
    shown = [difference(name, rows, source)]
    widths = sorted({*PAPER_WIDTHS, *(width for width, leaf, _ in rows if width != leaf)})
    header = ["model", "source", *map(str, widths)]
    for quantity in QUANTITIES:
        shown += [f"### {quantity.capitalize()}", markdown_table(header, lines(rows, widths, quantity, paper, source))]
    used = [
        [
            f"leaf {leaf}, {VARIANTS[variant]}",
            *(leaves_in_use(rows.get((width, leaf, variant), [])) for width in widths),
        ]
        for leaf, variant in models(rows)
        if any(key[1:] == (leaf, variant) for key in rows)
    ]
    if used:
        shown += ["### Leaves that any training image reaches", markdown_table(["model", *map(str, widths)], used)]
    controls = [width for width, _, variant in sorted(rows) if variant == "dense" and width not in widths]
    if controls:
        cells = [
            [f"FF {width}", *(spread(summary(rows[width, width, "dense"], q), 1) for q in QUANTITIES)]
            for width in controls
        ]
        shown += ["### Controls: dense layers of a leaf's width", markdown_table(["model", *QUANTITIES], cells)]
    return shown


def difference(name: str, rows: Rows, source: str | None) -> str:
    """A sentence on what the numbers beside each other have in common."""
    first = next((records[0] for _, records in sorted(rows.items())), None)
    counts = first["samples"] if first else {}
    parts = ("train", "validation", "test")
    sizes = ", ".join(f"{counts[k[:5]]:,} to {k}" for k in parts if k[:5] in counts)
    read = f" Read by {first['data_library']}: {sizes}." if first and sizes else ""
    if source == name:
        return f"The paper's own data set; its split and stopping are not known in detail.{read}"
    if source is None:
        return f"The paper's Table 1 has no {name}.{read}"
    return (
        f"The paper does not use {name}; its nearest data set, {source}, stands beside it. The images, their size and "
        f"their number differ, so no row reproduces one of the paper's: only the order of rows can be compared.{read}"
    )


def models(rows: Rows) -> list[tuple[int, str]]:
    """(leaf width, variant) of the trees in the paper or among the runs, in the table's order."""
    known = {(leaf, "hardened") for leaf in PAPER_ROWS.values() if isinstance(leaf, int)}
    known |= {(leaf, variant) for _, leaf, variant in rows if variant != "dense"}
    order = list(VARIANTS)
    return sorted(known, key=lambda model: (-model[0], order.index(model[1])))


def lines(
    rows: Rows, widths: Sequence[int], quantity: str, paper: Mapping[str, Any], source: str | None
) -> list[list[str]]:
    """Rows of one accuracy: dense, then every tree, the paper's before ours."""
    result = []
    for leaf, variant in [(0, "dense"), *models(rows)]:
        label = "FF" if variant == "dense" else f"leaf {leaf}, {VARIANTS[variant]}"
        if source and variant in ("dense", "hardened"):
            name = "FF" if variant == "dense" else f"l{leaf}"
            values = [published(paper, source, name, w, quantity) if w in PAPER_WIDTHS else None for w in widths]
            result.append([label, f"paper, {source}", *(value or MISSING for value in values)])
        keys = [(width, width if variant == "dense" else leaf, variant) for width in widths]
        result.append([label, "ours", *(spread(summary(rows.get(key, []), quantity), 1) for key in keys)])
    return result


def leaves_in_use(records: Sequence[Record]) -> str:
    """Median of the leaves in use and how many there are."""
    dead = summary_of(records, "metrics", "dead_leaves")
    leaves = 2 ** records[0]["row"]["depth"] if records else 0
    return f"{leaves - dead.median:g} of {leaves}" if dead else MISSING
