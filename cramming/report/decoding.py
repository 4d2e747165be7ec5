"""The table of decoding, with the bytes that a token reads, from rows of results/bench. Not their timing (bench)."""

from collections.abc import Sequence

from cramming.report.markup import MISSING, markdown_table, number
from cramming.report.speed import Row, machine, newest, origin, times

WHAT = "decode"
HEADER = (
    "feedforward, weights",
    "decoder",
    "tokens/s (10–90 %)",
    "weights per token [MB]",
    "read at [GB/s]",
    "times dense, same type",
    "times the fastest dense",
    "which is",
    "largest error",
    "tokens",
    "threads",
    "n",
    "on",
    "commit, date",
)
NOTES = """One text at a time with a cache of keys and values, decoders of random weights whose feedforward blocks alone
differ: dense and gated as published, one tree in each layer (1xdepth), or none, which is the bound. Tokens per second
of the tokens after the prompt. Weights per token are counted while a token is decoded: linears whole, one row of the
embedding, of trees the rows of the visited nodes; read at is their product with the median rate, and where it is above
what the memory gives, the weights lie in caches. In int8 linears and trees are those of `fff.optimise`, with a scale
for each row and each token; "by torch" are its dynamically quantised linears, with one for each matrix. Largest error:
of the logits, against the same decoder in float32, relative to the largest of them; a tree may take another path in a
smaller type. Rows with "transformers" run through that library's own forward pass, the others call the same modules
without it."""


def decoding_markdown(rows: Sequence[Row]) -> str:
    """The whole Markdown page, from rows in the order of their dates."""
    found = [row for row in newest(rows) if row["what"] == WHAT]
    found.sort(key=lambda row: (row["machine"], row["threads"]))  # keeps the order in which they were timed
    table = markdown_table(HEADER, map(cells, found)) if found else "Nothing was timed yet."
    return f"# Decoding\n\n{table}\n\n{NOTES}\n"


def cells(row: Row) -> list[str]:
    """One row as cells of HEADER."""
    read, error = row.get("bytes_per_token"), row.get("relative_error")
    return [
        row["name"],
        f"{row.get('layers', MISSING)} layers x {row['width']}, vocabulary {number(row.get('vocab_size'), 0)}",
        rates(row),
        MISSING if read is None else number(read / 1e6, 1),
        MISSING if read is None else number(read * row["tokens"] / row["median"] / 1e9, 1),
        times(row.get("ratio")),
        times(row.get("ratio_second")),
        row.get("second") or MISSING,
        MISSING if error is None else f"{error:.1e}",
        f"{number(row['tokens'], 0)} after {row.get('inputs', MISSING)}",
        str(row["threads"]),
        str(row["n"]),
        machine(row),
        origin(row),
    ]


def rates(row: Row) -> str:
    """Tokens per second: of the median time, and of the quantiles where they were kept."""
    middle, low, high = (
        None if row.get(key) is None else number(row["tokens"] / row[key], 1) for key in ("median", "q90", "q10")
    )
    return str(middle) + (f" ({low}–{high})" if low and high else "")
