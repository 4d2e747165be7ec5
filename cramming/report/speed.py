"""The table of speed from rows of results/bench, beside the paper's Table 2. Not how anything was timed (bench)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cramming.errors import UserError
from cramming.files import read_json
from cramming.report.markup import MISSING, csv_text, latex_table, markdown_table, number
from cramming.report.stats import finite

SCHEMA_VERSION = 1  # of the files that bench.rows writes
Row = dict[str, Any]
WORDS = ("what", "name", "shape", "dtype", "mode", "unit", "run", "device", "machine", "torch", "python", "date")
NUMBERS = ("width", "tokens", "threads", "median", "n")
MAYBE_NUMBERS = ("ratio", "ratio_second", "q10", "q90", "least", "most", "layers")
# Rows that agree in these are one measurement taken again; the newest is shown.
TIMED = ("what", "name", "shape", "width", "layers", "vocab_size", "tokens", "sequences", "dtype", "mode", "inputs")
SETTING = (*TIMED, "compiler", "threads", "device", "machine", "capability", "checkpoint")
PAPER_ROWS = ("UltraFastBERT-1x11", "BERT-base-3072")
# Column of the paper's table -> what it compares, and the `what` of our rows of the same kind.
COLUMNS = {
    "limit": ("neurons of the dense layer / neurons used", None),
    "cpu_level1": ("CPU, BLAS level 1: vectors", "level 1"),
    "cpu_level2": ("CPU, BLAS level 2: batches of vectors", "level 2"),
    "cpu_level3": ("CPU, BLAS level 3: matrices", "level 3"),
    "gpu_native_fused": ("GPU, native fused", None),
    "gpu_pytorch_bmm": ("GPU, PyTorch BMM", None),
    "gpu_naive_cuda": ("GPU, naive CUDA", None),
}
PAPER_HEADER = (
    "column of Table 2",
    "paper: 1x11",
    "paper: dense 3072",
    "ours: 1x11",
    "than",
    "than the best dense layer",
    "ours is",
)
HEADER = (
    "what",
    "layer",
    "scale",
    "tokens",
    "dtype",
    "mode",
    "inputs",
    "threads",
    "by",
    "median (10–90 %)",
    "n",
    "times better",
    "than",
    "on",
    "commit, date",
)
WHATS = ("layer", "level 1", "level 2", "level 3", "training memory", "encoder", "pretraining step", "update alone")
FACTORS = {"s": (1e3, "ms"), "MB": (1, "MB"), "tokens/s": (1, "tokens/s")}
NOTES = """Every row of trees whose opponent was timed beside it; `speed.csv` has all rows of all runs, the opponents'
too. Of a setting that was timed again on the same kind of machine the newest row stands here. "Times better" is less
time or memory, or more tokens/s, than the row that the next column names: of layers the fastest dense layer of as
many neurons (or of the next multiple of 64), of models the one with dense layers of 3072. Where no quantiles were
kept, the least and the most stand in square brackets. Commits: * the row was converted from an older form, and
commit and date are those of the commit that recorded it; + the code differed from the commit."""
PAPER_NOTES = """Table 2 of arXiv 2311.10770 v2: one layer of width 768, 16384 tokens, float32, on an i7-6700HQ and an
A6000; how many times faster than a dense layer of 4095 neurons computed in the same way. Ours is held against that,
and against the fastest dense layer of all levels. A dash: the paper has none, or it was not timed here. Best
against best, the paper has {best}."""


def read_speed(folder: Path) -> list[Row]:
    """The rows of every file of a folder, each with its `file`; sorted by date.

    Raises:
        UserError: a file is damaged, of another form, or a row lacks a column or has a number there that nothing is
            measured as; it is named.
    """
    rows = []
    for path in sorted(folder.glob("*.json")):
        content = read_json(path)
        found = content.get("rows") if isinstance(content, dict) else None
        if not isinstance(found, list) or content.get("schema_version") != SCHEMA_VERSION:
            raise UserError(f"{path} holds no rows of speed of schema version {SCHEMA_VERSION}; move it away.")
        for place, row in enumerate(found, 1):
            if wrong := wrong_columns(row):
                raise UserError(f"{path}, row {place}: {', '.join(wrong)} missing or of a wrong type; time it again.")
            if odd := [f"{key}={row[key]}" for key in NUMBERS if not measured(row[key])]:
                raise UserError(f"{path}, row {place}: {', '.join(odd)} is no finite number above 0; time it again.")
            rows.append({**row, "file": path.name})
    return sorted(rows, key=lambda row: (row["date"], row["file"]))


def measured(value: float) -> bool:
    """Whether a width, a count or a median can be one."""
    found = finite(value)
    return found is not None and found > 0


def wrong_columns(row: Any) -> list[str]:
    """The columns that a table needs and a row lacks, or has of another type."""
    if not isinstance(row, dict):
        return ["all columns"]
    lacking = [key for key in WORDS if not isinstance(row.get(key), str)]
    lacking += [key for key in NUMBERS if not isinstance(row.get(key), int | float)]
    return lacking + [key for key in MAYBE_NUMBERS if not isinstance(row.get(key, 0), int | float)]


def newest(rows: Sequence[Row]) -> list[Row]:
    """The last row of each setting, in the order of the settings' first rows."""
    return list({tuple(row.get(key) for key in SETTING): row for row in rows}.values())


def speed_markdown(rows: Sequence[Row], paper: dict[str, Any]) -> str:
    """The whole Markdown page, from rows in the order of their dates and the paper's `speed` numbers."""
    table = markdown_table(HEADER, map(cells, shown(rows))) if shown(rows) else "Nothing was timed yet."
    beside = markdown_table(PAPER_HEADER, paper_rows(newest(rows), paper)) if paper else "No published numbers."
    best = ", ".join(f"{name} {value:g}x" for name, value in paper.get("best_against_best", {}).items())
    notes = PAPER_NOTES.format(best=best or MISSING)
    return f"# Speed\n\n## Beside the paper\n\n{beside}\n\n{notes}\n\n## All of ours\n\n{table}\n\n{NOTES}\n"


def shown(rows: Sequence[Row]) -> list[Row]:
    """The rows of trees beside their opponents, the newest of each setting, in the page's order."""
    held = [row for row in newest(rows) if row["what"] != "decode"]  # that has a page of its own, with more columns
    ours = [row for row in held if row.get("opponent") and row["name"] != row["opponent"] and is_ours(row)]
    return sorted(ours, key=order)


def is_ours(row: Row) -> bool:
    """Whether a row is of trees, not of what they are compared with."""
    return not str(row["name"]).startswith(("dense ", "none"))


def order(row: Row) -> tuple[Any, ...]:
    """Layers before models, one shape after the other, few tokens first."""
    what = WHATS.index(row["what"]) if row["what"] in WHATS else len(WHATS)
    keys = ("dtype", "inputs", "name", "compiler", "machine", "capability")
    size = (str(row.get("checkpoint", "")), row["shape"], row["mode"], row["tokens"], row["threads"])
    return (what, *size, *(str(row.get(key, "")) for key in keys))


def cells(row: Row) -> list[str]:
    """One row as cells of HEADER."""
    scale = f"width {row['width']}" + (f", {row['layers']} layers" if row.get("layers") else "")
    by = row["name"] if row.get("provider") in (None, row["name"]) else f"{row['name']} ({row['provider']})"
    return [
        row["what"],
        row["shape"],
        scale + (f", {row['checkpoint']}" if row.get("checkpoint") else ""),
        number(row["tokens"], 0),
        row["dtype"],
        row["mode"],
        row.get("inputs") or MISSING,
        str(row["threads"]),
        by + ("" if row.get("compiler", "eager") == "eager" else f", {row['compiler']}"),
        figure(row),
        str(row["n"]),
        times(row["ratio"]),
        row["opponent"],
        machine(row),
        origin(row),
    ]


def figure(row: Row) -> str:
    """Median and spread with the unit."""
    factor, unit = FACTORS.get(row["unit"], (1, row["unit"]))

    def text(key: str) -> str:
        return f"{factor * row[key]:,.4g}" if factor * row[key] < 1e4 else f"{factor * row[key]:,.0f}"

    spread = ""
    if row.get("q10") is not None:
        spread = f" ({text('q10')}–{text('q90')})"
    elif row.get("least") is not None:
        spread = f" [{text('least')}–{text('most')}]"
    return f"{text('median')} {unit}{spread}"


def times(ratio: float | None) -> str:
    """A ratio to three digits."""
    return MISSING if ratio is None else f"{ratio:,.0f}x" if ratio >= 100 else f"{ratio:.3g}x"


def machine(row: Row) -> str:
    """The device's name, and what a CPU can."""
    return (
        f"{row['machine']}, {row['capability']}" if row.get("capability") and row["device"] == "cpu" else row["machine"]
    )


def origin(row: Row) -> str:
    """Which code, when."""
    mark = "*" if row.get("converted_from") else "+" if row.get("dirty") else ""
    return f"{str(row.get('commit') or MISSING)[:7]}{mark}, {row['date'][:10]}"


def paper_rows(rows: Sequence[Row], paper: dict[str, Any]) -> list[list[str]]:
    """A line per column of the paper's Table 2, with our best row of the same kind."""
    columns, published = paper["columns"], paper["rows"]
    lines = []
    for place, column in enumerate(columns):
        title, what = COLUMNS.get(column, (column, None))
        ours = [row for row in rows if what is not None and row["what"] == what and is_paper_layer(row)]
        mine = [MISSING] * 4
        if ours:
            last = ours[-1]
            mine = [times(last["ratio"]), last["opponent"], times(last.get("ratio_second")), about(last)]
        lines.append([title, *(times(published[name][place]) for name in PAPER_ROWS), *mine])
    return lines


def is_paper_layer(row: Row) -> bool:
    """Whether a row is of the layer that the paper timed."""
    return is_ours(row) and (row["shape"], row["width"], row["dtype"]) == ("1x11", 768, "float32")


def about(row: Row) -> str:
    """What a number of ours was taken on."""
    return f"{row['name']}; {machine(row)}; {row['threads']} thread(s); {origin(row)}"


def speed_csv(rows: Sequence[Row]) -> str:
    """All rows with all their columns, in the order of their dates."""
    header = list(dict.fromkeys([*SETTING, *(key for row in rows for key in row)]))
    return csv_text(header, ([row.get(key) for key in header] for row in rows))


def speed_tex(rows: Sequence[Row], paper: dict[str, Any]) -> str:
    """Both tables of the page as LaTeX, each with a title in a comment."""
    beside = latex_table(PAPER_HEADER, paper_rows(newest(rows), paper)) if paper else "% No published numbers."
    ours = latex_table(HEADER, map(cells, shown(rows))) if shown(rows) else "% Nothing was timed yet."
    return f"% Beside the paper\n{beside}\n\n% All of ours\n{ours}\n"
