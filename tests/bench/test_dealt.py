"""The tables of dealt documents are those of the records, and docs/scale.md shows them."""

from pathlib import Path

from bench.dealt import HOME, comparison, separation

PAGE = (Path(__file__).parents[2] / "docs" / "scale.md").read_text()


def test_the_page_has_every_row_of_the_comparison() -> None:
    rows = comparison(HOME)
    assert len(rows) == 2 + 11
    assert "\n".join(rows) in PAGE


def test_the_page_has_the_layers_that_decided() -> None:
    head, rows = separation(HOME)[:2], [row for row in separation(HOME) if "which decided" in row]
    assert len(rows) == 4 * 4
    assert "\n".join([*head, *rows]) in PAGE


def test_every_comparison_is_of_both_seeds() -> None:
    for row in comparison(HOME)[2:]:
        assert row.split("|")[5].count(",") == 1, row
