"""What has become of a sweep's runs, and how long the others take, by the files they share. Starts nothing."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from cramming.plan import Planned
from cramming.sweep.squeue import Queued, job_of, queue, was_queued
from cramming.train.cost import cost_of

STATES = ("finished", "running", "queued", "failed", "missing")
ALWAYS = ("finished", "failed", "missing")  # told where there are none, too


@dataclass(frozen=True)
class State:
    """Of one run: which of STATES, a word on it, and what it has reached of its budget, from 0 to 1."""

    name: str
    word: str
    progress: float


def state_of(run: Planned, jobs: dict[str, Queued]) -> State:
    """As files and queue tell it now: a loss, by whom it is trained since when, why it failed, how far it had come."""
    if (record := run.finished()) is not None:
        return State("finished", f"loss {record['metrics']['valid_loss']:.4f}", 1.0)
    if (holder := run.holder) is not None:
        return State("running", f"{run.progress:.0%} by {holder}", run.progress)
    begun, progress = (f"begun, {run.progress:.0%}", run.progress) if run.begun else ("", 0.0)
    if (found := job_of(run, jobs)) is not None:
        return State("queued", "  ".join(filter(None, (f"job {found[0]} of SLURM: {found[1]}", begun))), progress)
    if (reason := why_failed(run)) is not None:
        return State("failed", f"failed: {reason}", run.progress)
    return State("missing", begun, progress)


def waiting(runs: Sequence[Planned]) -> dict[str, Queued]:
    """What SLURM's queue has, where a run of these was put there; nothing where it cannot be asked."""
    if not any(map(was_queued, runs)):
        return {}
    try:
        return queue()
    except OSError as error:
        tell("queue", f"not known here: {error}")
        return {}


def why_failed(run: Planned) -> str | None:
    """What its record says, else what became of its last start."""
    failure = run.failure or {}
    return run.ended_badly() or failure.get("error")


def show(runs: Sequence[Planned]) -> dict[str, State]:
    """Print a line for each run, and how many there are of each state; returns name -> state."""
    width, found, jobs = max(len(run.root.run_name) for run in runs), {}, waiting(runs)
    for run in runs:
        name = run.root.run_name
        state = found[name] = state_of(run, jobs)
        tell(state.name, "  ".join(filter(None, (f"{name:<{width}}", run.row, state.word))))
    counts = {name: sum(state.name == name for state in found.values()) for name in STATES}
    tell("of all", ", ".join(f"{count} {name}" for name, count in counts.items() if count or name in ALWAYS))
    return found


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
        cost, rest = cost_of(run.root.train, run.root.data.seq_len), 1 - run.progress
        if cost.tokens is None:
            total += (cost.hours or 0.0) * rest
        elif every:
            total += cost.tokens * rest / statistics.median(speeds.get(run.row, every)) / 3600
        else:
            return "not known before a run has finished"
    together = min(jobs, len(left))
    told = f"about {total / together:,.2g} with {together} at a time"
    return f"{told}, at the speed of {len(every)} finished runs" if every else told


def tell(name: str, text: object) -> None:
    """A line for who waits."""
    print(f"{name:<10} {text}", flush=True)
