"""README's table of speed is what the rows say: the newest run's best row, its opponent, warm and cold."""

from pathlib import Path
from typing import Any

import pytest

from cramming.errors import UserError
from cramming.report.readme import END, START, readme_table, with_table, write_readme
from cramming.report.speed import read_speed

ROOT = Path(__file__).resolve().parents[3]


def row(**changes: Any) -> dict[str, Any]:
    same: dict[str, Any] = {"what": "layer", "name": "cpu", "shape": "1x11", "width": 768, "tokens": 128, "n": 3}
    same |= {"dtype": "float32", "mode": "inference", "unit": "s", "median": 2e-3, "threads": 1, "device": "cpu"}
    same |= {"opponent": "dense 4096 float32", "ratio": 100.0, "ratio_cold": 40.0, "machine": "A CPU", "run": "r1"}
    return {**same, "commit": "abcdef012", "date": "2026-01-01T00:00:00Z", "inputs": "iid", **changes}


def lines(*rows: dict[str, Any]) -> list[list[str]]:
    table = readme_table(rows).split("\n\n")[0]
    return [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]


def test_the_committed_readme_has_the_table_of_the_committed_rows() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert with_table(text, read_speed(ROOT / "results" / "bench")) == text, "README.md: make tables"


def test_a_row_names_its_opponent_with_library_warm_and_cold() -> None:
    found = lines(row(opponent="dense 4096 int8 openvino", opponent_library="openvino 2026.4.1"))
    on = ["A CPU", "abcdef0, 2026-01-01"]
    assert found == [
        ["layer 1x11", "128", "float32", "2 ms", "dense 4096 int8 openvino (openvino 2026.4.1)", "100x", "40x", *on]
    ]


def test_the_newest_run_counts_and_in_it_the_best_row_of_each_type() -> None:
    old = row(median=1e-3, ratio=300.0)
    late: dict[str, Any] = {"run": "r2", "date": "2026-02-01T00:00:00Z"}
    rows = [old, row(**late, ratio=99.0, median=3e-3), row(**late, name="gather", ratio=11.0, median=9e-3)]
    rows += [
        row(**late, name="int8", ratio=200.0),
        row(**late, name="1x11 int8", dtype="int8", median=1e-3, ratio=400.0),
    ]
    assert [(cells[2], cells[5]) for cells in lines(*rows)] == [("float32", "99x"), ("int8", "400x")]


def test_cold_calls_timed_on_their_own_are_the_cold_ratio() -> None:
    apart = row(what="cold calls", ratio=50.0, ratio_cold=61.0)
    other = row(what="cold calls", name="int8", ratio_cold=70.0)
    assert [cells[5:7] for cells in lines(row(), apart, other)] == [["100x", "61x"]]
    weaker = row(what="cold calls", opponent="dense 4095 float32", ratio_cold=80.0)
    assert [cells[5:7] for cells in lines(row(), weaker)] == [["100x", "40x"]]


def test_other_settings_are_no_part_of_it() -> None:
    others = [{"threads": 2}, {"device": "cuda"}, {"mode": "training"}, {"inputs": "skewed"}, {"checkpoint": "x"}]
    others += [
        {"width": 384},
        {"tokens": 7},
        {"shape": "128x4"},
        {"opponent": None},
        {"opponent": "fff", "name": "AOTInductor"},
        {"name": "dense 4096 int8"},
    ]
    assert readme_table([row(**changes) for changes in others]).startswith("Nothing was timed yet.")


@pytest.mark.parametrize("text", ["nothing", START, f"{END} {START}", f"{START} {END} {START} {END}"])
def test_marks_that_are_missing_or_doubled_are_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(text)
    with pytest.raises(UserError, match="once each"):
        write_readme(tmp_path / "README.md", [])
    assert (tmp_path / "README.md").read_text() == text


def test_what_stands_around_the_marks_stays(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(f"before\n{START}\nof yesterday\n{END}\nafter\n")
    write_readme(path, [row()])
    text = path.read_text()
    assert text.startswith(f"before\n{START}\n| what")
    assert text.endswith(f"{END}\nafter\n")
    assert "of yesterday" not in text
