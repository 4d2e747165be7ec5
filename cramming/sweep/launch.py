"""Who starts runs: this machine, joblib, submitit (SLURM), ray; a few at a time. Not which are due (command.py)."""

import importlib
import os
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from cramming.config import CONFIGS
from cramming.errors import UserError
from cramming.plan import Planned
from cramming.sweep.attempt import Attempt

SCRIPT = CONFIGS.parent / "scripts" / "pretrain.py"
POLL_S = 0.1
Task = tuple[Planned, str]  # and the fingerprint of its data
Ended = tuple[Planned, str, int | str]  # and its status, or why it has none


class Place(Protocol):
    """Where attempts run; a handle is whatever it gives for one."""

    def submit(self, run: Planned) -> Any:
        """Begin, or have begun."""

    def ended(self, handles: Collection[Any]) -> list[tuple[Any, int | str]]:
        """Those that have ended, one at least, each with its status or why it has none. Waits."""

    def stop(self, handles: Collection[Any]) -> None:
        """End them after a checkpoint each, and wait."""


@dataclass(frozen=True)
class Launcher:
    """What was asked for.

    Attributes:
        name: one of NAMES.
        jobs: runs at a time.
        threads: of each run; None leaves it to the place.
        settings: that the library of that name takes.
        folder: for what the library writes.
    """

    name: str
    jobs: int
    threads: int | None
    settings: dict[str, Any] = field(default_factory=dict)
    folder: Path = Path()

    def train(self, tasks: Sequence[Task], begun: Callable[[Planned], None]) -> Iterator[Ended]:
        """Run them; yields each that ended, and tells of each that begins.

        One that finished elsewhere in the meantime, or that somebody trains, is not begun. Leaving early, as a signal
        does, stops the runs: each writes a checkpoint.
        """
        if self.name == "joblib":
            return by_joblib(tasks, self, begun)
        return side_by_side(tasks, self.jobs, PLACES[self.name](self), begun)


def side_by_side(tasks: Sequence[Task], jobs: int, place: Place, begun: Callable[[Planned], None]) -> Iterator[Ended]:
    """Keep so many running in a place."""
    queue = deque(tasks)
    running: dict[Any, Task] = {}
    try:
        while queue or running:
            while queue and len(running) < jobs:
                run, data = queue.popleft()
                if due(run, data):
                    running[place.submit(run)] = run, data
                    begun(run)
            for handle, status in place.ended(running) if running else []:
                yield (*running.pop(handle), status)
    finally:
        place.stop(running)


def due(run: Planned, data: str) -> bool:
    """Whether nobody has finished it, nor trains it now."""
    return not run.finished(data) and run.holder is None


def start(run: Planned, threads: int | None) -> Any:
    """The run's process here, as a Popen."""
    return attempt(run, threads).start()


def attempt(run: Planned, threads: int | None) -> Attempt:
    """A start of the run; how the last one failed is forgotten."""
    run.log.parent.mkdir(parents=True, exist_ok=True)
    run.failure_file.unlink(missing_ok=True)
    command = [sys.executable, str(SCRIPT), *run.overrides]
    return Attempt(command, str(run.log.absolute()), os.getcwd(), threads)


class Here:
    """Processes of this machine."""

    def __init__(self, launcher: Launcher) -> None:
        self.threads = launcher.threads

    def submit(self, run: Planned) -> Any:
        """Start it."""
        return start(run, self.threads)

    def ended(self, handles: Collection[Any]) -> list[tuple[Any, int | str]]:
        """Look ten times a second: other children, that the system gave us or a library started, do not count."""
        while not (found := [(each, each.returncode) for each in handles if each.poll() is not None]):
            time.sleep(POLL_S)
        return found

    def stop(self, handles: Collection[Any]) -> None:
        """SIGTERM."""
        for process in handles:
            process.terminate()
        for process in handles:
            process.wait()


def by_joblib(tasks: Sequence[Task], launcher: Launcher, begun: Callable[[Planned], None]) -> Iterator[Ended]:
    """A thread of joblib's for each that runs at a time, which waits for the run's process."""
    from joblib import Parallel, delayed  # scikit-learn brings it

    place, running = Here(launcher), set()
    leaving, gate = threading.Event(), threading.Lock()

    def one(run: Planned, data: str) -> Ended | None:
        with gate:
            if leaving.is_set() or not due(run, data):
                return None
            process = place.submit(run)
            running.add(process)
        begun(run)
        status = process.wait()
        running.discard(process)
        return run, data, status

    threads = Parallel(n_jobs=launcher.jobs, prefer="threads", return_as="generator_unordered")
    results = threads(delayed(one)(*task) for task in tasks)
    try:
        yield from filter(None, results)
    finally:
        with gate:
            leaving.set()
        place.stop(list(running))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that tasks were cancelled
            results.close()


def library(name: str) -> ModuleType:
    """A launcher's library, which is no part of what the project needs; UserError where it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"--launcher {name} needs the package {name} ({error}); install it: pip install -e '.[{name}]'."
        ) from None


def _place(module: str, name: str) -> Callable[[Launcher], Place]:
    return lambda launcher: getattr(importlib.import_module(f"cramming.sweep.{module}"), name)(launcher)


PLACES: dict[str, Callable[[Launcher], Place]] = {
    "local": Here,
    "submitit": _place("cluster", "by_submitit"),
    "ray": _place("cluster", "Ray"),
}
NAMES = (*PLACES, "joblib")
LIBRARIES = ("submitit", "ray")  # that come with an extra of the launcher's name
