"""Tiny runs (tiny.py) in processes of their own: children of this one, or started anew as a user does. Not a test."""

import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.helpers import tiny
from tests.helpers.process import ENVIRONMENT, tiny_command
from tests.helpers.several import several


def run_tiny(folder: Path, *settings: str, processes: int = 1) -> subprocess.CompletedProcess[str]:
    """The tiny run until it ends, in children, which find the libraries loaded; both outputs hold all they printed.

    Its status is 0, or that of the first process that ended with another.
    """
    words = [str(folder), *settings]
    with TemporaryDirectory() as told:
        ended = several(tiny.run, Path(told), words, size=processes)
    printed = "".join(each.printed for each in ended)
    status = next((each.status for each in ended if each.status), 0)
    return subprocess.CompletedProcess(words, status, printed, printed)


def start_tiny(folder: Path, *settings: str, processes: int = 1) -> subprocess.CompletedProcess[str]:
    """The same in a Python of its own, or with torchrun in several."""
    command = tiny_command(folder, *settings, processes=processes)
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
