"""README's table of speed, written between its marks from rows of speed. Not the page of all rows (speed)."""

from collections.abc import Sequence
from pathlib import Path

from cramming.errors import UserError
from cramming.files import write_atomic
from cramming.report.markup import markdown_table, number
from cramming.report.speed import FACTORS, Row, machine, order, origin, shown, times

START, END = "<!-- speed -->", "<!-- /speed -->"
COLD = "cold calls"  # rows of calls that find other layers' weights in the caches
SHAPES = ("1x11", "32x6")
LENGTHS = (1, 128, 16384)  # of a layer
HEADER = ("what", "tokens", "type", "takes", "opponent", "warm", "cold", "on", "commit, date")
NOTE = """One thread of a CPU, inference; *warm*: how many times faster than the opponent, the fastest dense layer of as
many neurons, or encoder with dense 3072, that was timed in turn with it, each called again and again; *cold*: the same
of calls that find other layers' weights in the caches, each against the quickest such call."""


def readme_table(rows: Sequence[Row]) -> str:
    """What stands between the marks: the newest run's best row of each layer or encoder, size and type."""
    mine = [row for row in shown(rows) if row["what"] in ("layer", "encoder") and wanted(row)]
    cold = [row for row in shown(rows) if row["what"] == COLD and wanted(row)]
    table = (
        markdown_table(HEADER, [cells(row, cold) for row in newest_best(mine)]) if mine else "Nothing was timed yet."
    )
    return f"{table}\n\n{NOTE}"


def wanted(row: Row) -> bool:
    """Whether a row is of the table: one thread, inference on a CPU, the paper's width, inputs of every kind."""
    plain = (row["device"], row["threads"], row["mode"], row["width"]) == ("cpu", 1, "inference", 768)
    usual = row.get("inputs") in (None, "iid") and not row.get("checkpoint") and row["shape"] in SHAPES
    usual = usual and str(row["opponent"]).startswith("dense")  # exports stand beside the layer itself
    return plain and usual and (row["what"] == "encoder" or row["tokens"] in LENGTHS)


def kind(row: Row) -> str:
    """The type that our side of a row is in: a layer's int8 form stands among rows of other types."""
    return "int8" if "int8" in row["name"].split() else row["dtype"]


def newest_best(rows: Sequence[Row]) -> list[Row]:
    """Of each thing, size and type the quickest row of the newest run."""
    found: dict[tuple[object, ...], Row] = {}
    for row in sorted(rows, key=lambda row: row["date"]):
        key = (row["what"], row.get("layers"), row["shape"], row["tokens"], row.get("sequences"), kind(row))
        before = found.get(key)
        if before is None or before["run"] != row["run"] or row["median"] < before["median"]:
            found[key] = row
    return sorted(found.values(), key=lambda row: (order(row)[0], row.get("layers") or 0, order(row)[1:]))


def cells(row: Row, cold: Sequence[Row]) -> list[str]:
    """One row as cells of HEADER; where cold calls were timed on their own and beside its opponent, theirs is cold."""
    same = ("shape", "tokens", "opponent")
    alike = [each for each in cold if all(each[key] == row[key] for key in same) and kind(each) == kind(row)]
    apart = newest_best(alike)[-1:] if row["what"] == "layer" else []
    factor, unit = FACTORS[row["unit"]]
    size = (
        f"{row['sequences']} x {row['tokens'] // row['sequences']}"
        if row.get("sequences")
        else number(row["tokens"], 0)
    )
    library = row.get("opponent_library")
    by = f" ({library})" if library else f" {row['dtype']}" if row["what"] == "encoder" else ""  # as its name says
    return [
        f"{row['what']} {row['shape']}" + (f", {row['layers']} layers" if row.get("layers") else ""),
        size,
        kind(row),
        f"{factor * row['median']:,.4g} {unit}",
        row["opponent"] + by,
        times(row["ratio"]),
        times((apart[0] if apart else row).get("ratio_cold")),
        machine(row).split(",")[0],
        origin(row),
    ]


def between(text: str) -> tuple[int, int]:
    """Where the marked part of README begins and ends; UserError where the marks are not there once, in order."""
    start, end = text.find(START) + len(START), text.find(END)
    if (text.count(START), text.count(END)) != (1, 1) or start > end:
        raise UserError(f"README.md should have {START} and {END} once each, in this order; git checkout README.md.")
    return start, end


def with_table(text: str, rows: Sequence[Row]) -> str:
    """README with the table of these rows between its marks."""
    start, end = between(text)
    return f"{text[:start]}\n{readme_table(rows)}\n{text[end:]}"


def write_readme(path: Path, rows: Sequence[Row]) -> None:
    """Write the table into README; UserError as `between`."""
    before = path.read_text("utf-8")
    if (after := with_table(before, rows)) != before:
        write_atomic(path, after)
