"""Numbers and rows as Markdown, CSV and LaTeX, always the same for the same input. Not what stands in the tables."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from cramming.report.stats import Summary

MISSING = "—"
LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        **{sign: f"\\{sign}" for sign in "&%$#_{}"},
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "≤": r"$\le$",
        "≥": r"$\ge$",
        "–": "--",
        "—": "---",
    }
)


def number(value: float | None, digits: int) -> str:
    """A number with fixed digits and thousands separators; a dash when there is none."""
    return MISSING if value is None else f"{value:,.{digits}f}"


def spread(summary: Summary | None, digits: int) -> str:
    """Median, (min-max) and n; a dash when there is nothing."""
    if summary is None:
        return MISSING
    middle = number(summary.median, digits)
    if summary.n == 1:
        return f"{middle}, n=1"
    return f"{middle} ({number(summary.low, digits)}–{number(summary.high, digits)}), n={summary.n}"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, with the cells' pipes escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """CSV with LF line ends; None becomes an empty field, floats are written with 6 significant digits."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow([f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row])
    return buffer.getvalue()


def bullets(items: Iterable[str], none: str) -> str:
    """A Markdown list, or the sentence `none`."""
    return "\n".join(f"- {item}" for item in items) or none


def latex_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A `tabular` for the package booktabs: the first column to the left, the others to the right."""
    lines = [" & ".join(cell.translate(LATEX) for cell in line) + r" \\" for line in (header, *rows)]
    columns = "l" + "r" * (len(header) - 1)
    body = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", lines[0], r"\midrule", *lines[1:]]
    return "\n".join([*body, r"\bottomrule", r"\end{tabular}"])
