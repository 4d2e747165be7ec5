"""The command of a sweep: what is missing is trained, here or on several machines. Not how (launch) or which (plan)."""

import argparse
import os
import shlex
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from cramming.checks import number
from cramming.errors import Stopped, UserError
from cramming.files import write_json
from cramming.locks import Held
from cramming.plan import Planned, missing
from cramming.report.tables import write_report
from cramming.sweep.launch import LIBRARIES, NAMES, Launcher, Task, library
from cramming.sweep.memory import remember, sweeps_folder
from cramming.sweep.squeue import check_present
from cramming.sweep.state import hours, needs, show, tell

POLL_S = 1.0
MANY = 1 << 20  # runs at a time: a queue knows better


def add_options(parser: argparse.ArgumentParser) -> None:
    """What every such command takes."""
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as `make pretrain`; a=1,2 is two runs")
    parser.add_argument(
        "--jobs", type=int, help="runs at a time (default: 1; joblib one a core; submitit and ray all, for they queue)"
    )
    parser.add_argument("--retry", action="store_true", help="train again those whose record says that they failed")
    parser.add_argument("--list", action="store_true", help="tell what there is and what is missing, and train nothing")
    parser.add_argument("--launcher", choices=NAMES, default="local", help="who starts the runs (default local)")
    parser.add_argument(
        "--launch", action="append", default=[], metavar="KEY=VALUE",
        help="setting of submitit (cluster, timeout_min, slurm_partition, ...) or ray (address, num_gpus, ...)",
    )  # fmt: skip


def check_options(arguments: argparse.Namespace) -> None:
    """Refuse (UserError) what cannot be; from here on a signal ends the runs after a checkpoint."""
    number("--jobs", arguments.jobs, least=1)
    settings = settings_of(arguments)
    if arguments.launcher in LIBRARIES:
        library(arguments.launcher)
    if arguments.launcher == "submitit" and settings.get("cluster", "slurm") == "slurm":
        check_present()
    for name in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(name) is not signal.SIG_IGN:  # as nohup leaves SIGHUP
            signal.signal(name, stop)


def stop(received: int, _: Any) -> None:
    """A signal ends the runs after a checkpoint."""
    raise Stopped(f"stopped by {signal.Signals(received).name}; the same command goes on where the runs are.")


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """What --launch gives the launcher, each value as YAML; UserError for what it does not take."""
    if arguments.launch and arguments.launcher in ("local", "joblib"):
        raise UserError(f"--launch {arguments.launch[0]} is for submitit and ray; --launcher is {arguments.launcher}.")
    found = {}
    for word in arguments.launch:
        key, sign, value = word.partition("=")
        if not sign or not key.isidentifier():
            raise UserError(f"--launch is {word!r}; give it KEY=VALUE, e.g. --launch timeout_min=600.")
        try:
            found[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UserError(f"--launch {word}: the value is no YAML; put it in quotes.") from None
    return found


def launcher_of(arguments: argparse.Namespace, threads: int | None, output_dir: Path) -> Launcher:
    """What was asked for; runs that share this machine have an equal share of its cores, unless told how many each."""
    name, settings, cores = arguments.launcher, settings_of(arguments), os.cpu_count() or 1
    shared = name in ("local", "joblib") or settings.get("cluster") == "local"
    jobs = arguments.jobs or {"local": 1, "joblib": cores}.get(name, MANY)
    if threads is None and shared and 1 < jobs < MANY:
        threads = max(1, cores // jobs)
    return Launcher(name, jobs, threads, settings, sweeps_folder(output_dir))


def complete(runs: Sequence[Planned], arguments: argparse.Namespace, threads: int | None = None) -> bool:
    """Train what is missing of the runs, write the tables, and list what became of each; or list them alone.

    The same command goes on where runs were interrupted, and tries those again that ended with an error. A run whose
    record says that it failed (its loss diverged) would fail again, and is tried when asked. The same command may run
    on several machines that share the folders: no run is trained twice at a time, and what one leaves another takes.

    Args:
        threads: of each run; None for what the launcher gives.

    Returns:
        whether all have finished.
    """
    if arguments.list:
        show(runs)
        return True
    bad = {run.root.run_name for run in runs if not arguments.retry and not run.finished() and run.ended_badly()}
    todo = [each for each in missing(runs) if each[0].root.run_name not in bad]
    left = [run for run, _ in todo]
    root = runs[0].root
    launcher = launcher_of(arguments, threads, Path(root.output_dir))
    remember(runs, shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]))
    tell("runs", f"{len(runs)}, of which {len(todo)} missing, with a budget of {needs(left)}")
    tell("hours", hours(runs, left, launcher.jobs))
    try:
        settle(todo, launcher)
        (Path(root.results_dir) / "runs").mkdir(parents=True, exist_ok=True)  # where no run got so far
        written = write_report(Path(root.results_dir))
        tell("written", f"{written[0].parent} and figures, {len(written)} files")
    finally:
        states = show(runs)
    return all(state.name == "finished" for state in states.values())


def settle(tasks: Sequence[Task], launcher: Launcher) -> None:
    """Train them all, or have them trained elsewhere, until each has finished or failed once since now."""
    before = {run.root.run_name: run.failure for run, _ in tasks}
    many = len(tasks)
    told: set[tuple[str, str]] = set()

    def left() -> list[Task]:
        return [
            (run, data)
            for run, data in tasks
            if not run.finished(data) and run.failure in (None, before[run.root.run_name])
        ]

    while tasks := left():
        free = [task for task in tasks if task[0].holder is None]
        for run, data, status in launcher.train(free, begins) if free else ():
            before[run.root.run_name] = None
            if (word := outcome(run, data, status)) is not None:
                tell(run.root.run_name, f"{word}   [{many - len(left())} of {many}]")
        if not free:
            for name, holder in {(run.root.run_name, str(run.holder)) for run, _ in tasks} - told:
                tell(name, f"is trained by {holder}; waiting")
                told.add((name, holder))
            time.sleep(POLL_S)


def begins(run: Planned) -> None:
    """Tell of it."""
    tell(run.root.run_name, "begins")


def outcome(run: Planned, data: str, status: int | str) -> str | None:
    """How a start of a run ended, in words, and kept where it failed; None where another process has the run."""
    record = run.finished(data)
    if status == 0 and record is not None:
        return f"finished: loss {record['metrics']['valid_loss']:.4f}"
    if status == Held.status:
        return None
    error = status if isinstance(status, str) else f"status {status}, {last_line(run.log)}"
    if run.log.exists():  # of a job that never began there is none
        error += f" (see {run.log})"
    when = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    write_json(run.failure_file, {"error": error, "host": socket.gethostname(), "when": when})
    return f"failed: {error}"


def last_line(log: Path) -> str:
    """The last thing that a run said."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "without a word")
