"""Runs that stand side by side: which, and how far each is. Not a run (train), nor how they are started (sweep)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cramming.config import CONFIGS, composed, expanded
from cramming.data.prepare import prepare
from cramming.errors import UserError
from cramming.files import read_json
from cramming.locks import Holder, holder
from cramming.record import Record, read_record, recognised, record_file
from cramming.train.history import last_row
from cramming.train.root import PretrainRoot
from cramming.train.run import RunFolder


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
    def failure_file(self) -> Path:
        """How its last start failed, from the end of that to the next one."""
        return self.log.with_suffix(".failed.json")

    @property
    def failure(self) -> dict[str, Any] | None:
        """What that says: the "error", and on which "host" "when"."""
        return read_json(self.failure_file) if self.failure_file.exists() else None

    @property
    def holder(self) -> Holder | None:
        """Who trains it now."""
        return holder(RunFolder(self.root.run_folder).lock)

    @property
    def progress(self) -> float:
        """What its history has reached of the budget, from 0 to 1."""
        return float((last_row(RunFolder(self.root.run_folder).history) or {}).get("budget/progress", 0.0))

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
