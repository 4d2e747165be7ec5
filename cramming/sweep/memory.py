"""Which sweeps were started with a folder: each remembered there as a file, for who asks how they are. Not how."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cramming.errors import UserError
from cramming.files import read_json, short_hash, write_json
from cramming.plan import Planned
from cramming.train.root import PretrainRoot
from cramming.values import build


def sweeps_folder(output_dir: Path) -> Path:
    """Where they are remembered, beside the runs."""
    return output_dir / "sweeps"


def remember(runs: Sequence[Planned], command: str) -> None:
    """Write them down, as the same command on another machine does too."""
    root = runs[0].root
    members = [{"row": run.row, "overrides": run.overrides, "config": run.root.as_dict()} for run in runs]
    name = f"{root.experiment}-{short_hash([run.root.run_name for run in runs])}.json"
    write_json(sweeps_folder(Path(root.output_dir)) / name, {"command": command, "runs": members})


def remembered(output_dir: Path) -> Iterator[tuple[str, list[Planned]]]:
    """Command and runs of each sweep, the one that was started last at the end.

    Raises:
        UserError: there is none, or one is damaged.
    """
    found = sorted(sweeps_folder(output_dir).glob("[!.]*.json"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UserError(f"{sweeps_folder(output_dir)} remembers no sweep; start one, or name its output_dir.")
    for path in found:
        content = read_json(path)
        try:
            yield str(content["command"]), [_member(each, output_dir) for each in content["runs"]]
        except (KeyError, TypeError, AttributeError):
            raise UserError(f"{path} does not describe a sweep; move it away, and start the sweep again.") from None


def _member(values: dict[str, Any], output_dir: Path) -> Planned:
    root = replace(build(PretrainRoot, values["config"]), output_dir=str(output_dir))
    return Planned(values["row"], tuple(values["overrides"]), root)
