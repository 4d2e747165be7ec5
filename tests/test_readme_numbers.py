"""Every number of README's claims stands in a table of results, or among the published numbers, as it is written."""

import csv
import re
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
START, END = "<!-- claims -->", "<!-- /claims -->"
# A number, with thousands and a "times" behind it, that is no part of a word such as 1x11.
NUMBER = re.compile(r"(?<![\w.,])[-+−]?\d+(?:,\d{3})*(?:\.\d+)?x?(?![\w])")


def numbers(text: str) -> set[str]:
    """The numbers of a text as they are written; a plus, a unit and a link's target are no part of them."""
    shown = re.sub(r"\]\([^)]*\)", "]", text)
    return {found.rstrip("x").lstrip("+").replace("−", "-") for found in NUMBER.findall(shown)}


def claims(text: str) -> str:
    """What stands between the marks; AssertionError where they are not there once, in order."""
    assert (text.count(START), text.count(END)) == (1, 1), f"README.md should have {START} and {END} once each."
    start, end = text.index(START) + len(START), text.index(END)
    assert start < end, f"README.md has {END} before {START}."
    return text[start:end]


def unfounded(text: str, sources: Iterable[str]) -> list[str]:
    """The numbers of the claims that no source has, sorted; a difference may be told without its sign."""
    known = set().union(*map(numbers, sources))
    known |= {number.lstrip("-") for number in known}
    return sorted(numbers(claims(text)) - known)


def sources() -> list[Path]:
    """Where a number of the claims may stand."""
    return [
        *sorted(path for path in (ROOT / "results/tables").iterdir() if path.suffix in (".csv", ".md")),
        ROOT / "results/paper.yaml",
    ]


def text_of(path: Path) -> str:
    """A file's text, in which a comma of CSV is no comma of a number."""
    text = path.read_text("utf-8")
    return "\n".join(" | ".join(row) for row in csv.reader(text.splitlines())) if path.suffix == ".csv" else text


def test_every_number_of_the_claims_stands_in_a_table() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert numbers(claims(text)), "README.md claims nothing between its marks."
    missing = unfounded(text, map(text_of, sources()))
    assert not missing, (
        f"README.md claims {', '.join(missing)}, which no results/tables/*.csv or *.md and not results/paper.yaml "
        "has as written: make tables, and write what they say."
    )


@pytest.mark.parametrize(
    ("claim", "missing"),
    [
        ("| 79.3 | 4.603 (4.601–4.631), n=3 |", []),
        ("| 79.4 | 4.603 |", ["79.4"]),
        ("worth 54.10 neurons", ["54.10"]),  # as written, not as rounded
        ("+0.379 and −0.036", []),
        ("0.036 better", []),
        ("-0.379", ["-0.379"]),  # a sign that is written is a part of it
        ("147x, 12x and 1x11", ["12"]),  # a layer's name has no number
        ("4,095 and 4095", ["4095"]),
        ("[table](results/99/77.md) of 54.1", []),
        ("half of 3, a range of 4.631-79.3", []),
        ("arXiv 1234.5678", ["1234.5678"]),
    ],
)
def test_a_number_that_no_table_has_is_found(claim: str, missing: list[str]) -> None:
    tables = ["1x8 | 4.603 (4.601–4.631), n=3 | 54.1 | +0.379 | -0.036 | 147x", "| 4,095 |", "values: [79.3, 85.2]"]
    assert unfounded(f"before 1 {START}\n{claim}\n{END} after 2", tables) == missing


@pytest.mark.parametrize("text", ["nothing", START, f"{END} 1 {START}", f"{START} 1 {END} {START} 2 {END}"])
def test_marks_that_are_missing_or_doubled_are_named(text: str) -> None:
    with pytest.raises(AssertionError, match="claims"):
        claims(text)
