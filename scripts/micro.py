"""Train what is missing of an experiment's rows, then make the tables and figures: `python scripts/micro.py`.

Rows stand in configs/rows/<experiment>.yaml; each row and seed is one run of scripts/pretrain.py in a process of one
thread. Finished runs are recognised and interrupted ones go on, so that the same command is started until all is there.
"""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while libraries load ends without a traceback

import argparse
import sys
from pathlib import Path
from typing import Any

from cramming.checks import number
from cramming.door import door
from cramming.errors import Stopped
from cramming.plan import missing, needs, planned, train
from cramming.record import git_state
from cramming.report.tables import write_tables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="for every run, as `make pretrain` takes them"
    )
    parser.add_argument("--experiment", default="micro", help="whose rows (default micro)")
    parser.add_argument("--rows", type=words, default=[], help="names of rows, with commas between (default all)")
    parser.add_argument("--seeds", type=numbers, default=[0, 1, 2], help="with commas between (default 0,1,2)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, of one thread each (default 1)")
    arguments = parser.parse_intermixed_args()
    with door():
        for name in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(name, stop)
        git_state()  # now, not when the tables are written
        number("--jobs", arguments.jobs, least=1)
        failed = run(arguments)
    sys.exit(1 if failed else 0)


def run(arguments: argparse.Namespace) -> list[str]:
    """Train what is missing and write the tables; returns what failed, a line each."""
    runs = planned(arguments.experiment, arguments.rows, arguments.seeds, arguments.overrides)
    todo = missing(runs)
    tell("runs", f"{len(runs)}, of which {len(todo)} missing, with a budget of {needs([each for each, _ in todo])}")
    failed, ended = [], 0
    for each, word in train(todo, arguments.jobs):
        ended += word != "begins"
        tell(each.root.run_name, word + (f"   [{ended} of {len(todo)}]" if word != "begins" else ""))
        if word.startswith("failed"):
            failed.append(f"{each.root.run_name} {word}")
    for path in write_tables(Path(runs[0].root.results_dir)):
        if path.name.startswith("effective_width"):
            tell("written", path)
    for line in failed:
        tell("failed", line)
    tell("next", "the same command tries the failed ones again" if failed else "make tables")
    return failed


def tell(name: str, text: object) -> None:
    """A line for who waits."""
    print(f"{name:<10} {text}", flush=True)


def stop(received: int, _: Any) -> None:
    """A signal ends the runs after a checkpoint."""
    raise Stopped(f"stopped by {signal.Signals(received).name}; the same command goes on where the runs are.")


def words(text: str) -> list[str]:
    """A list with commas."""
    return [word for word in text.split(",") if word]


def numbers(text: str) -> list[int]:
    """A list of seeds with commas, one at least."""
    found = [int(word) for word in words(text)]
    if not found:
        raise ValueError
    return found


if __name__ == "__main__":
    main()
