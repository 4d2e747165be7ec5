"""The committed tables are what `make tables` makes of the committed records: no page of yesterday beside them."""

import subprocess
from pathlib import Path

import pytest

from cramming.record import read_records
from cramming.report.speed import read_speed
from cramming.report.tables import build_tables, read_paper

RESULTS = Path(__file__).resolve().parents[3] / "results"


def stale(folder: Path, made: dict[str, str]) -> list[str]:
    """Names of the pages that a folder lacks, has otherwise, or has without their being made."""
    there = {path.name: path.read_text("utf-8") for path in folder.iterdir()}
    return sorted(name for name in there.keys() | made.keys() if there.get(name) != made.get(name))


def own_records() -> list[str]:
    """Records of runs that were made in this checkout and are not committed, as `make pretrain` leaves them."""
    told = ["git", "-C", str(RESULTS), "ls-files", "--others", "--", "runs"]
    return subprocess.run(told, capture_output=True, text=True, check=False).stdout.split()


@pytest.mark.skipif(bool(own_records()), reason="results/runs has runs of this checkout's own, and so have its tables")
def test_committed_tables_are_those_of_the_committed_records() -> None:
    made = build_tables(read_records(RESULTS), read_paper(RESULTS / "paper.yaml"), read_speed(RESULTS / "bench"))
    old = stale(RESULTS / "tables", made)
    assert not old, f"results/tables is not what its records say: {', '.join(old)}; make tables."


@pytest.mark.parametrize(
    ("there", "old"), [({"a.md": "1"}, []), ({"a.md": "0"}, ["a.md"]), ({"a.md": "1", "b.md": ""}, ["b.md"])]
)
def test_pages_of_yesterday_are_found(tmp_path: Path, there: dict[str, str], old: list[str]) -> None:
    for name, text in there.items():
        (tmp_path / name).write_text(text)
    assert stale(tmp_path, {"a.md": "1"}) == old
