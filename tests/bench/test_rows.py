"""Rows of speed: complete, checked, told apart, and written whole or not at all."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.rows import SpeedRow, read_rows, run_name, stamp, write_rows
from cramming.errors import UserError
from cramming.machine import CPU

ROOT = Path(__file__).resolve().parents[2]


def row(**changes: Any) -> SpeedRow:
    same: dict[str, Any] = {"what": "layer", "name": "cpu", "shape": "1x11", "width": 768, "tokens": 128, "n": 3}
    same |= {"dtype": "float32", "mode": "inference", "median": 2.0, "opponent": "dense 4096 float32", "ratio": 3.0}
    return SpeedRow(**(same | stamp(CPU, 1) | changes))


def test_a_row_names_code_machine_and_run() -> None:
    flat = row().flat()
    for key in ("commit", "dirty", "date", "run", "machine", "threads", "torch", "python", "fff", "opponent"):
        assert flat[key] is not None, key
    assert flat["run"] == run_name()
    assert all(not isinstance(value, dict | list) for value in flat.values())


def test_runs_of_a_command_have_names_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    names = set()
    for _ in range(3):
        monkeypatch.delenv("FFF_BENCH_RUN", raising=False)
        run_name.cache_clear()
        names.add(run_name())
        assert run_name() in names
    run_name.cache_clear()
    assert len(names) == 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"what": "lair"}, "what is 'lair'"),
        ({"mode": "both"}, "mode is 'both'"),
        ({"unit": "ms"}, "unit is 'ms'"),
        ({"median": float("nan")}, "median is nan"),
        ({"median": "fast"}, "median is 'fast'"),
        ({"tokens": 0}, "tokens is 0"),
        ({"tokens": 1.5}, "tokens is 1.5"),
        ({"q10": 2.5}, "they should ascend"),
        ({"q90": 1.0, "most": 4.0}, "they should ascend"),
        ({"opponent": None}, "give both or none"),
        ({"ratio": None}, "give both or none"),
        ({"second": "none"}, "give both or none"),
        ({"commit": 7}, "commit is 7"),
        ({"date": "yesterday"}, "date is 'yesterday'"),
    ],
)
def test_a_wrong_row_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        row(**changes)


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    rows = [row(), row(name="gather", q10=1.0, q90=2.0, relative_error=1e-7)]
    write_rows(tmp_path / "a.json", rows, {"command": "by hand"})
    assert read_rows(tmp_path / "a.json") == rows
    assert json.loads((tmp_path / "a.json").read_text())["notes"] == {"command": "by hand"}
    write_rows(tmp_path / "none.json", [])
    assert read_rows(tmp_path / "none.json") == []
    broken = replace(rows[0])
    object.__setattr__(broken, "median", float("nan"))
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_rows(tmp_path / "a.json", [*rows, broken])
    assert read_rows(tmp_path / "a.json") == rows, "the file of before stays"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not valid JSON"),
        ('{"layers": []}', "holds no rows of speed"),
        ('{"schema_version": 1, "rows": {}}', "rows is no list"),
        ('{"schema_version": 1, "rows": [{"what": "layer"}]}', "row 1: .*missing"),
        ('{"schema_version": 1, "rows": [7]}', "row 1"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "damaged.json"
    path.write_text(content)
    with pytest.raises(UserError, match=f"damaged.json.*{words}"):
        read_rows(path)


def test_every_committed_file_has_rows_that_name_their_origin() -> None:
    files = sorted((ROOT / "results" / "bench").glob("*.json"))
    assert len(files) >= 17
    for path in files:
        rows = read_rows(path)
        assert rows, path
        assert all(found.commit for found in rows), path
        names = {found.name for found in rows}
        assert {found.opponent for found in rows} - {None} <= names, path
        assert all("/" not in (found.checkpoint or "") for found in rows), path
        assert not any(place in path.read_text() for place in ('"/tmp', '"/home', '"/root', '"/work')), path
