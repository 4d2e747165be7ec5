"""The bench of layers on a disk: rows under a limit, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

from bench.rows import read_rows
from tests.helpers.commands import ROOT


def test_a_layer_larger_than_its_limit_is_timed_and_its_folder_removed(tmp_path: Path) -> None:
    options = ["--depth", "12", "--tokens", "64", "--memory", "32", "--out", str(tmp_path / "store.json")]
    done = subprocess.run(
        [sys.executable, "-m", "bench.store", str(tmp_path / "rows"), *options],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = read_rows(tmp_path / "store.json")
    names = ["cold", "warm", "cold, half of the hot set read ahead"]
    assert [row.name for row in rows] == [f"stored, {name}" for name in names]
    assert {(row.shape, row.tokens, row.n) for row in rows} == {("1x12", 1, 64)}
    assert "visited by 64 tokens" in done.stdout
    assert [each.name for each in tmp_path.iterdir()] == ["store.json"]
