"""Runs that stand side by side: which are missing, and each in its process. Not a run (train), nor a report (sweep)."""

import os
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from cramming.config import CONFIGS, composed, expanded
from cramming.data.prepare import prepare
from cramming.errors import UserError
from cramming.record import Record, read_record, recognised, record_file
from cramming.train.root import PretrainRoot

SCRIPT = CONFIGS.parent / "scripts" / "pretrain.py"


@dataclass(frozen=True)
class Planned:
    """One run: its row or what was chosen for it, the overrides that scripts/pretrain.py takes, what they come to."""

    row: str
    overrides: tuple[str, ...]
    root: PretrainRoot

    @property
    def log(self) -> Path:
        """What the run prints, of all its starts."""
        return Path(self.root.output_dir) / "logs" / f"{self.root.run_name}.log"

    @property
    def begun(self) -> bool:
        """Whether it has a checkpoint from which it goes on."""
        return any((self.root.run_folder / "checkpoints").glob("step-*"))

    def finished(self, data: str | None = None) -> Record | None:
        """Its record among the results, if it has finished; on these data, where their fingerprint is given."""
        content = {} if data is None else {"data_fingerprint": data}
        found = (recognised(Path(self.root.results_dir), name.run, content)[1] for name in self.root.names)
        return next((record for record in found if record is not None), None)

    def ended_badly(self) -> str | None:
        """Why it ended without results, of one whose record says so: its loss diverged."""
        for path in (record_file(Path(self.root.results_dir), name.run) for name in self.root.names):
            record = read_record(path) if path.exists() else None
            if record is not None and record["status"] != "finished":
                return f"{record['status']}: {record.get('error', 'without a word')}"
        return None


def read_rows(experiment: str, wanted: Sequence[str]) -> dict[str, list[str]]:
    """Name -> overrides of an experiment's rows, all or those wanted; UserError names a row that is none."""
    path = CONFIGS / "rows" / f"{experiment}.yaml"
    if not path.is_file():
        found = ", ".join(sorted(each.stem for each in path.parent.glob("*.yaml")))
        raise UserError(f"--experiment is {experiment!r}, which has no rows ({path}); choose one of {found}.")
    rows = {str(name): str(text).split() for name, text in yaml.safe_load(path.read_text()).items()}
    if strange := [name for name in wanted if name not in rows]:
        raise UserError(f"--rows names {', '.join(strange)}; {path} has {', '.join(rows)}.")
    return {name: rows[name] for name in wanted or rows}


def planned(experiment: str, rows: Sequence[str], seeds: Sequence[int], overrides: Sequence[str]) -> list[Planned]:
    """The runs, all rows of a seed before the next seed: what is there early can be compared."""
    found = []
    for seed in seeds:
        for row, own in read_rows(experiment, rows).items():
            found += points((f"experiment={experiment}", *own, f"seed={seed}", *overrides), row)
    return found


def points(overrides: Sequence[str], row: str = "") -> list[Planned]:
    """The runs of a command line with choices ("train.lr=1e-3,2e-3"), each once; UserError names what is wrong."""
    runs: dict[str, Planned] = {}
    for line, chosen in expanded(overrides):
        run = Planned(" ".join(filter(None, (row, *chosen))), tuple(line), composed("pretrain", line))
        runs.setdefault(run.root.run_name, run)
    return list(runs.values())


def missing(runs: Sequence[Planned]) -> list[tuple[Planned, str]]:
    """The runs that have not finished, with the fingerprint of their data, which are prepared where any is missing.

    Raises:
        UserError: the data cannot be prepared, or a record is damaged.
    """
    if all(run.finished() for run in runs):
        return []
    prints: dict[str, str] = {}
    for run in runs:
        key = repr(run.root.data)
        if key not in prints:
            prints[key] = prepare(run.root.data, Path(run.root.output_dir)).fingerprint
    return [(run, data) for run in runs if not run.finished(data := prints[repr(run.root.data)])]


def train(runs: Sequence[tuple[Planned, str]], jobs: int, threads: int | None = 1) -> Iterator[tuple[Planned, str]]:
    """Run them, `jobs` at a time with `threads` each; yields each that began or ended, with a word on it.

    A run that fails does not keep the others from running: it ends with "failed: ..." and the reason. One that finished
    elsewhere in the meantime is not begun. Leaving early stops the runs as SIGTERM does: each writes a checkpoint.
    """
    queue = deque(runs)
    running: dict[subprocess.Popen, tuple[Planned, str]] = {}
    try:
        while queue or running:
            while queue and len(running) < jobs:
                run, data = queue.popleft()
                if not run.finished(data):
                    running[start(run, threads)] = run, data
                    yield run, "begins"
            if running:
                os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
            for process in [each for each in running if each.poll() is not None]:
                run, data = running.pop(process)
                yield run, outcome(run, data, process.returncode)
    except KeyboardInterrupt:  # the terminal told the runs too, and a second signal would spoil their checkpoints
        for process in running:
            process.wait()
        raise
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()


def start(run: Planned, threads: int | None) -> subprocess.Popen:
    """The run's process; without a number of threads it has the machine's."""
    run.log.parent.mkdir(parents=True, exist_ok=True)
    with run.log.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, str(SCRIPT), *run.overrides],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {}),
        )


def outcome(run: Planned, data: str, status: int) -> str:
    """How a run ended, in words."""
    record = run.finished(data)
    if status == 0 and record is not None:
        return f"finished: loss {record['metrics']['valid_loss']:.4f}"
    lines = [line.strip() for line in run.log.read_text(errors="replace").splitlines() if line.strip()]
    return f"failed: status {status}, {lines[-1] if lines else 'without a word'} (see {run.log})"
