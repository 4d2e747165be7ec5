"""Code in a Python of its own."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from cramming.train.history import read_history

TIMED = ("train/tokens_per_s", "budget/hours", "fff/usage_time")  # what no two runs share


def in_a_new_process(code: str, **environment: str) -> str:
    """What the code prints, standard error included."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    return done.stdout + done.stderr


def history_of(folder: Path) -> list[dict[str, Any]]:
    """The rows of the one run there, without what no two runs share."""
    (path,) = (folder / "outputs" / "runs").glob("*/metrics.jsonl")
    return [{key: value for key, value in row.items() if key not in TIMED} for row in read_history(path)]
