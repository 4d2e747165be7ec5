"""What became of the sweeps, each run of them, and how many hours are left: `make status`.

Reads the files that all machines of a sweep share, and changes nothing: `python scripts/status.py [OUTPUT_DIR]`.
"""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while libraries load ends without a traceback

import argparse

from cramming.door import door, path_argument
from cramming.sweep.memory import remembered
from cramming.sweep.state import hours, show, tell


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output_dir", nargs="?", type=path_argument, default="outputs", help="default outputs")
    arguments = parser.parse_args()
    with door():
        for number, (command, runs) in enumerate(remembered(arguments.output_dir)):
            print(end="\n" if number else "")
            tell("sweep", command)
            states = show(runs)
            left = [run for run in runs if states[run.root.run_name].name in ("running", "queued", "missing")]
            running = sum(state.name == "running" for state in states.values())
            tell("hours", hours(runs, left, max(1, running)))


if __name__ == "__main__":
    main()
