"""A lighthouse, and workers of a tiny run that come and go by it. Not a test."""

import subprocess
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path

from bench import faults
from tests.helpers import tiny
from tests.helpers.tiny_runs import ENVIRONMENT

SILENT_S = 1.0  # after which a worker is thought dead
LATE_S = 2.0  # for which a meeting waits for one that is alive
OUTER = ('sync="outer"', "outer_steps=3", "microbatch=4", "batch=12", "batch_ramp=0", "patience_minutes=1")


def lighthouse(least: int) -> AbstractContextManager[str]:
    """Its address; it calls a meeting of as many workers at least."""
    return faults.lighthouse(least, silent_s=SILENT_S, late_s=LATE_S)


class Worker:
    """One of the workers of a tiny run, in a process of its own, whose output goes to a file."""

    def __init__(self, folder: Path, address: str, number: int, *settings: str, workers: int = 3) -> None:
        own = [f'lighthouse="{address}"', f"workers={workers}", f"worker={number}"]
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / f"worker-{number}-{time.time():.3f}.txt"
        with open(self.log, "w") as log:
            command = [sys.executable, str(tiny.__file__), str(folder), *OUTER, *own, *settings]
            self.process = subprocess.Popen(command, env=ENVIRONMENT, stdout=log, stderr=log)

    def end(self) -> int:
        """Its exit status, when it has ended."""
        return self.process.wait(timeout=120)

    @property
    def printed(self) -> str:
        """What it has printed so far."""
        return self.log.read_text()
