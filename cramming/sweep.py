"""Runs side by side, as a command: trains what is missing and tells what became of each. Not which they are (plan)."""

import argparse
import os
import signal
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cramming.checks import number
from cramming.errors import Stopped
from cramming.plan import Planned, missing, train
from cramming.report.tables import write_report
from cramming.train.cost import cost_of


def add_options(parser: argparse.ArgumentParser) -> None:
    """What every such command takes."""
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as `make pretrain`; a=1,2 is two runs")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default 1)")
    parser.add_argument("--retry", action="store_true", help="train again those whose record says that they failed")
    parser.add_argument("--list", action="store_true", help="tell what there is and what is missing, and train nothing")


def check_options(arguments: argparse.Namespace) -> None:
    """Refuse (UserError) what cannot be; from here on a signal ends the runs after a checkpoint."""
    number("--jobs", arguments.jobs, least=1)
    for name in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, stop)


def stop(received: int, _: Any) -> None:
    """A signal ends the runs after a checkpoint."""
    raise Stopped(f"stopped by {signal.Signals(received).name}; the same command goes on where the runs are.")


def threads_of(jobs: int) -> int | None:
    """An equal share of the cores for each of several runs; one alone has what it would have without us."""
    return None if jobs == 1 else max(1, (os.cpu_count() or 1) // jobs)


def complete(runs: Sequence[Planned], arguments: argparse.Namespace, threads: int | None) -> bool:
    """Train what is missing of the runs, write the tables, and list what became of each; or list them alone.

    The same command goes on where runs were interrupted, and tries those again that ended with an error. A run whose
    record says that it failed (its loss diverged) would fail again, and is tried when asked. Returns whether all have
    finished.
    """
    failed = {} if arguments.retry else bad_records(runs)
    if arguments.list:
        show(runs, failed)
        return True
    todo = [each for each in missing(runs) if each[0].root.run_name not in failed]
    left = [run for run, _ in todo]
    tell("runs", f"{len(runs)}, of which {len(todo)} missing, with a budget of {needs(left)}")
    tell("hours", hours(runs, left, arguments.jobs))
    ended = 0
    try:
        for run, word in train(todo, arguments.jobs, threads):
            ended += word != "begins"
            tell(run.root.run_name, word + (f"   [{ended} of {len(todo)}]" if word != "begins" else ""))
            if word.startswith("failed"):
                failed[run.root.run_name] = word
        written = write_report(Path(runs[0].root.results_dir))
        tell("written", f"{written[0].parent} and figures, {len(written)} files")
    finally:
        whole = show(runs, failed)
    return whole


def bad_records(runs: Sequence[Planned]) -> dict[str, str]:
    """Run's name -> why, of those whose record says that they failed."""
    found = {run.root.run_name: run.ended_badly() for run in runs if not run.finished()}
    return {name: f"failed: {reason}" for name, reason in found.items() if reason}


def show(runs: Sequence[Planned], failed: dict[str, str]) -> bool:
    """A line for each run: finished with its loss, failed with the reason, or missing; whether all have finished."""
    width, counts = max(len(run.root.run_name) for run in runs), {"finished": 0, "failed": 0, "missing": 0}
    for run in runs:
        name, record = run.root.run_name, run.finished()
        state = "finished" if record else "failed" if name in failed else "missing"
        word = f"loss {record['metrics']['valid_loss']:.4f}" if record else failed.get(name, "")
        if state == "missing" and run.begun:
            word = "begun"
        counts[state] += 1
        tell(state, "  ".join(filter(None, (f"{name:<{width}}", run.row, word))))
    tell("of all", ", ".join(f"{count} {state}" for state, count in counts.items()))
    return counts["finished"] == len(runs)


def needs(runs: Sequence[Planned]) -> str:
    """What the runs may use, in words: the sum of their budgets by its unit, and of how many equal ones."""
    budgets: dict[str, list[float]] = {}
    for run in runs:
        for unit in ("tokens", "steps", "hours"):
            if budget := getattr(run.root.train, f"budget_{unit}"):
                budgets.setdefault(unit, []).append(budget)
    words = []
    for unit, mine in budgets.items():
        equal = f" ({len(mine)} x {mine[0]:,.10g})" if len(mine) > 1 and len(set(mine)) == 1 else ""
        words.append(f"{sum(mine):,.10g} {unit}{equal}")
    return ", ".join(words) or "nothing"


def hours(runs: Sequence[Planned], left: Sequence[Planned], jobs: int) -> str:
    """How long those that are left take, by the speed of finished ones: of the same row, else of all."""
    if not left:
        return "none"
    speeds: dict[str, list[float]] = {}
    for run in runs:
        if (record := run.finished()) and (speed := record["metrics"].get("train_tokens_per_s")):
            speeds.setdefault(run.row, []).append(float(speed))
    every = [speed for mine in speeds.values() for speed in mine]
    total = 0.0
    for run in left:
        cost = cost_of(run.root.train, run.root.data.seq_len)
        if cost.tokens is None:
            total += cost.hours or 0.0
        elif every:
            total += cost.tokens / statistics.median(speeds.get(run.row, every)) / 3600
        else:
            return "not known before a run has finished"
    told = f"about {total / min(jobs, len(left)):,.2g} with {min(jobs, len(left))} at a time"
    return f"{told}, at the speed of {len(every)} finished runs" if every else told


def tell(name: str, text: object) -> None:
    """A line for who waits."""
    print(f"{name:<10} {text}", flush=True)
