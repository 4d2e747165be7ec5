"""The table of speed: every row names its opponent, the newest of a setting is shown, damaged files are named."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from cramming.errors import UserError
from cramming.report.speed import newest, read_speed, speed_csv, speed_markdown
from cramming.report.tables import read_paper

ROOT = Path(__file__).resolve().parents[3]
PUBLISHED = read_paper(ROOT / "results" / "paper.yaml")["speed"]


def row(**changes: Any) -> dict[str, Any]:
    same = {"what": "layer", "name": "cpu", "provider": "cpu", "shape": "1x11", "width": 768, "tokens": 16384}
    same |= {"dtype": "float32", "mode": "inference", "inputs": "iid", "threads": 1, "unit": "s", "n": 3}
    same |= {"median": 0.016, "q10": 0.015, "q90": 0.018, "opponent": "dense 4096 float32", "ratio": 147.3}
    same |= {"run": "r1", "device": "cpu", "machine": "AMD EPYC", "capability": "AVX512", "torch": "2.13.0"}
    return same | {"python": "3.11.7", "commit": "0123456789", "date": "2026-01-02T03:04:05Z", **changes}


def lines(page: str, heading: str) -> list[dict[str, str]]:
    """The table under a heading, by the columns' names."""
    text = page.split(f"## {heading}\n")[1].split("\n## ")[0]
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return [dict(zip(cells[0], line, strict=True)) for line in cells[2:]]


def test_a_row_names_what_it_is_compared_with_and_where() -> None:
    dense = row(name="dense 4096 float32", provider=None, ratio=1.0, median=2.36)
    (shown,) = lines(speed_markdown([row(), dense], PUBLISHED), "All of ours")
    assert shown["times better"] == "147x"
    assert shown["than"] == "dense 4096 float32"
    assert shown["median (10–90 %)"] == "16 ms (15–18)"
    assert shown["on"] == "AMD EPYC, AVX512"
    assert shown["commit, date"] == "0123456, 2026-01-02"


def test_of_one_setting_the_newest_is_shown_and_all_are_kept() -> None:
    rows = [row(), row(run="r2", date="2026-02-02T00:00:00Z", ratio=99.0), row(threads=2, ratio=50.0)]
    assert [found["ratio"] for found in newest(rows)] == [99.0, 50.0]
    assert [line["times better"] for line in lines(speed_markdown(rows, PUBLISHED), "All of ours")] == ["99x", "50x"]
    written = list(csv.DictReader(io.StringIO(speed_csv(rows))))
    assert [(line["run"], line["ratio"]) for line in written] == [("r1", "147.3"), ("r2", "99"), ("r1", "50")]


def test_ours_stand_beside_the_papers_numbers() -> None:
    level = row(what="level 2", name="FFF", provider="gather", opponent="dense 4095, level 2", ratio=298.2)
    level |= {"second": "dense 4095, level 3", "ratio_second": 35.0, "converted_from": "an older file"}
    other = {**level, "shape": "1x9", "ratio": 7.0}
    by_column = {
        line["column of Table 2"]: line for line in lines(speed_markdown([level, other], PUBLISHED), "Beside the paper")
    }
    assert len(by_column) == len(PUBLISHED["columns"])
    shown = by_column["CPU, BLAS level 2: batches of vectors"]
    assert shown["paper: 1x11"] == "255x"
    assert shown["ours: 1x11"] == "298x"
    assert shown["than"] == "dense 4095, level 2"
    assert shown["than the best dense layer"] == "35x"
    assert "0123456*" in shown["ours is"]
    assert by_column["GPU, naive CUDA"]["paper: 1x11"] == "118x"
    assert by_column["GPU, naive CUDA"]["ours: 1x11"] == "—"


def test_nothing_timed_is_said() -> None:
    assert "Nothing was timed yet." in speed_markdown([], PUBLISHED)
    assert speed_csv([]).count("\n") == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"layers": []}, "holds no rows of speed"),
        ([], "holds no rows of speed"),
        ({"schema_version": 1, "rows": [row(median=None)]}, "row 1: median missing"),
        ({"schema_version": 1, "rows": [row(ratio="fast")]}, "row 1: ratio missing or of a wrong type"),
        ({"schema_version": 1, "rows": [row(date=7)]}, "row 1: date missing or of a wrong type"),
        ({"schema_version": 1, "rows": [row(), 7]}, "row 2: all columns missing"),
        ({"schema_version": 1, "rows": [row(tokens=0)]}, "row 1: tokens=0 is no finite number above 0"),
        ({"schema_version": 1, "rows": [row(median=-1.5, n=True)]}, "row 1: median=-1.5, n=True is no finite"),
        ({"schema_version": 1, "rows": [row(median=float("nan"))]}, "row 1: median=nan is no finite"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: Any, words: str) -> None:
    (tmp_path / "x.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"x.json.*{words}"):
        read_speed(tmp_path)
